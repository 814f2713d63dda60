"""`bedplate.evaluate`: a model on a split of a task, or a skin on rows that came later."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from bedplate.core.arguments import checked
from bedplate.core.errors import UsageError
from bedplate.data.tables import is_table
from bedplate.evaluation import harness
from bedplate.evaluation.examples import TaskData
from bedplate.evaluation.harness import Evaluation, Predicts
from bedplate.evaluation.ranking import Embeds
from bedplate.evaluation.task import Task

if TYPE_CHECKING:
    from bedplate.evaluation.drift_verdict import Drift


@overload
def evaluate(
    model: Predicts | Embeds | Path | str,
    task: Task | Path | str,
    *,
    split: str = "valid",
    data: TaskData | Any = None,
    confidence: float = 0.95,
    include_seen: bool = False,
) -> Evaluation: ...
@overload
def evaluate(model: Path | str, task: Any, *, confidence: float = 0.95) -> Drift: ...
@checked
def evaluate(
    model: Predicts | Embeds | Path | str,
    task: Task | Path | str | Any,
    *,
    split: str = "valid",
    data: TaskData | Any = None,
    confidence: float = 0.95,
    include_seen: bool = False,
) -> Evaluation | Drift:
    """Ask `model` (a skin's predictor, or its directory) for every row of a split of `task` and score the answers. What
    embeds, a base as well, ranks the documents of a task whose output is an embedding.

    data: rows in place of the task's own source: a DataFrame of pandas or polars, a Dataset of `datasets`, a pyarrow
    Table or a list of mappings, split as the task says; or a mapping (a DatasetDict) of such to train, valid and test.

    Rows that the skin was trained on, or for test chosen by, are left out and counted (`seen`, `left_out`), where the
    run that made it is found; include_seen keeps them. Looking at a split is recorded in the ledger first: a later
    verdict on these rows (those of train may be another task's test) is exploratory, because what was seen here may
    shape what is judged there. The same skin asked again is no new opening.

    Rows that came later take the place of the task (`bedplate.evaluate(skin_directory, frame)`), and are set against
    those that the skin was made from, as by the command with a file: do they differ, does it keep its promise?
    """
    if not is_table(task) and not isinstance(task, list | tuple):
        return harness.evaluate(model, *harness.read_task(task, data), split, confidence, include_seen)
    if not isinstance(model, str | Path):
        raise UsageError(f"new rows are set against a skin's own: give its directory, not a {type(model).__name__}")
    if data is not None or split != "valid" or include_seen:
        raise UsageError("split, data and include_seen go with a task, not with new rows")
    from bedplate.adaptation.postprocess.monitor import drift  # late, as it loads torch

    return drift(model, task, confidence=confidence)
