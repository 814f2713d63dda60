"""Recurrent states of running sequences, of a fixed size per row: the last inputs of convolutions, and matrix states.

A state belongs to one position and only moves forward. So a row can continue from where it is, from its beginning, or
from a snapshot; it cannot be cut shorter. The results of a pass replace the rows' states only when the pass is over
(`commit`): a failed pass that is retried in parts begins where it began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bedplate.core.errors import UsageError
from bedplate.inference.forward.spans import Padded, Span
from bedplate.models.device_memory import integers
from bedplate.models.layers.attention_options import Recurrence, State
from bedplate.models.specs.cache import LayerCache


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All states of one row at one position; of the first layers, where only those were run."""

    states: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(state.numel() * state.element_size() for state in self.states)


class RecurrentStates:
    """States of rows [R, ...], one tensor for each `LayerCache` that belongs to a sequence."""

    def __init__(self, layout: Sequence[LayerCache], dtype: torch.dtype, device: torch.device) -> None:
        self._layout = [layer_cache for layer_cache in layout if layer_cache.of_sequence]
        state_dtype = torch.promote_types(dtype, torch.float32)
        self._dtypes = [state_dtype if layer_cache.cache_type == "recurrent" else dtype for layer_cache in self._layout]
        self._device = device
        self._data: list[Tensor] = []
        self._of_layer: dict[int, list[int]] = {}
        for number, layer_cache in enumerate(self._layout):
            self._of_layer.setdefault(layer_cache.layer, []).append(number)
        self._at: dict[int, int] = {}
        self._pending: list[tuple[int, list[int], Tensor]] = []
        self._spans: Sequence[Span] = ()
        self.rows = 0
        self.nbytes = self.bytes_of(None)
        """Bytes of one row."""

    def __bool__(self) -> bool:
        return bool(self._layout)

    def bytes_of(self, depth: int | None) -> int:
        """Bytes of a snapshot of the first layers, or of all."""
        layers = zip(self._layout, self._dtypes, strict=True)
        return sum(entry.values * dtype.itemsize for entry, dtype in layers if depth is None or entry.layer < depth)

    def reserve(self, rows: int) -> None:
        """Makes room for so many rows, which keep their states."""
        new_data: list[Tensor] = []  # replaced together, so that an out-of-memory error changes nothing
        for number, (layer_cache, dtype) in enumerate(zip(self._layout, self._dtypes, strict=True)):
            new_data.append(torch.zeros(rows, *_shape(layer_cache), dtype=dtype, device=self._device))
            for old_data in self._data[number : number + 1]:
                new_data[number][: len(old_data)] = old_data[:rows]
        self._data = new_data
        self.rows = rows

    def is_at(self, row: int, position: int) -> bool:
        """Whether a row's states are those after its first `position` tokens."""
        return not self or self._at.get(row) == position

    def assume(self, row: int, position: int) -> None:
        """Treats a row's states as those of this position, whatever they are (to time a pass)."""
        self._at[row] = position

    def begin(self, spans: Sequence[Span]) -> None:
        """Begins a pass over these spans. UsageError where a row's states are not those before its span."""
        self._pending, self._spans = [], spans
        for span in spans if self else ():
            if span.start and not self.is_at(span.row, span.start):
                raise UsageError(
                    f"row {span.row} cannot go on from token {span.start}: its states are those of token "
                    f"{self._at.get(span.row)}"
                )

    def _read(self, layer: int, spans: Sequence[Span]) -> State | None:
        """The layer's states before these spans; None where all spans begin a sequence."""
        if not any(span.start for span in spans):
            return None
        rows = integers([span.row for span in spans], self._device)
        begun = integers([span.start for span in spans], self._device) > 0
        states = (self._data[number].index_select(0, rows) for number in self._of_layer[layer])
        return tuple(torch.where(begun.view(-1, *(1,) * (state.dim() - 1)), state, 0) for state in states)

    def _write(self, layer: int, spans: Sequence[Span], after: State) -> None:
        """Sets the layer's states after these spans, with effect from the end of the pass."""
        rows = [span.row for span in spans]
        self._pending += [(number, rows, state) for number, state in zip(self._of_layer[layer], after, strict=True)]

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor, groups: Sequence[Padded]) -> Tensor:
        """`Attend.recur` of a flat batch [1, N, C] of the pass's spans, in groups of similar ones; without groups, of
        the beginning of one sequence."""
        if not groups:
            y_BTE, after = run(x_BTC, None, None)
            self._write(layer, self._spans, after)
            return y_BTE
        out_NE: Tensor | None = None
        for group in groups:
            y_STE, after = run(group.block(x_BTC[0]), group.lengths_S, self._read(layer, group.spans))
            self._write(layer, group.spans, after)
            out_NE = y_STE.new_empty(x_BTC.shape[1], y_STE.shape[2]) if out_NE is None else out_NE
            out_NE[group.tokens_N] = group.flat(y_STE)
        assert out_NE is not None
        return out_NE[None]

    def commit(self) -> None:
        """Ends the pass: its states become the rows'."""
        for number, rows, state in self._pending:
            self._data[number][integers(rows, self._device)] = state.to(self._data[number].dtype)
        self._at.update({span.row: span.end for span in self._spans} if self else {})
        self._pending, self._spans = [], ()

    def save(self, row: int, position: int, depth: int | None) -> Snapshot | None:
        """A copy of a row's states; None where they are not those of this position."""
        if not self or not self.is_at(row, position):
            return None
        layers = zip(self._layout, self._data, strict=True)
        return Snapshot(tuple(data[row].clone() for entry, data in layers if depth is None or entry.layer < depth))

    def forget(self, row: int) -> None:
        """Invalidates a row's states: it can continue from its beginning only."""
        self._at.pop(row, None)

    def close(self) -> None:
        self._data, self._pending, self._at = [], [], {}

    def load(self, row: int, position: int, snapshot: Snapshot | None) -> None:
        """Sets a row's states at this position from a snapshot; without one the row cannot continue from there."""
        self._at.pop(row, None)
        if snapshot is not None:
            for data, state in zip(self._data, snapshot.states, strict=False):
                data[row] = state
            self._at[row] = position


def _shape(layer_cache: LayerCache) -> tuple[int, ...]:
    if layer_cache.cache_type == "convolution":
        return layer_cache.value_size, layer_cache.key_size
    return layer_cache.heads, layer_cache.key_size, layer_cache.value_size
