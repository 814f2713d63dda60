"""A skin on rows that came after it was made: do they differ from those that it was made from, does it keep what its
report promised, is it time to climb again?

Every look at a skin is numbered in a ledger of its own, and may make less error than the one before: however often one
looks, a skin with which nothing is wrong is called wrong at most with the error of all looks together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bedplate.adaptation.after.origin import Origin, origin_of, promise_of
from bedplate.adaptation.rungs.answers import ask
from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import bedplate_home, sha256_json
from bedplate.core.progress import progress
from bedplate.data.splits import Record, take
from bedplate.evaluation.drift import Drift, Levels, Quality, Sample, Shift, decide, quality, shifts, whitened
from bedplate.evaluation.examples import Example
from bedplate.evaluation.fresh import FreshRows, every_row, fresh_rows
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.evaluation.ledger import Ledger
from bedplate.evaluation.task import Task, load_task
from bedplate.inference.engine.engine import Engine
from bedplate.inference.predict.composed import Answers, CascadePredictor
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.predict.lookup import embed_texts
from bedplate.inference.predict.predictor import Predictor
from bedplate.inference.predict.reading import text_tokens

if TYPE_CHECKING:
    from bedplate.inference.ways.way import Kernel, Weights

MOST_ROWS = 500
"""Rows of each sample that are embedded."""
COMPONENTS = 20
_AT_ONCE = 64


def looks() -> Ledger:
    """The ledger of looks at skins: where the test ledger has rows, it has the skin."""
    return Ledger(bedplate_home() / "ledger" / "skin-looks.jsonl")


def drift(
    directory: Path | str,
    new: Path | str,
    *,
    task_file: Path | None = None,
    dtype: str | None = None,
    weights: Weights | None = None,
    kernel: Kernel | None = None,
    allow_other_weights: bool = False,
    confidence: float = 0.95,
    seed: int = 0,
) -> Drift:
    """Set the rows in the file `new` against those that a skin was made from, and the skin's answers to them, where
    they have targets, against its report. confidence: for all looks at the skin together.

    Quality is that on rows which the skin has not seen. Raises UsageError without a task or for a skin that embeds,
    DataError for rows that cannot be used, SkinError, and what loading the skin raises.
    """
    origin = origin_of(directory, None if task_file is None else load_task(task_file))
    task = origin.task
    if task.output.kind == "embedding":
        raise UsageError(f"{directory} gives vectors; drift is told of skins that answer")
    task.scorer.ready()
    fresh = fresh_rows(task, new)
    notes = [*origin.notes, *fresh.notes]
    unseen = _unseen(origin, fresh, notes) if fresh.labelled else []
    old, elsewhere = _old_rows(origin, notes)
    question = {"look": origin.id, "task": task.hash, "rows": fresh.hash, "confidence": confidence}
    look = looks().open(sha256_json(question), [origin.id], task=task.task, reason=f"evaluate {origin.skin.name}")
    levels = Levels(look.number, round(1 - confidence, 12), fresh.labelled)
    predictor = load(directory, dtype=dtype, weights=weights, kernel=kernel, allow_other_weights=allow_other_weights)
    assert not isinstance(predictor, LocalModel)
    evaluation = measured = None
    with closing(predictor):
        if fresh.labelled:
            evaluation, measured = _quality(origin, unseen, predictor, levels, seed, notes)
        found = _shifts(origin, old, elsewhere, fresh, predictor, levels, seed, notes) if old else ()
    verdict, sentence = decide(found, measured)
    return Drift(
        verdict,
        sentence,
        look.number,
        levels.alpha,
        levels.spent,
        found,
        measured,
        len(old),
        len(fresh.every),
        tuple(notes),
        evaluation,
    )


def _old_rows(origin: Origin, notes: list[str]) -> tuple[list[Example], set[str]]:
    """What the skin was made from, copies of one text among it (nothing, where that is not there any more), and the
    hashes of its task's other rows: test, and what was dropped."""
    if origin.splits is None:
        return [], set()
    wanted = {row for row, split in origin.splits.items() if split in ("train", "valid")}
    try:
        every = every_row(origin.own)
    except DataError as error:
        notes.append(f"the rows that the skin was made from cannot be read ({error.message}): inputs are not compared")
        return [], set()
    there = {e.row_hash for e in every}
    gone = len(wanted - there)
    if gone:
        notes.append(
            f"{gone} of {len(wanted)} rows that the skin was made from are no longer in the data of {origin.own.path}: "
            "inputs are not compared"
        )
        return [], set()
    return [e for e in every if e.row_hash in wanted], there - wanted


def _unseen(origin: Origin, fresh: FreshRows, notes: list[str]) -> list[Example]:
    """The rows that say something of the skin's quality."""
    seen = origin.splits or {}
    unseen = [e for e in fresh.examples if e.row_hash not in seen]
    if not unseen:
        raise DataError(f"all rows of {fresh.source} are among those that the skin was made from or judged by")
    if len(unseen) < len(fresh.examples):
        had = f"{len(fresh.examples) - len(unseen):,} of {len(fresh.examples):,} new texts"
        notes.append(f"{had} are among those that the skin was made from or judged by: quality is that on the others")
    return unseen


