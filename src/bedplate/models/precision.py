"""Choosing a dtype and a device: the requested one, else the stored dtype and the first GPU."""

from __future__ import annotations

from functools import cache

import torch

from bedplate.core.errors import UsageError

Device = torch.device | str | None
"""Where a module's parameters are made; None: torch's default device."""

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype's name, as in "bfloat16"."""
    return str(dtype).removeprefix("torch.")


@cache
def rounded(number: float, dtype: torch.dtype) -> float:
    return torch.tensor(number, dtype=dtype).item()


def resolve_device(device: str | torch.device) -> torch.device:
    """ "auto" is the first CUDA device, or the CPU where there is none."""
    if isinstance(device, torch.device):
        return device
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device {device!r} is not known; use auto, cpu or cuda") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} was asked for, but this machine has no usable CUDA device; use cpu")
    return resolved


def resolve_dtype(dtype: str | torch.dtype, stored: torch.dtype | None) -> torch.dtype:
    """`dtype` as asked. "auto" is the type the checkpoint is `stored` in; None (quantised) is bfloat16, which most
    bases were trained in. Nothing is measured here: what is fastest is for whoever opens an engine to find out."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if stored is None else stored
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not known; use auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]
