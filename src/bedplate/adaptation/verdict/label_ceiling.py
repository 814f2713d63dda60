"""The agreement of rows that carry two labels, and the highest score that a model can reach against such labels."""

from __future__ import annotations

from bedplate.core.errors import DataError
from bedplate.core.statistics.agreement import agreement_ceiling
from bedplate.evaluation.examples import TaskData
from bedplate.evaluation.metrics import METRICS
from bedplate.evaluation.task import Task
from bedplate.report.schema_parts import SecondLabels


def second_labels(task: Task, data: TaskData, confidence: float) -> SecondLabels | None:
    """Summarises the rows with two labels, of all splits; None where the task names no second column. Only labels are
    compared, so test stays closed."""
    column = task.data.second_label
    if column is None:
        return None
    whole = sum(data.counts.get(name, 0) for name in ("train", "valid", "test"))
    summary = SecondLabels(column=column, n=0, of=whole, groups=0, reason="no row has a second label")
    if data.agreed:
        agreed, groups, weights = zip(*data.agreed, strict=True)
        ceiling = agreement_ceiling(agreed, groups, len(task.labels) or None, confidence, weights)
        update: dict[str, object] = {"n": ceiling.n, "groups": ceiling.groups, "agreement": ceiling.rate}
        update |= {"agreement_interval": ceiling.rate_interval, "reason": ceiling.reason}
        if isinstance(task.metric, str) and METRICS[task.metric].scoring == "binary":
            update |= {"ceiling": ceiling.value, "ceiling_interval": ceiling.interval}
            update |= {"highest": ceiling.highest, "confidence": ceiling.confidence}
        else:
            update["reason"] = f"{task.metric_name} is not a share of answers that equal the target"
        summary = summary.model_copy(update=update)
    return summary.model_copy(update={"said": _sentence(summary)})


def check_bar(summary: SecondLabels | None, target: float | None, location: str) -> None:
    """DataError for a bar above what any model can score against labels that agree no better. target: None where it is
    not a fixed value."""
    if summary is None or summary.highest is None or target is None:
        return
    if target > summary.highest:
        raise DataError(
            f"{location}: adapt.target.value: {target:g} is out of reach: on {summary.n:,} rows with a second label "
            f"({summary.column}) the two labels agree in a share of {summary.agreement:.3f}, so no model scores more "
            f"than {summary.highest:.3f} against one of them, with {summary.confidence:.0%} confidence; lower the bar, "
            "or have a third person decide the rows on which labels differ"
        )


def _sentence(summary: SecondLabels) -> str:
    rows = f"{summary.n:,} of {summary.of:,} rows have a second label ({summary.column})"
    if summary.agreement is None or summary.agreement_interval is None:
        return f"{rows}: label noise is unknown"
    low, high = summary.agreement_interval
    text = f"{rows}; the two agree on {summary.agreement:.3f} ({low:.3f} to {high:.3f})"
    if summary.ceiling is None or summary.ceiling_interval is None:
        return f"{text}; no ceiling can be given: {summary.reason}"
    lower, upper = summary.ceiling_interval
    text += f": a perfect model would score about {summary.ceiling:.3f} ({lower:.3f} to {upper:.3f})"
    if summary.highest is None:
        return f"{text}; no bound can be given: {summary.reason}"
    return f"{text}, and no model more than {summary.highest:.3f} with {summary.confidence:.0%} confidence"
