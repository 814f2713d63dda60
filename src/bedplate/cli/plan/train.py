"""`bedplate plan train`: a model, tokens and a cluster → a layout that fits, time, energy and dollars."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bedplate.cli import options
from bedplate.core.errors import UsageError
from bedplate.core.progress import console
from bedplate.core.quantities import adding_up, parse_count
from bedplate.core.tables import Column, numbers, show

if TYPE_CHECKING:
    from bedplate.economics.numbers.formula import Range
    from bedplate.economics.training.scaling_laws import Optimum
    from bedplate.economics.training.training_cost import BudgetPlan, TrainingPlan

_PRICED = ("usd_per_hour", "usd_per_kwh", "budget_usd", "inference_tokens")
_MOVED = ("tokens", "devices", "mfu", "overhead", *_PRICED, "page", "as_json")
"""What a page's own sliders say, or is none of its matter."""


def train(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="A preset, a size (7b), or the path of a config.json or a base.", show_default=False),
    ] = None,
    tokens: Annotated[str | None, options.unset("Tokens to train on: 15.6T, 300B or 1e12.")] = None,
    device: Annotated[str, typer.Option(help="A device of the table, or of --hardware.")] = "h100",
    devices: Annotated[int, options.whole(help="Number of devices.", shown=True)] = 8,
    sequence_length: Annotated[
        int | None, options.whole(help="Tokens of a sequence. Default: 8192, or the model's context.")
    ] = None,
    global_batch_tokens: Annotated[
        str | None, options.unset("Tokens of an optimizer step. Default: DeepSeek LLM's fit.")
    ] = None,
    precision: Annotated[Literal["bf16", "fp16", "fp8", "tf32", "fp32"], typer.Option(help="Number format.")] = "bf16",
    execution: Annotated[
        Literal["tuned", "compile", "eager"], typer.Option(help="Efficiency of the training code.")
    ] = "tuned",
    optimizer: Annotated[
        Literal["adamw", "adamw_8bit", "muon", "sgd"], typer.Option(help="Optimizer, for its states' memory.")
    ] = "adamw",
    usd_per_hour: Annotated[float | None, options.unset("Price of one device. Default: a dated example.")] = None,
    usd_per_kwh: Annotated[float, typer.Option(help="Price of energy for owned devices; rent includes it.")] = 0.10,
    pue: Annotated[float, typer.Option(help="Power usage effectiveness of the data centre.")] = 1.2,
    overhead: Annotated[float, typer.Option(help="Factor for restarts and evaluation on top of training steps.")] = 1.1,
    mfu: Annotated[float | None, options.unset("A measured share of the dense peak, instead of the curve.")] = None,
    budget_usd: Annotated[
        str | None, options.unset("A sum instead of --tokens: what it trains, and which size.")
    ] = None,
    inference_tokens: Annotated[
        str | None, options.unset("With --budget-usd: tokens of the model's use, in all.")
    ] = None,
    hardware: options.Hardware = None,
    page: options.PageFile = None,
    formulas: options.Formulas = False,
    all_columns: options.AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What training a model takes: layout, memory, hours, energy and dollars; --formulas says how each is computed.

    With --budget-usd: what a sum trains, the size and tokens of least loss, and those of least cost over its use.

    \b
      bedplate plan train llama-3.1-8b --tokens 1T --device h100 --devices 512
      bedplate plan train --budget-usd 100k --device h100 --devices 64
    """
    from bedplate.economics.hardware.devices import find_device_in

    row = find_device_in(hardware, device)
    common: dict[str, Any] = {
        "precision": precision,
        "execution": execution,
        "mfu_share": mfu,
        "overhead": overhead,
        "usd_per_hour": usd_per_hour,
    }
    from bedplate.economics.training.training_cost import plan_budget, plan_training, tokens_for_flops

    if tokens is not None and budget_usd is not None:
        raise UsageError("--tokens and --budget-usd are two ways to say how much is trained; give one")
    if budget_usd is None and inference_tokens is not None:
        raise UsageError("--inference-tokens is for --budget-usd: it weighs a model's use against its training")
    if model is None and budget_usd is None:
        raise UsageError("say what is trained: bedplate plan train MODEL --tokens N, or --budget-usd USD")
    budget: BudgetPlan | None = None
    count = None if tokens is None else parse_count("--tokens", tokens)
    if budget_usd is not None:
        use = None if inference_tokens is None else parse_count("--inference-tokens", inference_tokens)
        budget = plan_budget(parse_count("--budget-usd", budget_usd), row, devices, inference_tokens=use, **common)
        if model is None:
            if page is not None:
                raise UsageError("--page shows the training of a model; name it: bedplate plan train MODEL")
            _print(budget.as_json()) if as_json else _show_budget(budget, formulas)
            return
        count = tokens_for_flops(model, budget.flops.central, sequence_length)
    if model is None or count is None:
        raise UsageError("say how much is trained: --tokens N (such as 15.6T or 300B), or --budget-usd USD")
    batch = None if global_batch_tokens is None else parse_count("--global-batch-tokens", global_batch_tokens)
    common |= {
        "sequence_tokens": sequence_length,
        "global_batch_tokens": batch,
        "optimizer": optimizer,
        "usd_per_kwh": usd_per_kwh,
        "pue": pue,
    }
    plan = plan_training(model, count, row, devices, **common)
    if page is not None:
        from bedplate.economics.pages.cost_pages import training_page

        command = options.as_given(context, without=_MOVED)
        options.write_page(page, training_page(model, count, row, devices, command=command, **common))
    if as_json:
        _print(plan.as_json() | ({} if budget is None else {"budget": budget.as_json()}))
        return
    _show_plan(plan, formulas)
    if budget is not None:
        _show_budget(budget, formulas)


def _print(report: Mapping[str, Any]) -> None:
    print(json.dumps(report, ensure_ascii=False))


# --- for people


def _show_plan(plan: TrainingPlan, formulas: bool) -> None:
    from rich.markup import escape

    from bedplate.economics.training.layout_search import describe
    from bedplate.economics.training.training_cost import TRAINING_FORMULAS

    out = console()
    out.print(
        f"[bold]{escape(plan.model)}[/] on {_number(plan.tokens)} tokens, {plan.devices:,} × {plan.device.title}, "
        f"{plan.precision}, {plan.execution}, overhead {plan.overhead:g}"
    )
    figures = list(_figures(plan))
    show(("figure", *numbers("value", "range")), figures)
    out.print(f"layout: {describe(plan.layout)}")
    out.print(
        f"of an estimated step, bubble {plan.bubble_share:.0%}, communication that is waited for "
        f"{plan.communication_share:.0%}"
    )
    parts = asdict(plan.bytes)
    sizes = adding_up([size / 1e9 for size in parts.values()], 2)
    rows = [(name, f"{size:,.2f}") for name, size in zip(parts, sizes, strict=True)]
    rows += [("total", f"{sum(sizes):,.2f}"), ("of", f"{plan.device.memory_bytes / 1e9:,.2f}")]
    show(("a device holds", *numbers("GB")), rows)
    options.show_lines(_notes(plan))
    if formulas:
        shown = {"days"} | {name for name, *_ in figures}  # days may be in a smaller unit
        options.show_formulas({name: formula for name, formula in TRAINING_FORMULAS.items() if name in shown})


def _figures(plan: TrainingPlan) -> Iterable[tuple[str, str, str]]:
    """(name, value, range) of each line."""
    yield "parameters", _number(plan.parameters), ""
    if plan.active_parameters != plan.parameters:
        yield "active", _number(plan.active_parameters), ""
    yield "flops", f"{plan.flops:.3e}", ""
    yield "global_batch_tokens", _number(plan.global_batch_tokens), ""
    yield "mfu", f"{plan.mfu.central:.1%}", _interval(plan.mfu, ".1%")
    yield "gpu_hours", _number(plan.gpu_hours.central), _interval(plan.gpu_hours)
    units = {"days": 1, "hours": 24, "minutes": 24 * 60, "seconds": 24 * 3600}
    unit = next((unit for unit, count in units.items() if plan.days.central * count >= 1), "seconds")
    time = plan.days.scaled(units[unit])
    yield unit, _number(time.central), _interval(time)
    if plan.usd is not None:
        yield "usd", _number(plan.usd.central), _interval(plan.usd)
    yield "kwh", _number(plan.kwh.central), _interval(plan.kwh)
    yield "energy_usd", _number(plan.energy_usd.central), _interval(plan.energy_usd)
    yield "bytes_per_device", f"{plan.bytes_per_device / 1e9:,.1f} GB", ""


def _notes(plan: TrainingPlan) -> Iterable[str]:
    from bedplate.economics.numbers.money import usd_an_hour

    if plan.price is None:
        yield f"no price of {plan.device.name} is known; give --usd-per-hour"
    else:
        yield f"price: {usd_an_hour(plan.price.usd_per_hour.central)} an hour ({plan.price.source})"
    yield f"device: {plan.device.source}, {plan.device.as_of}"
    yield f"MFU: {plan.mfu_source}"
    yield from plan.suggestions


def _show_budget(plan: BudgetPlan, formulas: bool) -> None:
    from bedplate.economics.numbers.money import usd_an_hour
    from bedplate.economics.training.training_cost import BUDGET_FORMULAS

    out = console()
    out.print(
        f"[bold]${plan.usd:,.0f}[/] on {plan.devices:,} × {plan.device.title}: {plan.flops.central:.3e} operations "
        f"({plan.flops.low:.2e} to {plan.flops.high:.2e})"
    )
    rows = [("loss of this training", *_optimum(plan.optimal))]
    for demand, optimum in plan.in_use.items():
        rows.append((f"cost at that loss, {_number(demand)} tokens of use", *_optimum(optimum)))
    columns = numbers("parameters", "tokens", "loss, nats a token", "operations, training + use")
    show((Column("least", prose=True), *columns), rows)
    if formulas:
        options.show_formulas(BUDGET_FORMULAS)
    options.show_lines([f"price: {usd_an_hour(plan.price.usd_per_hour.central)} an hour ({plan.price.source})"])
    options.show_lines(dict.fromkeys(plan.optimal.warnings))


def _optimum(optimum: Optimum) -> tuple[str, str, str, str]:
    use = f" + {optimum.inference_flops:.2e}" if optimum.inference_flops else ""
    size = _number(optimum.parameters), _number(optimum.tokens), f"{optimum.loss:.3f}"
    return *size, f"{optimum.training_flops:.2e}{use}"


def _interval(bounds: Range, form: str = "") -> str:
    if bounds.low == bounds.high:
        return ""
    return " to ".join(format(v, form) if form else _number(v) for v in (bounds.low, bounds.high))


def _number(value: float) -> str:
    """Three digits, with the suffix of their size."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {suffix}" if value < 1000 * size else f"{value:.3g}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