def _quality(
    origin: Origin, unseen: Sequence[Example], predictor: Answers, levels: Levels, seed: int, notes: list[str]
) -> tuple[Evaluation, Quality]:
    promise = promise_of(origin)
    if promise is not None and promise.split == "valid":
        notes.append("the skin was not judged on test: its report has its quality on valid, by which it was chosen")
    answered = ask(predictor, unseen)
    evaluation = evaluate_predictions(origin.task, unseen, answered, split="new", seed=seed)
    return evaluation, quality(evaluation, promise, levels.quality)


# --- inputs


def _shifts(
    origin: Origin,
    old: Sequence[Example],
    elsewhere: set[str],
    fresh: FreshRows,
    predictor: Answers,
    levels: Levels,
    seed: int,
    notes: list[str],
) -> tuple[Shift, ...]:
    """Copies count as often as they came, as both samples have theirs. What the task has beside the old rows (in test,
    over its limit, or twice with different targets) is left out of both."""
    new = [e for e in fresh.every if e.row_hash not in elsewhere]
    if not new:
        notes.append("all new rows are among the task's test rows: inputs are not compared")
        return ()
    sides = (
        (old, origin.own.data.group_by is not None),
        (new, origin.task.data.group_by is not None and fresh.grouped),
    )
    chosen = [_some(rows, whole, seed) for rows, whole in sides]
    for name, rows, part in zip(("old", "new"), (old, new), chosen, strict=True):
        if len(part) < len(rows):
            notes.append(f"{len(part):,} of {len(rows):,} {name} rows are embedded")
    texts = [_text(rows[i]) for (rows, _), part in zip(sides, chosen, strict=True) for i in part]
    features = input_features(texts, predictor, notes)
    labels_of = _labels_of(origin.task) if fresh.labelled else None
    samples: list[Sample] = []
    for (rows, whole), places in zip(sides, chosen, strict=True):
        groups = [e.group for e in rows] if whole else None
        labels = None if labels_of is None else [labels_of(e.target) for e in rows]
        samples.append(Sample([_text(e) for e in rows], groups, labels, features[: len(places)], places))
        features = features[len(places) :]
    return shifts(samples[0], samples[1], levels.shifts, seed)


def _some(rows: Sequence[Example], grouped: bool, seed: int) -> list[int]:
    """Numbers of at most MOST_ROWS rows, whole groups where there are any; of all where no group is so small."""
    records = [Record(str(i), e.row_hash, e.target, e.group if grouped else str(i)) for i, e in enumerate(rows)]
    found = take(records, MOST_ROWS, seed) or records
    return sorted(int(record.id) for record in found)


def _labels_of(task: Task) -> Callable[[str], Sequence[str]] | None:
    if task.output.kind == "labels":
        return json.loads
    return (lambda target: (target,)) if task.labels else None


def _text(example: Example) -> str:
    return "\n".join(example.texts.values())


def input_features(texts: Sequence[str], predictor: Answers, notes: list[str]) -> NDArray[np.float64]:
    """Leading components of the texts' vectors by the skin's base, or by their words where no base is here."""
    engine = _engine(predictor)
    if engine is None:
        why = "no base of the skin is on this machine" if predictor.skin.bases else "the skin has no base"
        notes.append(f"{why}: inputs are compared by their words")
        return whitened(_word_vectors(texts), COMPONENTS)
    tokenizer, spec = engine.base.need_tokenizer(), engine.base.spec
    distinct = list(dict.fromkeys(texts))
    fits = [text for text in distinct if 0 < len(text_tokens(tokenizer, text)) <= spec.context_length]
    # a decoder's last states say what comes next, those of the middle what the text is about
    depth = round(spec.layers * 2 / 3) if "generate" in engine.base.can else None
    vectors = dict.fromkeys(distinct, np.zeros(spec.hidden_size))
    for start in progress(range(0, len(fits), _AT_ONCE), "embedding inputs"):
        part = fits[start : start + _AT_ONCE]
        vectors |= zip(part, embed_texts(engine, part, "mean", depth).astype(np.float64), strict=True)
    if len(fits) < len(distinct):
        notes.append(f"{len(distinct) - len(fits)} inputs are too long for the base and count as alike")
    return whitened(np.stack([vectors[text] for text in texts]), COMPONENTS)


def _engine(predictor: Answers) -> Engine | None:
    """Of the skin's base, or of the first base of a cascade's two skins."""
    if isinstance(predictor, CascadePredictor):
        return _engine(predictor.first) or _engine(predictor.second)
    return predictor.engine if isinstance(predictor, Predictor) else None


def _word_vectors(texts: Sequence[str]) -> NDArray[np.float64]:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    marks: Any = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]").fit_transform(texts)
    size = min(4 * COMPONENTS, *(n - 1 for n in marks.shape))
    if size < 1:
        return marks.toarray()
    return TruncatedSVD(size, random_state=0).fit_transform(marks)
