"""Rows with two labels: how often these agree, and a bar that no model can be expected to reach against one of them."""

from __future__ import annotations

from bedplate.core.errors import DataError
from bedplate.core.statistics.agreement import agreement_ceiling
from bedplate.evaluation.examples import TaskData
from bedplate.evaluation.metrics import METRICS
from bedplate.evaluation.task import Task
from bedplate.report.schema_labels import SecondLabels


def second_labels(task: Task, data: TaskData, confidence: float) -> SecondLabels | None:
    """What the rows with two labels say, of all splits; None where the task names no second column. Only labels are
    compared, so that test stays closed."""
    found = _second_labels(task, data, confidence)
    return None if found is None else found.model_copy(update={"said": _said(found)})


def _second_labels(task: Task, data: TaskData, confidence: float) -> SecondLabels | None:
    column = task.data.second_label
    if column is None:
        return None
    whole = sum(data.counts.get(name, 0) for name in ("train", "valid", "test"))
    if not data.agreed:
        return SecondLabels(column=column, n=0, of=whole, groups=0, reason="no row has a second label")
    agreed, groups, weights = zip(*data.agreed, strict=True)
    found = agreement_ceiling(agreed, groups, len(task.labels) or None, confidence, weights)
    bounded = isinstance(task.metric, str) and METRICS[task.metric].scoring == "binary"
    known = SecondLabels(
        column=column,
        n=found.n,
        of=whole,
        groups=found.groups,
        agreement=found.rate,
        agreement_interval=found.rate_interval,
        reason=found.reason if bounded else f"{task.metric_name} is no share of answers that are equal to the target",
    )
    if not bounded:
        return known
    bounds = {"ceiling": found.value, "ceiling_interval": found.interval}
    return known.model_copy(update={**bounds, "highest": found.highest, "confidence": found.confidence})


def check_bar(found: SecondLabels | None, target: float | None, where: str) -> None:
    """DataError for a bar above what any model can read against labels that agree no better. target: None where it is
    not a fixed one."""
    if found is None or found.highest is None or target is None:
        return
    if target > found.highest:
        raise DataError(
            f"{where}: adapt.target.value: {target:g} is out of reach: of {found.n:,} rows with a second label "
            f"({found.column}) the two agree on {found.agreement:.3f}, so that no model reads more than "
            f"{found.highest:.3f} against one of them, with {found.confidence:.0%} confidence; lower the bar, or have "
            "the rows on which labels differ decided by a third person"
        )


def _said(found: SecondLabels) -> str:
    rows = f"{found.n:,} of {found.of:,} rows have a second label ({found.column})"
    if found.agreement is None or found.agreement_interval is None:
        return f"{rows}: nothing is known of how noisy labels are"
    low, high = found.agreement_interval
    text = f"{rows}; the two agree on {found.agreement:.3f} ({low:.3f} to {high:.3f})"
    if found.ceiling is None or found.ceiling_interval is None:
        return f"{text}; no ceiling is given: {found.reason}"
    least, most = found.ceiling_interval
    text += f": a perfect model would read about {found.ceiling:.3f} ({least:.3f} to {most:.3f})"
    if found.highest is None:
        return f"{text}; there is no bound: {found.reason}"
    return f"{text}, and none more than {found.highest:.3f} with {found.confidence:.0%} confidence"
