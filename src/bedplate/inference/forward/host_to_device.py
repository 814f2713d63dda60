"""Sends the integer arrays of a pass from the host to the device as one copy.

Indices are computed with numpy: a torch operation on the host costs as much as a launch on a device, and reading from a
device synchronizes with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bedplate.models.device_memory import sent

Numbers = NDArray[np.int64]


class HostToDevice:
    """int64 arrays that are sent to a device together, asynchronously from pinned memory where there is any."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._arrays: list[Numbers] = []
        self._sent: tuple[Tensor, Sequence[Tensor]] | None = None

    def add(self, values: Numbers | Sequence[int] | Sequence[Sequence[int]]) -> DeviceTensors:
        """Adds an array, before any of them is read on the device."""
        assert self._sent is None, "sent already"
        self._arrays.append(np.array(values, dtype=np.int64))
        return DeviceTensors(self, len(self._arrays) - 1)

    def send(self, into: Tensor | None = None) -> None:
        """Sends the arrays. into: a device tensor of exactly that size, which is overwritten."""
        whole = torch.from_numpy(np.concatenate([array.reshape(-1) for array in self._arrays]))
        if into is None:
            into = sent(whole, self._device)
        else:
            into.copy_(whole.pin_memory() if self._device.type == "cuda" else whole, non_blocking=True)
        parts = into.split([array.size for array in self._arrays])
        self._sent = into, [part.view(array.shape) for part, array in zip(parts, self._arrays, strict=True)]

    @property
    def sent(self) -> Tensor:
        """All numbers, as one tensor on the device."""
        assert self._sent is not None
        return self._sent[0]

    def part(self, number: int) -> Tensor:
        """Array number `number`, in the order of `add`, on the device."""
        if self._sent is None:
            self.send()
        assert self._sent is not None
        return self._sent[1][number]


class DeviceTensors:
    """One array of a transfer, available on the device once it is sent."""

    def __init__(self, transfer: HostToDevice, number: int) -> None:
        self._transfer, self._number = transfer, number

    @property
    def tensor(self) -> Tensor:
        """The array on the device, in its shape; sends all arrays if they were not sent yet."""
        return self._transfer.part(self._number)
