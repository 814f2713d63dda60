"""Speeds and times that are not stated: of a measured machine (machine.json), or of a planned training run."""

from __future__ import annotations

from pathlib import Path

from bedplate.core.errors import BedplateError, ConfigError
from bedplate.economics.decisions.calls import Tokens
from bedplate.economics.decisions.case import Measured, TrainingRun
from bedplate.economics.prices import Prices
from bedplate.economics.quantities import Amount


def measured_speeds(
    measured: Measured, prices: Prices, machine: str, tokens: Tokens, needed_by: str
) -> tuple[float, float, str]:
    """Prompt tokens per second, output tokens per second of `batch` sequences together, and where they are from."""
    from bedplate.economics.machine import Load, read_machine, step_seconds

    named = prices.machine(machine, needed_by).measured
    path = None if named is None else Path(named) if prices.path is None else prices.path.parent / named
    try:
        speed = read_machine(path).engine(measured.base, measured.weights)
    except BedplateError as error:
        raise ConfigError(f"{needed_by}.machine.measured: {error}") from error
    cached, fresh = tokens.prefix, max(1, round(tokens.fresh + tokens.passages))
    # Each new token of a prompt meets the cached prefix and, on average, half of the new ones.
    prompt = step_seconds(speed, Load(tokens=fresh, rows=1, pairs=fresh * (cached + fresh / 2), started=1, ended=1))
    context = cached + fresh + tokens.output / 2
    step = step_seconds(speed, Load(tokens=measured.batch, rows=measured.batch, keys=measured.batch * context))
    if not prompt or not step:
        raise ConfigError(f"{needed_by}.machine.measured: {measured.base} takes no time there; measure it again")
    return fresh / prompt, measured.batch / step, f"measured {speed.measured_at}, {speed.base} {speed.weights}"


def hours_per_token(run: TrainingRun, prices: Prices, needed_by: str) -> tuple[Amount, str]:
    """Device hours per token of a training run, over the range of its utilisation, and where they are from."""
    from bedplate.economics.hardware import find_device
    from bedplate.economics.training import plan_training

    entry = prices.machine(run.machine, needed_by)
    if entry.device is None:
        raise ConfigError(f"{needed_by}: the price file does not say which `device` {run.machine!r} has")
    try:
        plan = plan_training(run.model, run.tokens.value, find_device(entry.device), run.devices)
    except BedplateError as error:
        raise ConfigError(f"{needed_by}: {error}") from error
    hours, tokens = plan.gpu_hours, run.tokens.value
    found = Amount(value=hours.central / tokens, low=hours.low / tokens, high=hours.high / tokens)
    return found, f"planned: {plan.model} on {run.devices} × {plan.device.name}"
