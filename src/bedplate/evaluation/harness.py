"""Score predictions against a task: estimate, interval and bound with groups respected, every row kept beside them."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bedplate.core import shown, statistics
from bedplate.core.arguments import checked
from bedplate.core.errors import UsageError
from bedplate.core.files import sha256_json
from bedplate.core.statistics import InsufficientGroups
from bedplate.core.statistics.bootstrap import influence
from bedplate.core.statistics.proportions import Side
from bedplate.core.values import Values
from bedplate.data.splits import Record, split_hash
from bedplate.evaluation.examples import Example, TaskData, load_examples
from bedplate.evaluation.given import by_hash, given_rows, task_of
from bedplate.evaluation.grading import graded
from bedplate.evaluation.label_counts import check_labels, label_groups, unseen_macro_f1
from bedplate.evaluation.leaks.seen import judged_by
from bedplate.evaluation.ledger import Ledger
from bedplate.evaluation.metrics import METRICS, AnsweredRow, Scoring
from bedplate.evaluation.ranking import Embeds, Ranker
from bedplate.evaluation.task import Task, load_task
from bedplate.evaluation.task_row import PredictionLike, RowResult, TaskRow

if TYPE_CHECKING:
    from bedplate.inference.predict.loaded import Loaded

AT_ONCE = 1024
"""Rows that a model is asked together."""


@runtime_checkable
class Predicts(Protocol):
    """Anything that answers rows of inputs in order: a skin's predictor, a baseline, an endpoint. It is asked for
    AT_ONCE rows at a time, or fewer."""

    def predict(self, rows: Sequence[Values], /) -> Sequence[PredictionLike | str]: ...


@dataclass(frozen=True, repr=False)
class Evaluation(shown.Brief):
    """A metric on a split. `interval` is two-sided, `lower_bound` one-sided, both at `confidence`.

    `lower_bound` is None, with the `reason`, where rows come in too few groups for a bound; the interval is then shown
    for orientation only. `unparsed` rows had no usable prediction and count as wrong. `output` is the kind of output,
    and `scoring` what the metric declares its number to be made of, which decides how it is bounded. `seen`: of all
    rows of the split, how many the skin's run had in train, valid and test (None: nobody knows); `left_out` of them,
    which it was trained on or chosen by, are not among `rows`.
    """

    task: str
    task_hash: str
    split: str
    split_hash: str
    metric: str
    labels: tuple[str, ...]
    estimate: float
    interval: tuple[float, float]
    confidence: float
    lower_bound: float | None
    reason: str | None
    n: int
    groups: int
    icc: float | None
    design_effect: float
    unparsed: int
    seed: int
    rows: tuple[RowResult, ...]
    output: str
    scoring: Scoring
    seen: Mapping[str, int] | None = None
    left_out: int = 0

    def bound(self, confidence: float, side: Side = "lower") -> float:
        """One-sided bound of the metric at another confidence (Holm, repeated verdicts). Raises InsufficientGroups, and
        of a mean over labels RareLabel."""
        if self.scoring in ("binary", "answered"):
            scores, groups = self.judged
            if not groups:  # nothing was answered: anything may be true
                return float(side == "upper")
            return statistics.effective_n_bound(scores, groups, confidence, side).value
        if self._label_groups is not None:
            check_labels(self.labels, self._label_groups)
        boot = self.bootstrap(confidence)
        return boot.lower if side == "lower" else boot.upper

    def bootstrap(self, confidence: float, minimum_groups: int = statistics.MINIMUM_GROUPS) -> statistics.Bootstrap:
        """Bounds of a metric that is no proportion. Raises InsufficientGroups."""
        seen = self._label_groups

        def ends(a: float) -> tuple[float, float]:
            assert seen is not None
            counts = self.parts.sum(0).reshape(3, len(self.labels))
            return unseen_macro_f1(counts, seen, a)

        return statistics.bca_of_sums(
            self.parts,
            self.of_sums,
            self._groups,
            confidence,
            seed=self.seed,
            unseen=True if seen is None else ends,
            minimum_groups=minimum_groups,
        )

    @property
    def judged(self) -> tuple[NDArray[np.float64], list[str]]:
        """Scores and groups of the rows that the metric is a mean of: all, or those that were answered."""
        if self.scoring != "answered":
            return self._scores, self._groups
        kept = np.flatnonzero(self._abstained == 0)
        return self._scores[kept], [self._groups[row] for row in kept.tolist()]

    def statistic(self, rows: NDArray[np.int64]) -> float:
        """The metric over some of the rows, given by number (repeats allowed)."""
        return float(self.of_sums(self.parts[rows].sum(0)))

    @property
    def row_variance(self) -> float | None:
        """Of what one row adds to the metric, to first order (the delta method): the metric of n independent rows has
        this variance over n. None for a share, whose variance its value says."""
        if self.scoring in ("binary", "answered"):
            return None
        if self.n < 2:
            return 0.0
        return float(np.var(influence(self.parts, self.of_sums), ddof=1))

    @cached_property
    def parts(self) -> NDArray[np.float64]:
        """What each row adds to the sums that the metric is made of [n, d]."""
        if self.scoring == "answered":
            return np.stack([self._scores, 1.0 - self._abstained], axis=1)
        if self.scoring != "counts":
            return np.stack([self._scores, np.ones(self.n)], axis=1)
        wanted, given = self._marks([r.target for r in self.rows]), self._marks([r.prediction for r in self.rows])
        return np.concatenate([wanted * given, wanted, given], axis=1)

    def of_sums(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """The metric from sums of `parts` [..., d] → [...]."""
        if self.scoring == "answered":  # nothing answered is nothing right
            return sums[..., 0] / np.maximum(sums[..., 1], 1.0)
        if self.scoring != "counts":
            return statistics.mean_of_sums(sums)
        whole = METRICS[self.metric].statistic
        assert whole is not None
        return whole(sums.reshape(*sums.shape[:-1], 3, len(self.labels)))

    def labels_of(self, answer: str | None) -> tuple[str, ...]:
        """The labels in a row's target or prediction: one, some or none of `labels`."""
        if answer is None or not self.labels:
            return ()
        if self.output == "labels":
            return tuple(json.loads(answer))
        return (answer,) if answer in self.labels else ()

    @property
    def coverage(self) -> float:
        """The share of rows that were answered: on which the skin did not abstain."""
        return 1.0 - float(self._abstained.mean())

    @property
    def answered(self) -> float | None:
        """Mean row score among the answered rows; None where there is none."""
        kept = self._scores[self._abstained == 0]
        return float(kept.mean()) if len(kept) else None

    def __repr__(self) -> str:
        low, high = self.interval
        groups = f" in {self.groups:,} groups" if self.groups < self.n else ""
        found = f"{self.metric} {self.estimate:.3f} ({low:.3f} to {high:.3f})"
        return shown.line("evaluation", self.task, found, f"{self.n:,} rows of {self.split}{groups}")

    def to_json(self) -> dict[str, Any]:
        """Plain values for report.json; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Evaluation:
        """The evaluation that `to_json` wrote, also after a trip through a JSON file."""
        plain: dict[str, Any] = dict(values)
        plain["interval"] = tuple(values["interval"])
        plain["labels"] = tuple(values["labels"])
        plain["rows"] = tuple(RowResult(**row) for row in values["rows"])
        if "scoring" not in plain:  # from before there were several labels and scores between 0 and 1
            plain["output"] = "label" if plain["labels"] else "text"
            plain["scoring"] = METRICS[plain["metric"]].scoring
        return cls(**plain)

    @cached_property
    def _scores(self) -> np.ndarray:
        return np.array([row.score for row in self.rows])

    @cached_property
    def _abstained(self) -> NDArray[np.float64]:
        """1 where the skin gave no label on purpose, which is the only answer that is kept and is no label."""
        if self.output != "label":
            return np.zeros(self.n)
        return np.array([float(row.prediction is not None and row.prediction not in self.labels) for row in self.rows])

    @cached_property
    def _label_groups(self) -> NDArray[np.int64] | None:
        """In how many groups each label is a target [L]; None where labels do not weigh alike."""
        if self.scoring != "counts" or not METRICS[self.metric].per_label:
            return None
        return label_groups(self._marks([row.target for row in self.rows]), self._groups)

    @cached_property
    def _groups(self) -> list[str]:
        return [row.group for row in self.rows]

    def _marks(self, answers: Sequence[str | None]) -> NDArray[np.float64]:
        """Labels of answers as 0/1 [n, L]."""
        number = {label: code for code, label in enumerate(self.labels)}
        marks = np.zeros((len(answers), len(self.labels)))
        for row, answer in enumerate(answers):
            marks[row, [number[label] for label in self.labels_of(answer)]] = 1.0
        return marks


def evaluate_predictions(
    task: Task,
    examples: Sequence[Example],
    predictions: Sequence[PredictionLike | str | None],
    *,
    split: str = "valid",
    confidence: float = 0.95,
    seed: int = 0,
) -> Evaluation:
    """Score `predictions`, one for each example in order; plain strings (or None) will do where there are no scores."""
    if len(examples) != len(predictions):
        raise UsageError(f"{len(predictions)} predictions for {len(examples)} examples: give one for each, in order")
    drafts = [TaskRow(task, e).grade([given]) for e, given in zip(examples, predictions, strict=True)]
    return _evaluation(task, examples, drafts, split, confidence, seed)


def _evaluation(
    task: Task, examples: Sequence[Example], drafts: Sequence[RowResult], split: str, confidence: float, seed: int
) -> Evaluation:
    """The drafts scored, and what all of them together say."""
    if not examples:
        raise UsageError("there are no examples to evaluate")
    scorer = task.scorer
    answered = [AnsweredRow(e.id, e.inputs, e.target, row.prediction) for e, row in zip(examples, drafts, strict=True)]
    rows = tuple(replace(row, score=score) for row, score in zip(drafts, scorer.score(answered), strict=True))
    draft = Evaluation(
        task=task.task,
        task_hash=task.hash,
        split=split,
        split_hash=split_hash([Record(e.id, e.row_hash, e.target, e.group) for e in examples]),
        metric=scorer.name,
        labels=task.output.labels or (),
        estimate=math.nan,
        interval=(0.0, 1.0),
        confidence=confidence,
        lower_bound=None,
        reason=None,
        n=len(rows),
        groups=len({row.group for row in rows}),
        icc=None,
        design_effect=1.0,
        unparsed=sum(row.prediction is None for row in rows),
        seed=seed,
        rows=rows,
        output=task.output.kind,
        scoring=scorer.scoring,
    )
    return _with_bounds(draft)


def _with_bounds(draft: Evaluation) -> Evaluation:
    whole = replace(draft, estimate=draft.statistic(np.arange(draft.n)), interval=_interval(draft))
    scores, groups = draft.judged
    if groups:
        icc = statistics.intraclass_correlation(scores, groups)
        # of `n` rows only the judged ones count: a row that is not answered is worth nothing
        effect = statistics.design_effect(scores, groups) * draft.n / len(groups)
        whole = replace(whole, icc=None if math.isnan(icc) else icc, design_effect=effect)
    try:
        return replace(whole, lower_bound=whole.bound(whole.confidence))
    except InsufficientGroups as error:
        return replace(whole, reason=error.message)


def _interval(draft: Evaluation) -> tuple[float, float]:
    try:
        if draft.scoring not in ("binary", "answered"):
            return draft.bootstrap(draft.confidence, 2).interval
        scores, groups = draft.judged
        if groups:
            return statistics.effective_n_interval(scores, groups, draft.confidence, minimum_groups=2)
    except InsufficientGroups:  # one group says nothing about others
        pass
    return 0.0, 1.0


@checked
def evaluate(
    model: Predicts | Embeds | Path | str,
    task: Task | Path | str,
    *,
    split: str = "valid",
    data: TaskData | Any = None,
    confidence: float = 0.95,
    include_seen: bool = False,
) -> Evaluation:
    """Ask `model` (a skin's predictor, or its directory) for every row of a split of `task` and score the answers. What
    embeds, a base as well, ranks the documents of a task whose output is an embedding.

    data: rows in place of the task's own source: a DataFrame of pandas or polars, a Dataset of `datasets`, a pyarrow
    Table or a list of mappings, split as the task says; or a mapping (a DatasetDict) of such to train, valid and test.

    Rows that the skin was trained on, or for test chosen by, are left out and counted (`seen`, `left_out`), where the
    run that made it is found; include_seen keeps them. Looking at valid or test is recorded in the ledger first: a
    later verdict on these rows is exploratory, because what was seen here may shape what is judged there. The same skin
    asked again is no new opening.
    """
    given = None if data is None or isinstance(data, TaskData) else given_rows(data, by_hash)
    if given is not None:
        task = task_of(task, given)
    elif not isinstance(task, Task):
        task = load_task(task)
    task.scorer.ready()
    if not isinstance(data, TaskData):
        data = load_examples(task, given=given)
    name = str(model) if isinstance(model, str | Path) else type(model).__name__
    with ExitStack() as opened:
        if isinstance(model, str | Path):
            model = opened.enter_context(closing(load_predictor(model)))
        predictor = _asked(model, data, name)
        reason = f"evaluate {task.task}"
        if split in ("valid", "test"):
            question = {"evaluate": _identity(model), "task": task.hash, "rows": data.hashes[split]}
            if task.output.documents is not None:
                question["documents"] = data.hashes[f"file:{task.output.documents.source}"]
            Ledger().open(sha256_json(question), data.row_hashes(split), task=task.task, reason=reason)
        judged = judged_by(model, task, split, data.examples(split, reason), include_seen=include_seen)
        rows = (TaskRow(task, example) for example in judged.examples)
        drafts = list(graded(rows, predictor, partial(_answers, predictor), AT_ONCE))
    found = _evaluation(task, judged.examples, drafts, split, confidence, seed=0)
    return replace(found, seen=judged.seen, left_out=judged.left_out)


def _answers(predictor: Predicts, rows: Sequence[Values]) -> Iterable[tuple[int, PredictionLike | str]]:
    found = predictor.predict(rows)
    if len(found) != len(rows):
        raise UsageError(f"{len(found)} predictions for {len(rows)} examples: give one for each, in order")
    return enumerate(found)


def _identity(model: object) -> str:
    """What was asked: a skin's id, or a base's; anything else is new each time."""
    from bedplate.inference.predict.composed import Answers
    from bedplate.inference.predict.local import LocalModel
    from bedplate.skins.files import skin_id

    if isinstance(model, LocalModel):
        return model.base.identity.weights_id
    return skin_id(model.skin) if isinstance(model, Answers) else uuid.uuid4().hex


def load_predictor(skin: Path | str, **how: Any) -> Loaded:
    """The skin with its base, as it was judged where nothing else is asked for; or a base. how: as in `bedplate.load`:
    dtype, weights, kernel, allow_other_weights."""
    from bedplate.inference.predict.loaded import load

    return load(skin, **how)


def _asked(model: object, data: TaskData, name: str) -> Predicts:
    """What answers the task's rows. UsageError where the model cannot."""
    if data.documents is not None and isinstance(model, Embeds):
        return Ranker(model, data.documents)
    if not isinstance(model, Predicts):
        raise UsageError(
            f"model: {name} cannot be evaluated: it has no `predict`; give a skin (a base alone has no prompt and no "
            "labels)"
        )
    return model
