"""A skin on rows that came after it was made: do they differ from those that it was made from, does it keep what its
report promised, is it time to climb again?

Every look at a skin is numbered in a ledger of its own, which keeps what its bets gained: all looks are one test, so
that however often one looks, a skin with which nothing is wrong is called wrong at most with the error of all of them.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bedplate.adaptation.context.embedding import topic_depth
from bedplate.adaptation.postprocess.origin import Origin, origin_of, promise_of, tested_rows
from bedplate.adaptation.rungs.answers import predict_examples
from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import sha256_json
from bedplate.core.progress import progress
from bedplate.core.statistics.betting import Gains
from bedplate.data.splits import SplitRecord, subsample
from bedplate.evaluation.drift import Levels, Quality, Sample, Shift, parts, quality, shifts, texts_recur
from bedplate.evaluation.drift_verdict import Drift, decide
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.evaluation.in_memory import FreshRows, every_row, fresh_rows
from bedplate.evaluation.ledger import keys_of, ledger_for
from bedplate.evaluation.ledger.ledger import EarlierLook, earlier_looks, looks, remember
from bedplate.evaluation.task import Task, load_task
from bedplate.inference.engine.engine import Engine
from bedplate.inference.predict.callable_skin import CascadePredictor, SkinPredictor
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.predict.lookup import embed_texts
from bedplate.inference.predict.predictor import Predictor
from bedplate.inference.predict.text_reading import text_tokens

if TYPE_CHECKING:
    from bedplate.inference.execution.plan import Kernel, Weights

MAX_EMBEDDED_ROWS = 500
"""Rows of each sample that are embedded."""
_WORD_DIRECTIONS = 80
_AT_ONCE = 64


def drift(
    directory: Path | str,
    new: Any,
    *,
    task_file: Path | None = None,
    dtype: str | None = None,
    weights: Weights | None = None,
    kernel: Kernel | None = None,
    allow_other_weights: bool = False,
    confidence: float = 0.95,
    seed: int = 0,
) -> Drift:
    """Set the rows of `new`, a file or a table, against those that a skin was made from, and the skin's answers to
    them, where they have targets, against its report. confidence: for all looks at the skin together.

    Quality is that on rows which the skin has not seen. Raises UsageError without a task or for a skin that embeds,
    DataError for rows that cannot be used, SkinError, and what loading the skin raises.
    """
    origin = origin_of(directory, None if task_file is None else load_task(task_file))
    task = origin.task
    if task.output.form.as_embedding is not None:
        raise UsageError(f"{directory} returns vectors; drift is measured for skins that return answers")
    task.scorer.ready()
    fresh = fresh_rows(task, new)
    notes = [*origin.notes, *fresh.notes]
    unseen = _unseen(origin, fresh, notes) if fresh.labelled else []
    old, elsewhere, copies = _old_rows(origin, notes)
    question = sha256_json({"look": origin.id, "task": task.hash, "rows": fresh.hash, "confidence": confidence})
    look = looks().open(question, [origin.id], task=task.task, reason=f"evaluate {origin.skin.name}")
    earlier = earlier_looks(origin.id, question)
    notes += earlier.notes
    levels = Levels(round(1 - confidence, 12))
    largest = earlier.largest or _largest(old or fresh.all_examples)
    predictor = load(directory, dtype=dtype, weights=weights, kernel=kernel, allow_other_weights=allow_other_weights)
    assert not isinstance(predictor, LocalModel)
    evaluation = measured = None
    with closing(predictor):
        if unseen:  # whoever reads how a skin does on rows may choose by it; a call that fails before reads nothing
            keys, reason = keys_of((e.id, e.inputs) for e in unseen), f"evaluate {origin.skin.name} on new rows"
            files = [new] if isinstance(new, str | Path) else []
            opening = ledger_for(None, *files).open(question, keys, task=task.task, reason=reason)
            notes += opening.notes
            notes.append("these rows are in the test ledger now; a later verdict of `adapt` on them is exploratory")
        this_look = _Look(origin, fresh, predictor, levels, look.number, earlier, largest, seed, notes)
        if fresh.labelled:
            evaluation, measured = this_look.quality(unseen, copies)
        input_shifts = this_look.shifts(old, elsewhere) if old else ()
    gained: dict[str, Gains] = {} if measured is None else dict(measured.gains)
    gained |= {shift.aspect: shift.gains for shift in input_shifts}
    rows = [e.row_hash for e in fresh.all_examples]
    judged = rows if fresh.labelled else ()
    remember(origin.id, question, look.number, rows=rows, judged=judged, largest=largest, gains=gained)
    repeated_rows = sum(row in (earlier.judged if fresh.labelled else earlier.rows) for row in rows)
    if repeated_rows:
        notes.append(f"{repeated_rows:,} of {len(rows):,} new rows were in an earlier look and are not counted again")
    verdict, sentence = decide(input_shifts, measured)
    counts = len(old), len(fresh.all_examples)
    return Drift(
        verdict, sentence, look.number, levels.alpha, input_shifts, measured, *counts, tuple(notes), evaluation
    )


def _largest(rows: Sequence[Example]) -> int:
    """So many rows of a group at most that nine rows in ten are bet on: what the largest group could lose limits what
    is staked on all."""
    sizes = Counter(row.group for row in rows).values()
    return next(cap for cap in itertools.count(1) if sum(min(size, cap) for size in sizes) >= 0.9 * len(rows))


def _old_rows(origin: Origin, notes: list[str]) -> tuple[list[Example], set[str], Counter[str]]:
    """What the skin was made from, copies of one text among it (nothing, where that is not there any more), the hashes
    of its task's other rows (test, and what was dropped), and how often each text of the task came."""
    if origin.splits is None:
        return [], set(), Counter()
    source_hashes = {row for row, split in origin.splits.items() if split in ("train", "valid")}
    try:
        examples = every_row(origin.run_task)
    except DataError as error:
        notes.append(f"the rows that the skin was made from cannot be read ({error.message}): inputs are not compared")
        return [], set(), Counter()
    copies = Counter(e.row_hash for e in examples)
    missing = len(source_hashes - copies.keys())
    if missing:
        notes.append(
            f"{missing} of {len(source_hashes)} rows that the skin was made from are no longer in the data of "
            f"{origin.run_task.path}: inputs are not compared"
        )
        return [], set(), Counter()
    return [e for e in examples if e.row_hash in source_hashes], copies.keys() - source_hashes, copies


