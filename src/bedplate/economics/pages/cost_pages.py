"""The pages of `plan train`, `plan serve` and `plan decide`: plain data, and the scripts that make sliders and plots.

Each page has the inputs of the arithmetic, not a picture of its results: what moves in the browser is computed there by
the same functions, which numbers/javascript.py translates. What takes too long there goes in as a table of all that the
sliders can reach: which layout fits, and one replica's latency at every load that the search for its capacity can look
at. `plan_serving` looks at multiples of a part (1 / PARTS) of the saturating rate only, whatever the latency target is;
latencies between two of them are interpolated.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

from bedplate.core.config import key_path
from bedplate.core.errors import UsageError
from bedplate.core.progress import Progress, progress
from bedplate.economics.costs.decisions import explanation
from bedplate.economics.costs.decisions.decision import machine_steps, solve
from bedplate.economics.costs.decisions.decision_file import Case, Option
from bedplate.economics.costs.decisions.option_costs import OptionCosts
from bedplate.economics.costs.decisions.question import read_question
from bedplate.economics.hardware.devices import CURVES, EXECUTION, FP8_FACTOR, HIGH, LOW, Device
from bedplate.economics.model.named_model import resolve
from bedplate.economics.numbers import money
from bedplate.economics.numbers.formula import formula_values
from bedplate.economics.numbers.javascript import script
from bedplate.economics.numbers.prices import Prices
from bedplate.economics.serving.replica import Replica
from bedplate.economics.serving.serving_cost import (
    PARTS,
    SERVING_FORMULAS,
    LatencyTarget,
    capacity_within,
    fleet_for,
    load_curve,
    plan_serving,
    slack,
)
from bedplate.economics.serving.simulation import Traffic
from bedplate.economics.training import training_cost
from bedplate.economics.training.layout_search import MARGIN, describe
from bedplate.economics.training.scaling_laws import EPOCH
from bedplate.models.specs import TransformerSpec
from bedplate.report.pages import interactive_page

_FEWER, _LARGER = 64, 16
"""How far the devices' slider goes to both sides of what is stated."""


def _page(title: str, name: str, data: Mapping[str, Any], **exports: object) -> str:
    """name: of the page's own script. data: what it knows as DATA. exports: what it computes with, as MODEL."""
    folder = files("bedplate.economics.pages")
    model = script(MODEL=SimpleNamespace(**exports), usd=money.usd, number=money.number, figures=money.figures)
    return interactive_page(title, [folder / "python.js", model, folder / f"{name}.js"], data)


