"""Model FLOPs utilisation, MFU (PaLM, https://arxiv.org/abs/2204.02311): the share of the device's peak that a run
reaches.

Counts the model's own products, forward and backward, with the token pairs that causal attention sees in rows of one
length (`economics.model.footprint`); recomputation does not count. The peak is the dense one from the table of devices,
or, for a processor or an unlisted device, the measured rate of a large square product.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from bedplate.core.errors import UsageError
from bedplate.core.measurements import measured_once
from bedplate.core.processor import processor, processor_kind
from bedplate.economics.hardware.devices import find_device
from bedplate.economics.model.footprint import training_flops_per_token
from bedplate.models.precision import DTYPES
from bedplate.models.specs import Spec

_NUMBERS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_AUTO = ("float32", "bfloat16")
_SIDE = {"cpu": 1024}
_LARGE, _MIN_ROUNDS, _SECONDS = 8192, 3, 0.3


@dataclass(frozen=True)
class Utilisation:
    """The FLOPs of a token and the peak of a device. peak: operations per second; source: where that number is from."""

    flops_per_token: float
    peak: float
    source: str

    def share(self, tokens: float, seconds: float, devices: int = 1) -> float:
        """Share of the peak of `devices` devices."""
        return tokens * self.flops_per_token / (seconds * self.peak * devices)


def utilisation_of(spec: Spec, row_tokens: int, device: torch.device, dtype: str) -> Utilisation:
    """Utilisation of a training run on rows of `row_tokens` in this dtype ("bfloat16"); "auto", where the dtype is not
    known yet, assumes the dtype with the higher peak among those that training may choose."""
    peak, source = max(peak_of(device, candidate) for candidate in (_AUTO if dtype == "auto" else (dtype,)))
    return Utilisation(training_flops_per_token(spec, row_tokens), peak, source)


def peak_of(device: torch.device, dtype: str) -> tuple[float, str]:
    """Operations per second of dense products, and where that number is from."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_kind()
    if device.type == "cuda":
        try:
            spec = find_device(name)
            return spec.peak(_NUMBERS.get(dtype, dtype)), f"{spec.title}'s peak in {dtype} ({spec.source})"
        except UsageError:
            pass  # a device that is not listed
    return _measured(device, dtype, name)


def _measured(device: torch.device, dtype: str, name: str) -> tuple[float, str]:
    key = {
        "version": 2,
        "device": name,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "cores": processor().threads,
        "torch": [str(torch.__version__), torch.backends.cpu.get_cpu_capability()],
    }
    peak = measured_once("peak", key, lambda: measure_peak(device, dtype), float, _rate)
    return peak, f"products in {dtype}, measured here"


def _rate(record: float) -> float:
    if not 0 < record < math.inf:
        raise ValueError("not a rate")
    return float(record)


def measure_peak(device: torch.device, dtype: str) -> float:
    """Measures operations per second of a large product; the fastest of a few counts, one where it takes long."""
    side = _SIDE.get(device.type, _LARGE)
    with torch.inference_mode():
        a, b = (torch.full((side, side), 0.5, device=device, dtype=DTYPES[dtype]) for _ in range(2))
        (a[:1] @ b)[0, 0].item()  # warm-up: a device's set-up with its first product is not counted
        best, turns, until = float("inf"), 0, time.perf_counter() + _SECONDS
        while turns == 0 or (turns < _MIN_ROUNDS and best < _SECONDS) or time.perf_counter() < until:
            start, turns = time.perf_counter(), turns + 1
            (a @ b)[0, 0].item()  # waits for the device
            best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
