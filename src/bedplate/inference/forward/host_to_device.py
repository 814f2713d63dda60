"""The integers of a pass that the host sends to the device, as one copy.

What is derived from lists is derived by numpy: a torch operation on the host costs as much as one that is started on a
device, and reading from a device waits for it.
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
    """int64 arrays that go to a device together, from pinned memory and without waiting where there is such."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._arrays: list[Numbers] = []
        self._sent: tuple[Tensor, Sequence[Tensor]] | None = None

    def add(self, values: Numbers | Sequence[int] | Sequence[Sequence[int]]) -> DeviceTensors:
        """One array more, before any of them is asked for."""
        assert self._sent is None, "sent already"
        self._arrays.append(np.array(values, dtype=np.int64))
        return DeviceTensors(self, len(self._arrays) - 1)

    def send(self, into: Tensor | None = None) -> None:
        """Sends what there is. into: a tensor on the device, of just that many numbers, that is overwritten."""
        whole = torch.from_numpy(np.concatenate([array.reshape(-1) for array in self._arrays]))
        if into is None:
            into = sent(whole, self._device)
        else:
            into.copy_(whole.pin_memory() if self._device.type == "cuda" else whole, non_blocking=True)
        parts = into.split([array.size for array in self._arrays])
        self._sent = into, [part.view(array.shape) for part, array in zip(parts, self._arrays, strict=True)]

    @property
    def sent(self) -> Tensor:
        """All numbers, on the device."""
        assert self._sent is not None
        return self._sent[0]

    def part(self, number: int) -> Tensor:
        """The array that was added as this one, on the device."""
        if self._sent is None:
            self.send()
        assert self._sent is not None
        return self._sent[1][number]


class DeviceTensors:
    """One array of a transfer, on the device once it is sent."""

    def __init__(self, transfer: HostToDevice, number: int) -> None:
        self._transfer, self._number = transfer, number

    @property
    def tensor(self) -> Tensor:
        """The array on the device, in its shape; sends all of them if they have not been."""
        return self._transfer.part(self._number)
