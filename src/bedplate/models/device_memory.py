"""The device that a model computes on: its free memory, copies from the host, and synchronisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bedplate.core.memory import free_bytes


def free_on(device: torch.device) -> int | None:
    """Free bytes of a device, those that torch's allocator has cached included; None where that is not known."""
    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reusable
    return free_bytes() if device.type == "cpu" else None


def sent(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on this device, copied from the host without waiting (through pinned memory)."""
    if device.type == "cuda" and x.is_cpu:
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def integers(numbers: Sequence[int] | NDArray[np.int64], device: torch.device) -> Tensor:
    """int64 numbers on this device, copied without waiting."""
    return sent(torch.from_numpy(np.array(numbers, dtype=np.int64)), device)


def finish(device: torch.device) -> None:
    """Waits until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
