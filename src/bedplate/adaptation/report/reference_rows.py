"""What stands in a report beside the candidates: the target, and the system that runs today."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bedplate.adaptation.task.target_spec import CURRENT, TargetSpec
from bedplate.adaptation.verdict.acceptance import Hurdles
from bedplate.evaluation.task import Task
from bedplate.report import schema
from bedplate.report.schema_parts import Split


def target_of(task: Task, target: TargetSpec, bar: float) -> schema.Target:
    """The report's target; what the task does not ask for is left out. bar: a score."""
    optional_fields: dict[str, Any] = {
        "against": target.against,
        "margin": target.margin,
        "better_by": target.better_by,
        "worst_usd": task.scale.worst_usd,
    }
    extra_fields = {name: value for name, value in optional_fields.items() if value is not None}
    if target.value is None:
        extra_fields["value_given"] = False
    if task.scale.lower_is_better:
        extra_fields["lower_is_better"] = True
    return schema.Target(
        metric=task.metric_name, value=task.scale.value(bar), confidence=target.confidence, **extra_fields
    )


def current_rows(task: Task, hurdles: Hurdles) -> Iterator[schema.Row]:
    """The system that runs today, on valid and, once it was opened, on test."""
    spec = task.data.current
    if spec is None:
        return
    splits: tuple[Split, ...] = ("valid", "test")
    for split in splits:
        if split not in hurdles.current:
            continue
        priced = hurdles.priced_current(split)
        missing = priced.evaluation.unparsed
        unusable = f"; {missing} rows without a usable answer count as wrong" if missing else ""
        if task.scale.lower_is_better and spec.usd_per_1k_calls is None:
            unusable += "; what a call of it costs is not known, and not in its expected cost"
        yield schema.Row(
            rung=CURRENT,
            base=None,
            status="done",
            reason=f"the system that runs today, never nominated: its answers in the column {spec.column!r}{unusable}",
            split=split,
            estimate=priced.estimate,
            interval=priced.interval,
            n=priced.n,
            groups=priced.groups,
            coverage=priced.evaluation.coverage,
            answered=priced.evaluation.answered,
            seeds=(),
            usd_per_1k_calls=spec.usd_per_1k_calls,
            p50_ms=spec.p50_ms,
            p95_ms=spec.p95_ms,
            train_seconds=None,
            skin=None,
        )
