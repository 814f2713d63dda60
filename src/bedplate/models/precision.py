"""Choosing a dtype and a device: what was asked for, else what is measured to be faster here."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch

from bedplate.core.errors import UsageError

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def dtype_name(dtype: torch.dtype) -> str:
    """As in "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def resolve_device(device: str | torch.device) -> torch.device:
    """ "auto" is the first CUDA device, or the CPU where there is none."""
    if isinstance(device, torch.device):
        return device
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device {device!r} is not known; use auto, cpu or cuda") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} was asked for, but this machine has no usable CUDA device; use cpu")
    return found


def resolve_dtype(dtype: str | torch.dtype, device: torch.device, stored: torch.dtype | None) -> torch.dtype:
    """`dtype` as asked. "auto" is the type the checkpoint is `stored` in; None (quantised) takes the faster here."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return faster_dtype(device) if stored is None else stored
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not known; use auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


_TURNS, _CLEARLY = 24, 1.25


@cache
def faster_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, or float32 where its matrix product, of a small model's size, clearly takes less time on this device.

    Clearly, because the answer must not depend on what else the machine is doing: the two take turns, and the best of
    each counts. A processor without products in bfloat16 emulates them at a fraction of the speed.
    """
    products = {dtype: _product(device, dtype) for dtype in (torch.bfloat16, torch.float32)}
    best = dict.fromkeys(products, float("inf"))
    for _ in range(_TURNS):
        for dtype, product in products.items():
            start = time.perf_counter()
            product()
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return torch.float32 if best[torch.float32] * _CLEARLY < best[torch.bfloat16] else torch.bfloat16


def _product(device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    a = torch.ones(256, 1024, device=device, dtype=dtype)
    b = torch.ones(1024, 1024, device=device, dtype=dtype)

    def run() -> object:
        return (a @ b)[0, 0].item()  # waits for the device

    return run