def _unseen(origin: Origin, fresh: FreshRows, notes: list[str]) -> list[Example]:
    """The rows that say something of the skin's quality."""
    had = origin.had(fresh.examples)
    unseen = [e for e, split in zip(fresh.examples, had, strict=True) if split is None]
    if not unseen:
        raise DataError(f"all rows of {fresh.source} are among those that the skin was made from or judged by")
    if len(unseen) < len(fresh.examples):
        overlap = f"{len(fresh.examples) - len(unseen):,} of {len(fresh.examples):,} new texts"
        notes.append(
            f"{overlap} are among those that the skin was made from or judged by: quality is measured on the others"
        )
    return unseen


@dataclass(frozen=True)
class _Look:
    """One look at a skin. number: of how many; largest: rows of a group that are bet on at most; notes: for the report,
    which it adds to."""

    origin: Origin
    fresh: FreshRows
    predictor: SkinPredictor
    levels: Levels
    number: int
    earlier: EarlierLook
    largest: int
    seed: int
    notes: list[str]

    def quality(self, unseen: Sequence[Example], copies: Mapping[str, int]) -> tuple[Evaluation, Quality]:
        """The skin on rows that it has not seen, against what its report promised. copies: how often each text of its
        task came."""
        promise = promise_of(self.origin)
        if promise is not None and promise.split == "valid":
            self.notes.append(
                "the skin was not tested: its report has only its quality on the validation rows that chose it"
            )
        answered, earlier = predict_examples(self.predictor, unseen), self.earlier
        evaluation = evaluate_predictions(self.origin.task, unseen, answered, split="new", seed=self.seed)
        bets = [e.row_hash not in earlier.judged for e in unseen]
        bounds: dict[str, Any] = {
            "look": self.number,
            "unseen": bets,
            "earlier": earlier.gains,
            "largest": self.largest,
            "alike": self._alike(unseen, copies),
        }
        return evaluation, quality(evaluation, promise, self.levels.quality, **bounds)

    def _alike(
        self, unseen: Sequence[Example], copies: Mapping[str, int]
    ) -> tuple[list[tuple[float, str]], int] | None:
        """Scores and groups of the test rows that came once and in no earlier look, where texts of the new rows recur,
        or those of earlier looks did, and how many of those that came once were in one; None where none do."""
        judged, rows = self.earlier.judged, {e.row_hash for e in self.fresh.examples}
        task_rows = rows.difference(e.row_hash for e in unseen) | (self.origin.splits or {}).keys()
        if not (self.origin.run_task.data.traffic.duplicates or texts_recur(rows, judged, task_rows)):
            return None
        tested = [result for result in tested_rows(self.origin) if copies.get(result[0]) == 1]
        alike = [(score, group) for row, score, group in tested if row not in judged]
        standard = f"the {len(alike)} of test that came once" if alike else "nothing, as no such row of test is there"
        self.notes.append(
            "texts recur: those that came neither in the task's data nor in an earlier look are judged; they are the "
            f"rarer ones, and are compared with {standard}"
        )
        return alike, len(tested) - len(alike)

    def shifts(self, old: Sequence[Example], elsewhere: set[str]) -> tuple[Shift, ...]:
        """Copies count as often as they came, as both samples have theirs. What the task has beside the old rows (in
        test, over its limit, or twice with different targets) is left out of both."""
        origin, fresh, earlier, notes = self.origin, self.fresh, self.earlier, self.notes
        new = [e for e in fresh.all_examples if e.row_hash not in elsewhere]
        if not new:
            notes.append(
                "all new rows are in the task's own data, but not in train or valid of this skin: inputs are not "
                "compared"
            )
            return ()
        sides = (
            (old, origin.run_task.data.group_by is not None),
            (new, origin.task.data.group_by is not None and fresh.grouped),
        )
        # new rows that an earlier look had are not bet on: room is for the others
        counted = [i for i, e in enumerate(new) if e.row_hash not in earlier.rows] or range(len(new))
        chosen = [
            _subsample(rows, places, whole, self.seed)
            for (rows, whole), places in zip(sides, (range(len(old)), counted), strict=True)
        ]
        for name, rows, part in zip(("old", "new"), (old, new), chosen, strict=True):
            if len(part) < len(rows):
                notes.append(f"inputs: {len(part):,} of {len(rows):,} {name} rows are compared")
        texts = [[_text(rows[i]) for i in part] for (rows, _), part in zip(sides, chosen, strict=True)]
        groups = [old[i].group for i in chosen[0]] if sides[0][1] else None
        learned = parts(groups, len(chosen[0]), self.seed).learned
        by_words = word_vectors(texts[0], texts[1], learned)
        vectors = input_vectors(texts[0], texts[1], self.predictor, notes) or (None, None)
        labels_of = _labels_of(origin.task) if fresh.labelled else None
        samples: list[Sample] = []
        for (rows, whole), places, embedded, worded in zip(sides, chosen, vectors, by_words, strict=True):
            groups = [e.group for e in rows] if whole else None
            labels = None if labels_of is None else [labels_of(e.target) for e in rows]
            unseen, unjudged = ([e.row_hash not in had for e in rows] for had in (earlier.rows, earlier.judged))
            side_texts = [_text(e) for e in rows]
            samples.append(Sample(side_texts, groups, labels, embedded, places, unseen, unjudged, worded))
        before, after = samples
        return shifts(before, after, self.levels.shift, earlier=earlier.gains, largest=self.largest, seed=self.seed)


