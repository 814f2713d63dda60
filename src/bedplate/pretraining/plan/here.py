"""What a run takes on this machine: memory by what our own training keeps, time by a product that is measured now."""

from __future__ import annotations

import time
from typing import Any

import torch

from bedplate.core.errors import UsageError
from bedplate.core.measured import measured_once
from bedplate.core.processor import processor, processor_kind, processor_name
from bedplate.economics.hardware.mfu import CURVES, HIGH, LOW
from bedplate.economics.model.flops import training_flops_per_token
from bedplate.economics.training.kept import kept_bytes
from bedplate.models.device_memory import free_on
from bedplate.models.precision import DTYPES, resolve_device
from bedplate.models.specs import TextSpec
from bedplate.pretraining.plan.sizes import Sizes
from bedplate.pretraining.runfile.file import RunFile

HEAD_ROWS = 512
"""Logits are made for so many tokens at a time; with their gradient they are there twice, and once as float32."""
_PRODUCT = 1024
_SECONDS = 0.3


def plan_here(run: RunFile, spec: TextSpec, sizes: Sizes) -> dict[str, Any]:
    """The part of a plan that depends on this machine. UsageError where the memory that is free does not suffice."""
    device, dtype = resolve_device("auto"), "float32" if run.dtype == "auto" else run.dtype
    held = device_bytes(run, spec, sizes, dtype)
    total, free = sum(held.values()), free_on(device)
    if free is not None and total > free:
        raise UsageError(_does_not_fit(run, total, free, held))
    flops = training_flops_per_token(spec, sizes.length) * sizes.tokens
    peak, share = peak_flops(device, dtype), CURVES["cpu" if device.type == "cpu" else "h100"].first
    hours = flops / (peak * share) / 3600
    price = run.hardware.usd_per_hour
    return {
        "on": f"this machine ({processor_name() if device.type == 'cpu' else torch.cuda.get_device_name()})",
        "layout": f"one device, micro-batch {sizes.micro} of {sizes.batch} rows, recompute {run.recompute}",
        "bytes": held,
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
            f"time: {peak / 1e9:,.0f} GFLOP/s of {dtype} products, measured here, at an assumed share of {share:.0%}",
            *([] if price is not None else ["give hardware.usd_per_hour for a price"]),
        ],
    }


def device_bytes(run: RunFile, spec: TextSpec, sizes: Sizes, dtype: str) -> dict[str, float]:
    """What one device holds, in bytes by what it is."""
    size, count = DTYPES[dtype].itemsize, sizes.parameters
    half = size < 4
    kept = kept_bytes(spec, sizes.micro * sizes.length, bytes_per_value=size, recompute=run.recompute)
    rows = min(HEAD_ROWS, sizes.micro * sizes.length)
    return {
        "weights": float(count * size),
        "gradients": float(count * (4 + (size if half else 0))),
        # moments; of a run in half precision masters, and the float32 weights that it began with
        "optimizer": float(count * (8 + (4 + 4 if half else 0))),
        "activations": kept.total,
        "logits": float(rows * spec.vocab_size * (2 * size + 4)),
    }


def _does_not_fit(run: RunFile, total: float, free: float, held: dict[str, float]) -> str:
    state = held["weights"] + held["gradients"] + held["optimizer"]
    would = "no batch is small enough: take a smaller model, or a device of the table (hardware.device)"
    if state < free:
        would = "lower batch.micro_tokens, or set recompute: full"
    return (
        f"{run.run} does not fit this machine: it needs {total / 1e9:,.1f} GB ({state / 1e9:,.1f} GB of weights, "
        f"gradients and optimizer, {held['activations'] / 1e9:,.1f} GB of activations), and {free / 1e9:,.1f} GB are "
        f"free; {would}"
    )


def peak_flops(device: torch.device, dtype: str) -> float:
    """Operations a second of a square product, measured once for this machine."""
    name = processor_kind() if device.type == "cpu" else torch.cuda.get_device_name()
    key = {
        "version": 1,
        "device": name,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "cores": processor().threads,
    }
    return measured_once("products", key, lambda: _measured(device, DTYPES[dtype]), float, _rate)


def usable_peak(device: torch.device) -> float:
    """Operations a second of the faster of float32 and bfloat16 products: what a share of the peak is a share of."""
    return max(peak_flops(device, dtype) for dtype in ("float32", "bfloat16"))


def _measured(device: torch.device, dtype: torch.dtype) -> float:
    size = _PRODUCT if device.type == "cpu" else 8 * _PRODUCT
    a = torch.ones(size, size, device=device, dtype=dtype)
    best, until = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _rate(found: Any) -> float:
    if not isinstance(found, int | float) or not found > 0:
        raise ValueError("not a rate")
    return float(found)
