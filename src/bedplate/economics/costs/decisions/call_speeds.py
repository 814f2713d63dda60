"""Speeds that a decision file does not state: measured ones, those of a data sheet, and of a planned training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bedplate.core.errors import BedplateError, ConfigError
from bedplate.economics.costs.decisions.decision_file import DataSheetDecoder, MeasuredEngine, TrainingRun
from bedplate.economics.numbers.prices import Prices
from bedplate.economics.numbers.ranged_quantities import Amount

if TYPE_CHECKING:
    from bedplate.economics.serving.simulation import StepModel
    from bedplate.models.specs import Spec

_FREE_MEMORY = 0.1


@dataclass(frozen=True)
class CallTokens:
    """Tokens of one call: repeated in every prompt, different each time, retrieved, and answered."""

    prefix: float
    fresh: float
    passages: float
    output: float

    @property
    def prompt(self) -> float:
        return self.prefix + self.fresh + self.passages


@dataclass(frozen=True)
class Speeds:
    """Prompt tokens per second, output tokens per second of all sequences together, and where they are from (None: the
    decision file)."""

    prefill: Amount
    decode: Amount
    source: str | None


def measured_speeds(
    measured: MeasuredEngine, prices: Prices, machine: str, tokens: CallTokens, needed_by: str
) -> Speeds:
    """Reads an engine's speeds from the machine's machine.json. ConfigError where it was not measured."""
    from bedplate.economics.hardware.machine import read_machine
    from bedplate.economics.serving.step_times import MeasuredSteps

    file = prices.machine(machine, needed_by).measured
    path = None if file is None else Path(file) if prices.path is None else prices.path.parent / file
    try:
        speed = read_machine(path).engine(measured.base, measured.weights)
    except BedplateError as error:
        raise ConfigError(f"{needed_by}.machine.measured: {error}") from error
    prefill, decode = _tokens_per_second(MeasuredSteps(speed), tokens, measured.batch)
    source = f"measured {speed.measured_at}: {speed.base}"
    return Speeds(Amount.exactly(prefill), Amount.exactly(decode), source)


def planned_speeds(
    planned: DataSheetDecoder, prices: Prices, machine: str, tokens: CallTokens, needed_by: str
) -> Speeds:
    """Plans a decoder on the machine's devices by the roofline, over the range that engines reach. ConfigError where it
    does not fit."""
    from bedplate.economics.hardware.device_table import find_device
    from bedplate.economics.model.named_model import resolve
    from bedplate.economics.serving.replica import decoder_of
    from bedplate.economics.serving.step_times import REACHED, RooflineSteps

    entry, place = prices.machine(machine, needed_by), f"{needed_by}.machine.planned"
    if entry.device is None:
        raise ConfigError(f"{place}: the price file does not say which `device` {machine!r} has")
    try:
        name, model = resolve(planned.model)
        spec, device = decoder_of(model, name), find_device(entry.device)
        _check_fits(spec, planned, tokens, device.memory_bytes * entry.devices)
        steps = {
            case: RooflineSteps(spec, device, entry.devices, planned.weights, reached=reached)
            for case, reached in REACHED.items()
        }
        speeds = {case: _tokens_per_second(model, tokens, planned.batch) for case, model in steps.items()}
    except BedplateError as error:
        raise ConfigError(f"{place}: {error}") from error
    prefill, decode = (Amount(value=speeds["central"][i], low=speeds["low"][i], high=speeds["high"][i]) for i in (0, 1))
    return Speeds(prefill, decode, f"planned: {name} in {planned.weights}, {steps['central'].basis}")


def _tokens_per_second(steps: StepModel, tokens: CallTokens, batch: int) -> tuple[float, float]:
    """Speeds of one prompt at a time behind its cached prefix, and of `batch` sequences half-way through their
    answers."""
    from bedplate.economics.serving.serving_cost import decode_tokens_per_second, prefill_seconds
    from bedplate.economics.serving.simulation import ServiceModel

    service = ServiceModel(steps, max_rows=batch)
    cached, fresh = round(tokens.prefix), max(1, round(tokens.fresh + tokens.passages))
    context = max(1, round(cached + fresh + tokens.output / 2))
    prefill = fresh / prefill_seconds(service, cached + fresh, cached)
    return prefill, decode_tokens_per_second(service, batch, context)


def _check_fits(spec: Spec, planned: DataSheetDecoder, tokens: CallTokens, memory_bytes: float) -> None:
    from bedplate.economics.model.footprint import kv_bytes, weight_bytes

    context = round(tokens.prompt + tokens.output)
    needed = weight_bytes(spec, planned.weights) + planned.batch * kv_bytes(spec, max(1, context))
    usable = memory_bytes * (1 - _FREE_MEMORY)
    if needed > usable:
        raise ConfigError(
            f"{planned.model} in {planned.weights} with {planned.batch} sequences of {context:,} tokens takes "
            f"{needed / 1e9:.1f} GB, {(needed - usable) / 1e9:.1f} GB more than a machine holds; take smaller weights, "
            "a smaller batch, or a machine with more devices"
        )


def hours_per_token(run: TrainingRun, prices: Prices, needed_by: str) -> tuple[Amount, str]:
    """Device hours per token of a training run, over the range of its utilisation, and where they are from."""
    from bedplate.economics.hardware.device_table import find_device
    from bedplate.economics.training.training_cost import plan_training

    entry = prices.machine(run.machine, needed_by)
    if entry.device is None:
        raise ConfigError(f"{needed_by}: the price file does not say which `device` {run.machine!r} has")
    try:
        plan = plan_training(run.model, run.tokens.value, find_device(entry.device), run.devices)
    except BedplateError as error:
        raise ConfigError(f"{needed_by}: {error}") from error
    hours, tokens = plan.gpu_hours, run.tokens.value
    per_token = Amount(value=hours.central / tokens, low=hours.low / tokens, high=hours.high / tokens)
    return per_token, f"planned: {plan.model} on {run.devices} × {plan.device.name}"
