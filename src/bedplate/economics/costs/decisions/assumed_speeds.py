"""Speeds and times that are not stated: of a measured machine, of a device's data sheet, of a planned training run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bedplate.core.errors import BedplateError, ConfigError
from bedplate.economics.costs.decisions.calls import Tokens
from bedplate.economics.costs.decisions.case import DataSheetDecoder, MeasuredEngine, TrainingRun
from bedplate.economics.numbers.prices import Prices
from bedplate.economics.numbers.quantities import Amount

if TYPE_CHECKING:
    from bedplate.economics.serving.simulation import StepModel
    from bedplate.models.specs import Spec

_MEMORY_LEFT = 0.1

Speeds = tuple[Amount, Amount, str]
"""Prompt tokens per second, output tokens per second of all sequences together, and where they are from."""


def measured_speeds(measured: MeasuredEngine, prices: Prices, machine: str, tokens: Tokens, needed_by: str) -> Speeds:
    """Of an engine in the machine's machine.json. ConfigError where it was not measured."""
    from bedplate.economics.hardware.machine import read_machine
    from bedplate.economics.serving.steps import MeasuredSteps

    named = prices.machine(machine, needed_by).measured
    path = None if named is None else Path(named) if prices.path is None else prices.path.parent / named
    try:
        speed = read_machine(path).engine(measured.base, measured.weights)
    except BedplateError as error:
        raise ConfigError(f"{needed_by}.machine.measured: {error}") from error
    prefill, decode = _speeds(MeasuredSteps(speed), tokens, measured.batch)
    return Amount.exactly(prefill), Amount.exactly(decode), f"measured {speed.measured_at}: {speed.base}"


def planned_speeds(planned: DataSheetDecoder, prices: Prices, machine: str, tokens: Tokens, needed_by: str) -> Speeds:
    """Of a decoder on the machine's devices by the roofline, over what engines reach. ConfigError: it does not fit."""
    from bedplate.economics.hardware.table import find_device
    from bedplate.economics.model.named_model import resolve
    from bedplate.economics.serving.replica import decoder_of
    from bedplate.economics.serving.steps import REACHED, RooflineSteps

    machine_price, place = prices.machine(machine, needed_by), f"{needed_by}.machine.planned"
    if machine_price.device is None:
        raise ConfigError(f"{place}: the price file does not say which `device` {machine!r} has")
    try:
        name, architecture = resolve(planned.model)
        spec, device = decoder_of(architecture, name), find_device(machine_price.device)
        _check_fits(spec, planned, tokens, device.memory_bytes * machine_price.devices)
        steps = {
            case: RooflineSteps(spec, device, machine_price.devices, planned.weights, reached=reached)
            for case, reached in REACHED.items()
        }
        speeds = {case: _speeds(step_model, tokens, planned.batch) for case, step_model in steps.items()}
    except BedplateError as error:
        raise ConfigError(f"{place}: {error}") from error
    prefill, decode = (Amount(value=speeds["central"][i], low=speeds["low"][i], high=speeds["high"][i]) for i in (0, 1))
    return prefill, decode, f"planned: {name} in {planned.weights}, {steps['central'].basis}"


def _speeds(steps: StepModel, tokens: Tokens, batch: int) -> tuple[float, float]:
    """Of one prompt at a time behind its cached prefix, and of `batch` sequences half-way through their answers."""
    from bedplate.economics.serving.serving_cost import decode_tokens_per_second, prefill_seconds
    from bedplate.economics.serving.simulation import ServiceModel

    service = ServiceModel(steps, max_rows=batch)
    cached, fresh = round(tokens.prefix), max(1, round(tokens.fresh + tokens.passages))
    context = max(1, round(cached + fresh + tokens.output / 2))
    prefill = fresh / prefill_seconds(service, cached + fresh, cached)
    return prefill, decode_tokens_per_second(service, batch, context)


def _check_fits(spec: Spec, planned: DataSheetDecoder, tokens: Tokens, memory_bytes: float) -> None:
    from bedplate.economics.model.footprint import kv_bytes, weight_bytes

    context = round(tokens.prefix + tokens.fresh + tokens.passages + tokens.output)
    required_bytes = weight_bytes(spec, planned.weights) + planned.batch * kv_bytes(spec, max(1, context))
    available_bytes = memory_bytes * (1 - _MEMORY_LEFT)
    if required_bytes > available_bytes:
        raise ConfigError(
            f"{planned.model} in {planned.weights} with {planned.batch} sequences of {context:,} tokens takes "
            f"{required_bytes / 1e9:.1f} GB, {(required_bytes - available_bytes) / 1e9:.1f} GB more than a machine holds; take smaller weights, "
            "a smaller batch, or a machine with more devices"
        )


def hours_per_token(run: TrainingRun, prices: Prices, needed_by: str) -> tuple[Amount, str]:
    """Device hours per token of a training run, over the range of its utilisation, and where they are from."""
    from bedplate.economics.hardware.table import find_device
    from bedplate.economics.training.training_cost import plan_training

    machine_price = prices.machine(run.machine, needed_by)
    if machine_price.device is None:
        raise ConfigError(f"{needed_by}: the price file does not say which `device` {run.machine!r} has")
    try:
        plan = plan_training(run.model, run.tokens.value, find_device(machine_price.device), run.devices)
    except BedplateError as error:
        raise ConfigError(f"{needed_by}: {error}") from error
    hours, tokens = plan.gpu_hours, run.tokens.value
    amount = Amount(value=hours.central / tokens, low=hours.low / tokens, high=hours.high / tokens)
    return amount, f"planned: {plan.model} on {run.devices} × {plan.device.name}"
