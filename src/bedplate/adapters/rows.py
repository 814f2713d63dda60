"""Which row of a batch has which adapter, and what follows from it: worked out on the host, which knows it, and sent to
the device without waiting."""

# Shape suffixes: N rows of the index, R summed ranks.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BASE_ROW = -1
Index = NDArray[np.int64]


class AdapterRows:
    """A row index that names at least one adapter, with what the mixed paths derive from it, computed once.

    order: the rows sorted by adapter, the base's first; inverse: and back; counts: how many each has, in the order of
    the base and `slots`.
    """

    def __init__(self, index_N: Index, slots: tuple[int, ...], device: torch.device) -> None:
        self._index, self.slots, self._device = index_N, slots, device
        order = index_N.argsort(kind="stable")
        self.index_N, self.order_N, self.inverse_N = self._sent(np.stack([index_N, order, order.argsort()])).unbind(0)
        self.counts = [int((index_N == slot).sum()) for slot in (BASE_ROW, *slots)]
        self._others: dict[tuple[tuple[int, int], ...], Tensor] = {}
        self._places: dict[tuple[int, ...], Tensor] = {}

    def _sent(self, values: Index) -> Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)

    def of(self, slot: int) -> Tensor:
        """The numbers of a slot's rows, in order."""
        return self._sent((self._index == slot).nonzero()[0])

    def others(self, columns: tuple[tuple[int, int], ...]) -> Tensor:
        """Bool [N, R]: the columns of a row that are not of its own adapter. `columns` lists (slot, rank) in stacking
        order."""
        if columns not in self._others:
            slots, ranks = zip(*columns, strict=True)
            self._others[columns] = self.index_N[:, None] != self._sent(np.repeat(np.array(slots), ranks))
        return self._others[columns]

    def places(self, slots: Sequence[int]) -> Tensor:
        """[N]: the row's slot's place in `slots`, counted from 1; 0 where it is none of them."""
        key = tuple(slots)
        if key not in self._places:
            counted = (self._index[:, None] == np.array(key)) * np.arange(1, len(key) + 1)
            self._places[key] = self._sent(counted.sum(1))
        return self._places[key]
