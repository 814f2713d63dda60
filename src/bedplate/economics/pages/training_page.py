"""The page of a training plan: its inputs, and the layouts of every number of devices that its slider can reach."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any, TypedDict, Unpack

from bedplate.core.errors import UsageError
from bedplate.core.progress import progress
from bedplate.economics.hardware.device import Device
from bedplate.economics.hardware.mfu import CURVES, EXECUTION, FP8_FACTOR, HIGH, LOW, Execution, Precision
from bedplate.economics.model.named_model import resolve
from bedplate.economics.model.optimizer_states import Optimizer
from bedplate.economics.numbers.formula import Formula, inputs, javascript
from bedplate.economics.training.layout_search import MARGIN, describe
from bedplate.economics.training.scaling_laws import DEFAULT_FIT, find_fit
from bedplate.economics.training.training_cost import (
    BATCH_EXPONENT,
    BATCH_SCALE,
    DEFAULT_PUE,
    DEFAULT_USD_PER_KWH,
    FORMULAS,
    RUN_INPUTS,
    TrainingPlan,
    batch_tokens,
    plan_training,
    run_formulas,
)
from bedplate.models.specs import TransformerSpec
from bedplate.report.pages import interactive_page

_FEWER, _LARGER = 64, 16
"""How far the devices' slider goes to both sides of what is stated."""


class Options(TypedDict, total=False):
    """What `plan_training` takes besides model, tokens and devices."""

    sequence_tokens: int | None
    global_batch_tokens: float | None
    precision: Precision
    execution: Execution
    optimizer: Optimizer
    mfu_share: float | None
    overhead: float
    usd_per_hour: float | None
    usd_per_kwh: float
    pue: float


def training_page(
    model: str, tokens: float, device: Device, devices: int, *, command: Sequence[str] = (), **options: Unpack[Options]
) -> str:
    """The page as HTML. Arguments and errors as of `plan_training`. command: what answers the same in the terminal,
    without what the sliders say."""
    plan = plan_training(model, tokens, device, devices, **options)
    low, high = 10 ** math.floor(math.log10(tokens) - 1.5), 10 ** math.ceil(math.log10(tokens) + 0.7)
    counts = _device_counts(devices)
    exponents = _batches(plan, low, high) if options.get("global_batch_tokens") is None else [None]
    cells, table = _layouts(model, device, plan, counts, exponents, options)
    spec = resolve(model)[1]
    dense = isinstance(spec, TransformerSpec) and spec.kind == "decoder" and spec.experts is None
    data = {
        "model": plan.model,
        "parameters": plan.parameters,
        "active_parameters": plan.active_parameters,
        "tokens": {"stated": tokens, "low": low, "high": high},
        "sequence_tokens": plan.sequence_tokens,
        "precision": plan.precision,
        "execution": plan.execution,
        "optimizer": plan.optimizer,
        "device": {
            name: getattr(device, name) for name in ("name", "title", "memory_bytes", "watts", "source", "as_of")
        },
        "margin": MARGIN,
        "devices": {"stated": devices, "counts": counts},
        "flops_per_token": plan.flops_per_token,
        "peak_flops_per_second": plan.peak_flops_per_second,
        "inputs": RUN_INPUTS,
        "mfu": _mfu(plan, options.get("mfu_share")),
        "overhead": plan.overhead,
        "price": None if plan.price is None else {**asdict(plan.price.usd_per_hour), "source": plan.price.source},
        "usd_per_kwh": options.get("usd_per_kwh", DEFAULT_USD_PER_KWH),
        "pue": options.get("pue", DEFAULT_PUE),
        "layouts": cells,
        "layout_of": table,
        "fit": asdict(find_fit(DEFAULT_FIT)) if dense else None,
        "formulas": {name: {"formula": text, "source": source} for name, (text, source) in FORMULAS.items()},
        "command": list(command),
    }
    watts = device.watts * options.get("pue", DEFAULT_PUE)
    script = _formulas(run_formulas(plan.flops_per_token, plan.peak_flops_per_second, watts), plan)
    return interactive_page(f"Training {plan.model}", [script, files("bedplate.economics.pages") / "training.js"], data)


def _formulas(run: Mapping[str, Formula], plan: TrainingPlan) -> str:
    """`COSTS`: a run's figures over its inputs, the MFU over devices, a step's tokens over operations, and the law."""
    (flops,) = inputs(1)
    fit = find_fit(DEFAULT_FIT)
    formulas = {
        **run,
        "mfu": CURVES[plan.device.mfu].formula * _factor(plan),
        "batch_tokens": batch_tokens(flops),
        "loss": fit.loss(*inputs(2)),
        "best_parameters": fit.best_parameters(flops),
    }
    return javascript("COSTS", formulas)


def _factor(plan: TrainingPlan) -> float:
    return EXECUTION[plan.execution] * (FP8_FACTOR if plan.precision == "fp8" else 1.0)


def _device_counts(devices: int) -> list[int]:
    """Powers of two and their one and a half, around the stated number."""
    low, high = max(1, devices // _FEWER), max(devices * _LARGER, 64)
    counts = {devices} | {n for power in range(high.bit_length()) for n in (2**power, 3 * 2**power // 2)}
    return sorted(n for n in counts if low <= n <= high)


def _mfu(plan: TrainingPlan, mfu_share: float | None) -> dict[str, Any]:
    """The share that is given, with room around it; or of the curve, the range that published runs lie in."""
    return {"given": mfu_share, "low": LOW, "high": HIGH, "source": plan.mfu_source}


def _batches(plan: TrainingPlan, low: float, high: float) -> list[int | None]:
    """Exponents of the powers of two of sequences in a step, which the fit gives over the tokens' range."""

    def exponent(tokens: float) -> int:
        sequences = batch_tokens(plan.flops_per_token * tokens) / plan.sequence_tokens
        return max(1, round(sequences)).bit_length() - 1

    return list(range(exponent(low), exponent(high) + 1))


def _layouts(
    model: str,
    device: Device,
    plan: TrainingPlan,
    counts: Sequence[int],
    exponents: Sequence[int | None],
    options: Options,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, int]]]:
    """All different layouts, and which one holds for a number of devices and an exponent of the batch."""
    cells: list[dict[str, Any]] = []
    table: dict[str, dict[str, int]] = {}
    for count in progress(counts, "layouts"):
        for exponent, tokens in _representatives(plan, exponents):
            try:
                cell = _cell(plan_training(model, tokens, device, count, **options))
            except UsageError as error:
                cell = {"error": str(error)}
            if cell not in cells:
                cells.append(cell)
            table.setdefault(str(count), {})["given" if exponent is None else str(exponent)] = cells.index(cell)
    return cells, table


def _representatives(plan: TrainingPlan, exponents: Sequence[int | None]) -> Iterator[tuple[int | None, float]]:
    """Tokens that lead to each batch: layouts depend on nothing else of them."""
    for exponent in exponents:
        if exponent is None:
            yield None, plan.tokens
        else:
            batch = 1.1 * 2**exponent * plan.sequence_tokens
            yield exponent, (batch / BATCH_SCALE) ** (1 / BATCH_EXPONENT) / plan.flops_per_token


def _cell(plan: TrainingPlan) -> dict[str, Any]:
    return {
        "text": describe(plan.layout),
        "bytes": asdict(plan.bytes),
        "global_batch_tokens": plan.global_batch_tokens,
        "bubble_share": plan.bubble_share,
        "communication_share": plan.communication_share,
    }
