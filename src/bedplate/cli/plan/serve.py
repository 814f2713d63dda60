"""`bedplate plan serve`: traffic and a machine → latency, throughput, replicas, dollars a call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bedplate.cli import options
from bedplate.core.errors import UsageError
from bedplate.core.progress import console
from bedplate.core.quantities import DAYS_PER_MONTH
from bedplate.core.tables import numbers, show

if TYPE_CHECKING:
    from bedplate.economics.serving.serving_cost import ServingPlan

_SLIDERS = ["calls_per_day", "calls_per_month", "peak_factor", "spare", "p95_ms", "first_token_ms", "usd_per_hour"]
_MOVED = [*_SLIDERS, "page", "as_json"]
"""What a page's own sliders say, or is none of its matter."""
_LABELS = {"capacity": "calls/s of a replica, at most", "tokens_per_second": "tokens/s of a full replica"}
"""Figures that need more words than their name."""
_Formats = Literal["float32", "bfloat16", "float16", "fp8", "int8", "int4"]


def serve(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A measured base, a preset, a size (7b), or the path of a config.json or a base.")
    ],
    calls_per_day: Annotated[float | None, options.count(help="Calls of an average day. Default: 50k.")] = None,
    calls_per_month: Annotated[
        float | None, options.count(help="In its place: calls of a month, such as 1.5M.")
    ] = None,
    prompt_tokens: Annotated[
        str, typer.Option(help="300 or 1.5k (each call), 100-500 (evenly), 250~900 (median~95th percentile), or @FILE.")
    ] = "300",
    output_tokens: Annotated[str, typer.Option(help="Tokens of an answer, written like --prompt-tokens.")] = "100",
    skin_tokens: Annotated[
        int, options.whole(help="Tokens of the skin's cached prompt before each call's.", minimum=0, shown=True)
    ] = 0,
    skins: Annotated[int, options.whole(help="Different skins, asked evenly.", shown=True)] = 1,
    adapter_rank: Annotated[int, typer.Option(help="Rank of each skin's LoRA weights; 0: none.")] = 0,
    p95_ms: Annotated[
        float | None, options.milliseconds(help="Target: 95% of calls end within it, such as 500 or 0.5s.")
    ] = None,
    first_token_ms: Annotated[
        float | None, options.milliseconds(help="Target: 95% of calls have a first token by then.")
    ] = None,
    peak_factor: Annotated[float, typer.Option(help="The busiest hour's rate over the mean.")] = 3.0,
    spare: Annotated[int, typer.Option(help="Spare replicas beyond the need.")] = 0,
    device: Annotated[
        str | None, options.unset("A device of the table, or of --hardware. Default: this machine.")
    ] = None,
    devices: Annotated[int, typer.Option(help="Devices of one replica, which share each product.")] = 1,
    weights: Annotated[
        _Formats | None, options.unset("Format of the weights. Default: that measured last; bfloat16.")
    ] = None,
    max_rows: Annotated[
        int | None, options.whole(help="Generations at once. Default: 16; 128 on a GPU; fewer where those do not fit.")
    ] = None,
    max_step_tokens: Annotated[int | None, options.whole(help="Tokens of a step. Default: 512; 4096 on a GPU.")] = None,
    drafted: Annotated[int, typer.Option(help="Speculation: tokens drafted per step.")] = 0,
    accepted: Annotated[float, typer.Option(help="Speculation: share of drafted tokens that is accepted.")] = 0.0,
    usd_per_hour: Annotated[
        float | None, options.unset("Price of one machine or device. Default: the device's dated example.")
    ] = None,
    like: Annotated[str | None, options.unset("This machine: the measured base to extrapolate from.")] = None,
    machine: Annotated[
        Path | None, typer.Option(help="Measurements (`bedplate plan calibrate`). Default: this machine's.")
    ] = None,
    hardware: options.Hardware = None,
    page: options.PageFile = None,
    formulas: options.Formulas = False,
    all_columns: options.AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What serving takes: latency, throughput, replicas and dollars a call, from a simulation of the engine's scheduler
    under calls that come at random.

    On this machine steps cost what `bedplate plan calibrate` measured; on a device of the table, what its data sheet
    says, over the range of what engines reach of it.
    """
    from bedplate.economics.numbers.formula import positive
    from bedplate.economics.serving.replica import LOCAL_ENGINE, ON_DEVICES, replicas_of
    from bedplate.economics.serving.serving_cost import LatencyTarget, plan_cases
    from bedplate.economics.serving.simulation import Traffic, parse_lengths

    if calls_per_day is not None and calls_per_month is not None:
        raise UsageError("--calls-per-day and --calls-per-month are both given: give one of them")
    calls = 50_000.0 if calls_per_day is None else calls_per_day
    if calls_per_month is not None:
        positive(calls_per_month=calls_per_month)
        calls = calls_per_month / DAYS_PER_MONTH
    row = None
    if device is not None:
        from bedplate.economics.hardware.devices import find_device_in

        row = find_device_in(hardware, device)
    elif hardware is not None:
        raise UsageError("--hardware is for a device of the table; name it with --device")
    lengths = parse_lengths(prompt_tokens, "--prompt-tokens"), parse_lengths(output_tokens, "--output-tokens")
    traffic = Traffic(*lengths, skin_tokens, skins)
    usual = LOCAL_ENGINE if row is None else ON_DEVICES
    engine = replace(
        usual.with_rows(max_rows),
        max_step_tokens=max_step_tokens or usual.max_step_tokens,
        adapter_rank=adapter_rank,
        drafted=drafted,
        accepted=accepted,
    )
    replicas = replicas_of(
        model,
        traffic,
        row,
        devices,
        weights=weights,
        engine=engine,
        usd_per_hour=usd_per_hour,
        like=like,
        machine=machine,
    )
    p95, first_token = (None if limit is None else limit / 1000 for limit in (p95_ms, first_token_ms))
    target = LatencyTarget(p95, first_token)
    demand: dict[str, Any] = {"peak_factor": peak_factor, "target": target, "spare": spare}
    plans = plan_cases(replicas, traffic, calls, **demand)
    if page is not None:
        from bedplate.economics.pages.cost_pages import serving_page

        command = options.as_given(context, without=_MOVED)
        html = serving_page(model, replicas, traffic, calls, **demand, devices=devices, command=command)
        options.write_page(page, html)
    if as_json:
        traffic_fields = {"prompt": prompt_tokens, "output": output_tokens, "skin_tokens": skin_tokens, "skins": skins}
        report = {"model": model, "traffic": traffic_fields} | plans["central"].as_json()
        ranges = {case: plan.as_json() for case, plan in plans.items() if case != "central"}
        print(json.dumps(report | ({"range": ranges} if ranges else {}), ensure_ascii=False))
        return
    _show(model, plans, formulas)


# --- for people


def _show(model: str, plans: dict[str, ServingPlan], formulas: bool) -> None:
    from rich.markup import escape

    from bedplate.economics.serving.serving_cost import SERVING_FORMULAS

    out, plan = console(), plans["central"]
    out.print(f"[bold]{escape(model)}[/], {plan.calls_per_day:,.0f} calls a day")
    figures = dict(_figures(plan))
    cases = ("low", "high") if len(plans) > 1 else ()  # one that is missing does not meet the target
    ends = [dict(_figures(plans[case])) if case in plans else dict.fromkeys(figures, "never") for case in cases]
    rows: list[tuple[str, ...]] = [
        # a slow replica does less, and costs more
        (
            _LABELS.get(name, name.replace("_", " ")),
            value,
            " to ".join(dict.fromkeys(end[name] for end in (ends if name in _LABELS else reversed(ends)))),
        )
        for name, value in figures.items()
    ]
    show(("figure", *numbers("value", "range")), rows)
    points = {"a call alone": plan.alone, "on average": plan.at_mean, "in the busiest hour": plan.at_peak}
    rows = [
        (
            name,
            f"{point.calls_per_second:.3g}" if point.calls_per_second else "–",
            f"{point.first_token_p50:.3g} / {point.first_token_p95:.3g}",
            f"{point.total_p50:.3g} / {point.total_p95:.3g} / {point.total_p99:.3g}",
            f"{point.utilisation:.0%}",
        )
        for name, point in points.items()
    ]
    names = ("calls/s", "first token s, p50 / p95", "answer s, p50 / p95 / p99", "busy")
    show(("one replica", *numbers(*names)), rows)
    options.show_lines(_notes(plan))
    if formulas:
        options.show_formulas({name: SERVING_FORMULAS[name] for name in figures if name in SERVING_FORMULAS})


def _figures(plan: ServingPlan) -> Iterator[tuple[str, str]]:
    from bedplate.economics.numbers.money import usd

    yield "replicas", f"{plan.replicas:,}"
    yield "capacity", f"{plan.capacity_calls_per_second:.3g}"
    yield "tokens_per_second", f"{plan.saturated_tokens_per_second:,.0f}"
    if plan.usd_per_call is not None and plan.usd_per_million_tokens is not None:
        yield "usd_per_call", usd(plan.usd_per_call)
        yield "usd_per_million_tokens", usd(plan.usd_per_million_tokens)
        yield "usd_per_day", f"${plan.usd_per_day:,.2f}"
        yield "floor_usd_per_call", usd(plan.floor_usd_per_call or 0.0)


def _notes(plan: ServingPlan) -> Iterator[str]:
    from bedplate.economics.numbers.money import usd_an_hour

    yield f"speeds: {plan.basis}"
    if plan.usd_per_hour is not None:
        yield f"price: {usd_an_hour(plan.usd_per_hour)} an hour and replica ({plan.price_source})"
    else:
        yield f"price: {plan.price_source}; give --usd-per-hour for dollars"
    sizes = [f"{name.replace('_', ' ')} {size / 1e9:.3g}" for name, size in plan.memory.items() if size]
    if sizes:
        yield f"GB held: {', '.join(sizes)}"
