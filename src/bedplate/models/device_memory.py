"""The device that a model computes on: how much of its memory is free, how what the host made comes there, and when it
has done what it was given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bedplate.core.memory import free_bytes


def free_on(device: torch.device) -> int | None:
    """Bytes that may still be taken there, or None where that is not known. What torch holds of a CUDA device without
    using it is free."""
    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reusable
    return free_bytes() if device.type == "cpu" else None


def sent(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on this device; what comes from the host goes by pinned memory to a CUDA device, and nobody waits."""
    if device.type == "cuda" and x.is_cpu:
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def integers(numbers: Sequence[int] | NDArray[np.int64], device: torch.device) -> Tensor:
    """int64 numbers on this device, for which nobody waits."""
    return sent(torch.from_numpy(np.array(numbers, dtype=np.int64)), device)


def finish(device: torch.device) -> None:
    """Returns when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
