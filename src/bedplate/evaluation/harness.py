"""Evaluates a model on a task: asks for predictions, scores them and records the opening in the test ledger."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from bedplate.core.errors import UsageError
from bedplate.core.files import sha256_json
from bedplate.core.values import Values
from bedplate.data.splits import SplitRecord, split_hash
from bedplate.evaluation.evaluated import Evaluation, with_bounds
from bedplate.evaluation.examples import Example, TaskData, load_examples, weighted
from bedplate.evaluation.grading import GradedRow, PredictionLike, TaskRow, graded
from bedplate.evaluation.in_memory import by_hash, given_rows, task_of
from bedplate.evaluation.ledger import ledger_for
from bedplate.evaluation.metrics import AnsweredRow
from bedplate.evaluation.ranking import Embeds, Ranker
from bedplate.evaluation.task import Task, load_task

if TYPE_CHECKING:
    from bedplate.inference.predict.loaded import Loaded

AT_ONCE = 1024
"""Rows that a model is asked together."""


@runtime_checkable
class Predicts(Protocol):
    """Anything that answers rows of inputs in order: a skin's predictor, a baseline, an endpoint. It is asked for
    AT_ONCE rows at a time, or fewer."""

    def predict(self, rows: Sequence[Values], /) -> Sequence[PredictionLike | str]: ...


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
    drafts = [TaskRow(task, e).grade([prediction]) for e, prediction in zip(examples, predictions, strict=True)]
    return _evaluation(task, examples, drafts, split, confidence, seed)


def _evaluation(
    task: Task, examples: Sequence[Example], drafts: Sequence[GradedRow], split: str, confidence: float, seed: int
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
        split_hash=split_hash([SplitRecord(e.id, e.row_hash, e.target, e.group) for e in examples]),
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
        worst_usd=task.scale.worst_usd,
    )
    return with_bounds(draft)


def read_task(task: Task | Path | str, data: TaskData | Any) -> tuple[Task, TaskData]:
    """A task and its rows as `bedplate.evaluate` takes them, read. ConfigError, DataError."""
    source_rows = None if data is None or isinstance(data, TaskData) else given_rows(data, by_hash)
    if source_rows is not None:
        task = task_of(task, source_rows)
    elif not isinstance(task, Task):
        task = load_task(task)
    task.scorer.ready()
    return task, data if isinstance(data, TaskData) else load_examples(task, loaded_rows=source_rows)


def evaluate(
    model: Predicts | Embeds | Path | str, task: Task, data: TaskData, split: str, confidence: float, include_seen: bool
) -> Evaluation:
    """Ask `model` for every row of a split of `task` and score the answers, as `bedplate.evaluate` says."""
    from bedplate.evaluation.leaks.seen_rows import judged_by  # late, as reading skins loads torch

    name = str(model) if isinstance(model, str | Path) else type(model).__name__
    with ExitStack() as opened:
        if isinstance(model, str | Path):
            model = opened.enter_context(closing(load_predictor(model)))
        predictor = _row_predictor(model, data, name)
        reason = f"evaluate {task.task}"
        # first, so that a call that fails here is no look in the ledger
        judged = judged_by(model, task, split, data.examples(split, reason), include_seen=include_seen)
        examples = judged.examples
        if judged.left_out:
            examples = weighted(task, f"what is left of {split}", examples, data.test.notes)
        question = {"evaluate": _identity(model), "task": task.hash, "rows": data.hashes[split]}
        if task.output.documents is not None:
            question["documents"] = data.hashes[f"file:{task.output.documents.source}"]
        opening = ledger_for(task).open(sha256_json(question), data.keys(split), task=task.task, reason=reason)
        data.test.notes.extend(opening.notes)
        rows = (TaskRow(task, example) for example in examples)
        drafts = list(graded(rows, predictor, partial(_answers, predictor), AT_ONCE))
    evaluation = _evaluation(task, examples, drafts, split, confidence, seed=0)
    return replace(evaluation, seen=judged.split_counts, left_out=judged.left_out)


def _answers(predictor: Predicts, rows: Sequence[Values]) -> Iterable[tuple[int, PredictionLike | str]]:
    predictions = predictor.predict(rows)
    if len(predictions) != len(rows):
        raise UsageError(f"{len(predictions)} predictions for {len(rows)} examples: give one for each, in order")
    return enumerate(predictions)


def _identity(model: object) -> str:
    """What was asked: a skin's id, or a base's; anything else is new each time."""
    from bedplate.inference.predict.callable_skin import SkinPredictor
    from bedplate.inference.predict.local import LocalModel
    from bedplate.skins.files import skin_id

    if isinstance(model, LocalModel):
        return model.base.identity.weights_id
    return skin_id(model.skin) if isinstance(model, SkinPredictor) else uuid.uuid4().hex


def load_predictor(skin: Path | str, **how: Any) -> Loaded:
    """The skin with its base, as it was judged where nothing else is asked for; or a base. how: as in `bedplate.load`:
    dtype, weights, kernel, allow_other_weights."""
    from bedplate.inference.predict.loaded import load

    return load(skin, **how)


def _row_predictor(model: object, data: TaskData, name: str) -> Predicts:
    """What answers the task's rows. UsageError where the model cannot."""
    if data.documents is not None and isinstance(model, Embeds):
        return Ranker(model, data.documents)
    if not isinstance(model, Predicts):
        raise UsageError(
            f"model: {name} cannot be evaluated: it has no `predict`; give a skin (a base alone has no prompt and no "
            "labels)"
        )
    return model