def training_page(
    model: str, tokens: float, device: Device, devices: int, *, command: Sequence[str] = (), **options: Any
) -> str:
    """The page as HTML. Arguments and errors as of `plan_training`. command: what answers the same in the terminal,
    without what the sliders say."""
    plan = training_cost.plan_training(model, tokens, device, devices, **options)
    low, high = 10 ** math.floor(math.log10(tokens) - 1.5), 10 ** math.ceil(math.log10(tokens) + 0.7)
    fewest, most = max(1, devices // _FEWER), max(devices * _LARGER, 64)
    powers = {n for power in range(most.bit_length()) for n in (2**power, 3 * 2**power // 2)}
    counts = sorted(n for n in {devices, *powers} if fewest <= n <= most)
    spec, pue = resolve(model)[1], options.get("pue", training_cost.DEFAULT_PUE)
    dense = isinstance(spec, TransformerSpec) and spec.kind == "decoder" and spec.experts is None
    facts = ("model", "parameters", "active_parameters", "sequence_tokens", "precision", "execution", "optimizer")
    facts += ("flops_per_token", "peak_flops_per_second", "overhead")
    shown = ("name", "title", "memory_bytes", "watts", "source", "as_of")
    # The share that is given, with room around it; or of the curve, the range that published runs lie in.
    mfu = {"given": options.get("mfu_share"), "low": LOW, "high": HIGH, "source": plan.mfu_source}
    data = {
        **{name: getattr(plan, name) for name in facts},
        **_layouts(model, device, plan, counts, (low, high), options),
        "tokens": {"stated": tokens, "low": low, "high": high},
        "device": {name: getattr(device, name) for name in shown},
        "margin": MARGIN,
        "devices": {"stated": devices, "counts": counts},
        "mfu": mfu,
        "price": None if plan.price is None else {**asdict(plan.price.usd_per_hour), "source": plan.price.source},
        "usd_per_kwh": options.get("usd_per_kwh", training_cost.DEFAULT_USD_PER_KWH),
        "pue": pue,
        "watts": device.watts * pue,
        "mfu_factor": EXECUTION[plan.execution] * (FP8_FACTOR if plan.precision == "fp8" else 1.0),
        "formulas": formula_values(training_cost.TRAINING_FORMULAS),
        "command": list(command),
    }
    return _page(
        f"Training {plan.model}",
        "training",
        data,
        curve=CURVES[device.mfu],
        run_figures=training_cost.run_figures,
        tokens_per_second=training_cost.tokens_per_second,
        batch_doublings=training_cost.batch_doublings,
        fit=EPOCH if dense else None,
    )


def _layouts(
    model: str,
    device: Device,
    plan: training_cost.TrainingPlan,
    counts: Sequence[int],
    tokens_range: tuple[float, float],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """All different layouts, and which one holds for a number of devices and for an exponent of the batch: the powers
    of two of sequences in a step, which the fit gives over the tokens' range."""

    tokens_by_batch = {"given": plan.tokens}
    if options.get("global_batch_tokens") is None:
        first, last = (
            training_cost.batch_doublings(plan.flops_per_token * end, plan.sequence_tokens) for end in tokens_range
        )
        batches = {str(n): 1.1 * 2**n * plan.sequence_tokens for n in range(first, last + 1)}
        # Tokens that lead to each batch: layouts depend on nothing else of them.
        inverse = 1 / training_cost.BATCH_EXPONENT
        tokens_by_batch = {
            n: (b / training_cost.BATCH_SCALE) ** inverse / plan.flops_per_token for n, b in batches.items()
        }
    cells: list[dict[str, Any]] = []
    table: dict[str, dict[str, int]] = {}
    for count in progress(counts, "layouts"):
        for batch, tokens in tokens_by_batch.items():
            try:
                candidate = training_cost.plan_training(model, tokens, device, count, **options)
            except UsageError as error:
                cell: dict[str, Any] = {"error": str(error)}
            else:
                figures = ("global_batch_tokens", "bubble_share", "communication_share", "mfu_factor")
                cell = {name: getattr(candidate, name) for name in figures}
                cell |= {"text": describe(candidate.layout), "bytes": asdict(candidate.bytes)}
            if cell not in cells:
                cells.append(cell)
            table.setdefault(str(count), {})[batch] = cells.index(cell)
    return {"layouts": cells, "layout_of": table}


_FIGURES = ("first_token_p50", "first_token_p95", "total_p50", "total_p95", "total_p99", "utilisation")
_MORE_FORMULAS = {
    "at_peak": ("calls_per_day / 86400 × peak_factor / replicas", f"interpolated between {PARTS} simulated loads"),
    "at_mean": ("calls_per_day / 86400 / replicas", f"interpolated between {PARTS} simulated loads"),
}


def serving_page(
    model: str,
    replicas: Mapping[str, Replica],
    traffic: Traffic,
    calls_per_day: float,
    *,
    peak_factor: float = 3.0,
    target: LatencyTarget | None = None,
    spare: int = 0,
    devices: int = 1,
    command: Sequence[str] = (),
) -> str:
    """The page as HTML. Arguments and errors as of `plan_cases`.

    devices: that the price of a replica is of. command: what answers the same in the terminal, without what the
    sliders say.
    """
    goal, central = target or LatencyTarget(), replicas["central"]
    if goal.share != LatencyTarget.share:
        raise UsageError(f"a page is about {LatencyTarget.share:.0%} of the calls, not {goal.share:.0%}")
    plan_serving(central, traffic, calls_per_day, peak_factor=peak_factor, target=goal, spare=spare)  # or its errors
    with Progress("loads", total=len(replicas) * PARTS) as bar:
        cases = {name: _case(replica, traffic, bar) for name, replica in replicas.items()}
    data = {
        "model": model,
        "traffic": {
            "prompt": str(traffic.prompt),
            "output": str(traffic.output),
            "skin_tokens": traffic.skin_tokens,
            "skins": traffic.skins,
            "tokens_per_call": traffic.tokens_per_call,
        },
        "calls_per_day": calls_per_day,
        "peak_factor": peak_factor,
        "spare": spare,
        "target": asdict(goal),
        "usd_per_hour": central.usd_per_hour,
        "price_source": central.price_source,
        "devices": devices,
        "basis": central.basis,
        "memory": dict(central.memory),
        "grid": PARTS,
        "cases": cases,
        "formulas": formula_values(SERVING_FORMULAS | _MORE_FORMULAS),
        "command": list(command),
    }
    return _page(f"Serving {model}", "serving", data, slack=slack, capacity_within=capacity_within, fleet_for=fleet_for)


def _case(replica: Replica, traffic: Traffic, bar: Progress) -> dict[str, Any]:
    """One replica: alone, saturated, and by figure a list of its values at 1, 2, … parts of the saturated rate."""
    plan, points = plan_serving(replica, traffic, 1.0), list[Any]()
    for part in range(1, PARTS + 1):
        points += load_curve(replica, traffic, plan, loads=(part / PARTS,))
        bar.advance(1)
    return {
        "alone": asdict(plan.alone),
        "saturated_calls_per_second": plan.saturated_calls_per_second,
        "saturated_tokens_per_second": plan.saturated_tokens_per_second,
        "loads": {name: [getattr(point, name) for point in points] for name in _FIGURES},
    }


_SLIDERS = 5  # how many sliders there are for numbers that the answer turns on, besides volume and horizon
_ALWAYS = ("traffic.calls_per_day", "traffic.horizon_days")
_TEXT = ("instructions", "examples", "input", "output")


def decision_page(
    case: Case, prices: Prices, today: datetime.date | None = None, *, command: Sequence[str] = ()
) -> str:
    """The page as HTML. ConfigError as of `decide`. command: what answers the same in the terminal."""
    question = read_question(case, prices, today)
    decision = solve(question)
    # Inputs that others were computed from are not moved; those others stand in no file, so that no override says them.
    bases, derived = ({name for pair in _derivations(case) for name in pair[i]} for i in (0, 1))
    turning = [sensitivity.input.name for sensitivity in decision.sensitivities]  # first what the answer turns on most
    sliders = [name for name in turning if name not in bases and name not in _ALWAYS]
    data = {
        "fixed": sorted(bases),
        "unsaid": sorted(derived),
        "options": {option.name: _traits(option, case.options[option.name]) for option in question.options},
        "sliders": [*_ALWAYS, *sliders[:_SLIDERS]],
        "formulas": formula_values(explanation.DECISION_FORMULAS),
        "command": list(command),
    }
    sentences = (explanation.answer, explanation.reasons, explanation.break_even, explanation.flips)
    return _page(
        case.case,
        "decision",
        data,
        question=question,
        **{function.__name__: function for function in (solve, machine_steps, *sentences)},
    )


def _derivations(case: Case) -> Iterator[tuple[list[str], list[str]]]:
    """Inputs that others were computed from when the files were read (speeds of a data sheet rest on the tokens of the
    text, hours on the tokens of a run), and those others."""
    for name, option in case.options.items():
        key, use, pretraining = key_path(["options", name]), option.machine, option.pretraining
        if use is not None and (use.measured is not None or use.planned is not None):
            texts = [f"{prefix}text.{field}" for prefix in ("", f"{key}.") for field in _TEXT]
            speeds = [f"{key}.machine.{phase}_tokens_per_second" for phase in ("prefill", "decode")]
            tokens = [*texts, f"{key}.tokens_per_unit", f"{key}.retrieval.passages"]
            yield tokens, speeds
            if option.p95_ms is None:
                yield [*tokens, f"{key}.machine.utilisation"], [f"{key}.p95_ms"]
        if pretraining is not None and pretraining.run is not None:
            yield [f"{key}.pretraining.run.tokens"], [f"{key}.pretraining.run.device_hours_per_token"]


def _traits(option: OptionCosts, stated: Option) -> dict[str, bool]:
    """Which formulas concern an option."""
    return {
        "hosted": stated.machine is None,
        "reserved": option.machines is not None,
        "refresh": any(line.part == "tuning again" for line in option.lines),
        "pretraining": stated.pretraining is not None,
    }
