"""What a run takes on this machine: memory by what our own training keeps, time by a product that is measured now."""

from __future__ import annotations

from typing import Any

import torch

from bedplate.core.errors import ConfigError, UsageError
from bedplate.core.processor import processor_name
from bedplate.economics.hardware.mfu import CURVES, HIGH, LOW
from bedplate.economics.model.flops import training_flops_per_token
from bedplate.models.device_memory import free_on
from bedplate.models.precision import resolve_device
from bedplate.models.specs import TextSpec
from bedplate.pretraining.plan.memory import device_bytes
from bedplate.pretraining.plan.sizes import RunSizes
from bedplate.pretraining.runfile.file import RunFile
from bedplate.training.utilisation import peak_of


def plan_here(run: RunFile, spec: TextSpec, sizes: RunSizes) -> dict[str, Any]:
    """The part of a plan that depends on this machine. UsageError where the memory that is free does not suffice,
    ConfigError for a run of several processes."""
    device, dtype = resolve_device("auto"), "float32" if run.dtype == "auto" else run.dtype
    if run.parallel.min_processes > 1:
        raise ConfigError(
            "parallel is for several processes, and without hardware.device a dry run counts one on this machine: say "
            f"on which devices they are to run (hardware.device=h100 hardware.devices={run.parallel.min_processes})"
        )
    axes = run.parallel.sizes(1)
    memory = device_bytes(run, spec, sizes, dtype, axes, on_cpu=device.type == "cpu")
    total, free = sum(memory.values()), free_on(device)
    if free is not None and total > free:
        raise UsageError(f"{run.run} does not fit this machine: {does_not_fit(memory, free)}")
    flops = training_flops_per_token(spec, sizes.length) * sizes.tokens
    (peak, source), share = peak_of(device, dtype), CURVES["cpu" if device.type == "cpu" else "h100"].first
    hours = flops / (peak * share) / 3600
    price = run.hardware.usd_per_hour
    return {
        "on": f"this machine ({processor_name() if device.type == 'cpu' else torch.cuda.get_device_name()})",
        "layout": f"one device, micro-batch {sizes.micro} of {sizes.batch} rows, recompute {run.recompute}",
        "bytes": memory,
        "bytes_per_device": total,
        "memory_bytes": free,
        "flops": flops,
        "mfu": share,
        "tokens_per_second": sizes.tokens / (hours * 3600),
        "seconds": hours * 3600,
        "seconds_range": [hours * 3600 / factor for factor in (HIGH, LOW)],
        "device_hours": hours,
        "usd": None if price is None else hours * price,
        "usd_range": None if price is None else [hours * price / HIGH, hours * price / LOW],
        "notes": [
            f"time: {peak / 1e9:,.0f} GFLOP/s ({source}), at an assumed share of {share:.0%}",
            *(
                ["dtype is auto: counted in float32; the run takes what it measures to be faster"]
                * (run.dtype == "auto")
            ),
            *([] if price is not None else ["give hardware.usd_per_hour for a price"]),
        ],
    }


def does_not_fit(memory: dict[str, float], free: float) -> str:
    """What is missing, and what would do."""
    total = sum(memory.values())
    state = sum(memory.get(name, 0.0) for name in ("weights", "gradients", "optimizer", "average"))
    would = "no batch is small enough: take a smaller model, or more or larger devices (hardware, parallel)"
    if state < free:
        would = "lower batch.micro_tokens, or set recompute: full"
    return (
        f"it needs {total / 1e9:,.1f} GB on a device ({state / 1e9:,.1f} GB of weights, gradients and optimizer, "
        f"{memory['activations'] / 1e9:,.1f} GB of activations), and {free / 1e9:,.1f} GB are free; {would}"
    )