def _subsample(rows: Sequence[Example], numbers: Sequence[int], grouped: bool, seed: int) -> list[int]:
    """At most MAX_EMBEDDED_ROWS of the rows with these numbers, whole groups where there are any; all where no group is
    so small."""
    named = [(i, rows[i]) for i in numbers]
    records = [SplitRecord(str(i), e.row_hash, e.target, e.group if grouped else str(i)) for i, e in named]
    sampled = subsample(records, MAX_EMBEDDED_ROWS, seed) or records
    return sorted(int(record.id) for record in sampled)


def _labels_of(task: Task) -> Callable[[str], Sequence[str]] | None:
    if task.output.form.several_labels:
        return json.loads
    return (lambda target: (target,)) if task.labels else None


def _text(example: Example) -> str:
    return "\n".join(example.texts.values())


def input_vectors(
    old: Sequence[str], new: Sequence[str], predictor: SkinPredictor, notes: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The vectors of old and of new texts by the skin's base; None where no base is here."""
    engine = _engine(predictor)
    if engine is None:
        why = "no base of the skin is on this machine" if predictor.skin.bases else "the skin has no base"
        notes.append(f"{why}: inputs are compared by their words alone")
        return None
    tokenizer, spec = engine.base.need_tokenizer(), engine.base.spec
    distinct = list(dict.fromkeys([*old, *new]))
    fits = [text for text in distinct if 0 < len(text_tokens(tokenizer, text)) <= spec.context_length]
    vectors = dict.fromkeys(distinct, np.zeros(spec.hidden_size))
    for start in progress(range(0, len(fits), _AT_ONCE), "embedding inputs"):
        part = fits[start : start + _AT_ONCE]
        vectors |= zip(
            part, embed_texts(engine, part, "mean", topic_depth(engine.base)).astype(np.float64), strict=True
        )
    if len(fits) < len(distinct):
        notes.append(f"{len(distinct) - len(fits)} inputs are too long for the base and count as equal")
    return np.stack([vectors[text] for text in old]), np.stack([vectors[text] for text in new])


def _engine(predictor: SkinPredictor) -> Engine | None:
    """The engine of the skin's base, or of the first base of a cascade's two skins."""
    if isinstance(predictor, CascadePredictor):
        return _engine(predictor.first) or _engine(predictor.second)
    return predictor.engine if isinstance(predictor, Predictor) else None


def word_vectors(
    old: Sequence[str], new: Sequence[str], first: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Directions of the words of some of the old texts: words of the others must be as unknown as those of new ones."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]").fit([old[i] for i in first])
    marks: list[Any] = [words.transform(texts) for texts in ([old[i] for i in first], old, new)]
    size = min(_WORD_DIRECTIONS, *(n - 1 for n in marks[0].shape))
    if size < 1:
        return marks[1].toarray(), marks[2].toarray()
    directions = TruncatedSVD(size, random_state=0).fit(marks[0])
    return directions.transform(marks[1]), directions.transform(marks[2])
