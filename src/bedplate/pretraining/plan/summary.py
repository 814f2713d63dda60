"""A dry run for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.core.progress import console
from bedplate.core.quantities import adding_up
from bedplate.core.tables import Column, numbers, show
from bedplate.pretraining.runfile.counts import shown


def show_plan(plan: Mapping[str, Any]) -> None:
    """Prints what `plan_run` found."""
    from rich.markup import escape

    out = console()
    out.print(f"[bold]{escape(plan['run'])}[/] on {escape(plan['on'])}")
    show(("", Column("", prose=True)), _lines(plan))
    parts = dict(zip(plan["bytes"], adding_up([count / 1e9 for count in plan["bytes"].values()], 3), strict=True))
    rows = [(name, f"{size:,.3f}") for name, size in parts.items()] + [("total", f"{sum(parts.values()):,.3f}")]
    if plan["memory_bytes"] is not None:
        rows.append(("of", f"{plan['memory_bytes'] / 1e9:,.3f}"))
    show(("a device holds", *numbers("GB")), rows)
    for note in plan["notes"]:
        out.print(f"- {note}", markup=False)


def _lines(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    shape = (
        f"{plan['layers']} layers, width {plan['width']:,}, {plan['heads']} heads ({plan['kv_heads']} of keys and "
        f"values), feed-forward {plan['feedforward']:,}, vocabulary {plan['vocabulary']:,}, context {plan['context']:,}"
    )
    rows = [
        ("parameters", f"{shown(plan['parameters'])} ({plan['parameters']:,}), as {plan['family']}"),
        ("shape", shape),
        ("tokens", f"{shown(plan['tokens'])} in {plan['steps']:,} steps of {plan['batch_tokens']:,}"),
        ("learning rate", f"{plan['learning_rate']:g}"),
        ("layout", plan["layout"]),
        ("operations", f"{plan['flops']:.3e}, MFU {plan['mfu']:.1%}"),
        ("speed", f"{plan['tokens_per_second']:,.0f} tokens a second"),
        ("time", f"{_time(plan['seconds'])} ({' to '.join(map(_time, plan['seconds_range']))})"),
    ]
    if plan["usd"] is not None:
        low, high = plan["usd_range"]
        rows.append(("cost", f"${plan['usd']:,.2f} (${low:,.2f} to ${high:,.2f})"))
    return rows


def _time(seconds: float) -> str:
    for name, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.0f} seconds"
