"""What layers keep of a whole sequence, however long it is: the last inputs of convolutions, states of recurrences.

A state belongs to one position, and goes only forwards. So a row can go on from where it is, from its beginning, or
from a snapshot; there is no cutting it shorter. What a pass computes becomes the rows' own when the pass is over
(`commit`): one that failed, and is tried again in parts, begins where it began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bedplate.core.errors import UsageError
from bedplate.inference.forward.spans import Padded, Span
from bedplate.models.device_memory import integers
from bedplate.models.layers.documents import Recurrence, State
from bedplate.models.specs.cache import Kept


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All states of one row at one position; of the first layers, where only those were run."""

    states: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(one.numel() * one.element_size() for one in self.states)


class States:
    """States of rows [R, ...], one tensor of each `Kept` that is of a sequence."""

    def __init__(self, layout: Sequence[Kept], dtype: torch.dtype, device: torch.device) -> None:
        self._layout = [one for one in layout if one.of_sequence]
        wide = torch.promote_types(dtype, torch.float32)
        self._dtypes = [wide if one.kind == "recurrent" else dtype for one in self._layout]
        self._device = device
        self._data: list[Tensor] = []
        self._of_layer: dict[int, list[int]] = {}
        for number, one in enumerate(self._layout):
            self._of_layer.setdefault(one.layer, []).append(number)
        self._at: dict[int, int] = {}
        self._pending: list[tuple[int, list[int], Tensor]] = []
        self._spans: Sequence[Span] = ()
        self.rows = 0
        self.nbytes = self.bytes_of(None)
        """Of one row."""

    def __bool__(self) -> bool:
        return bool(self._layout)

    def bytes_of(self, depth: int | None) -> int:
        """Bytes of a snapshot of the first layers, or of all."""
        found = zip(self._layout, self._dtypes, strict=True)
        return sum(one.values * dtype.itemsize for one, dtype in found if depth is None or one.layer < depth)

    def reserve(self, rows: int, kept: Sequence[int] | None = None) -> None:
        """Room for so many rows, of which the first ones are those that were `kept`, or all."""
        kept = range(self.rows) if kept is None else kept
        made: list[Tensor] = []  # all or, where memory runs out, none
        for number, (one, dtype) in enumerate(zip(self._layout, self._dtypes, strict=True)):
            made.append(torch.zeros(rows, *_shape(one), dtype=dtype, device=self._device))
            for to, row in enumerate(kept if self._data else ()):
                made[number][to] = self._data[number][row]
        self._data = made
        self._at = {to: self._at[row] for to, row in enumerate(kept) if row in self._at}
        self.rows = rows

    def is_at(self, row: int, position: int) -> bool:
        """Whether a row's states are those after its first `position` tokens."""
        return not self or self._at.get(row) == position

    def assume(self, row: int, position: int) -> None:
        """Takes a row's states for those of this position, whatever they are (to time a pass)."""
        self._at[row] = position

    def begin(self, spans: Sequence[Span]) -> None:
        """A pass over these spans. UsageError where a row's states are not those before its span."""
        self._pending, self._spans = [], spans
        for span in spans if self else ():
            if span.start and not self.is_at(span.row, span.start):
                raise UsageError(
                    f"row {span.row} cannot go on from token {span.start}: its states are those of token "
                    f"{self._at.get(span.row)}"
                )

    def _read(self, layer: int, spans: Sequence[Span]) -> State | None:
        """The layer's states before these spans; None where all of them are beginnings."""
        if not any(span.start for span in spans):
            return None
        rows = integers([span.row for span in spans], self._device)
        begun = integers([span.start for span in spans], self._device) > 0
        found = (self._data[number].index_select(0, rows) for number in self._of_layer[layer])
        return tuple(torch.where(begun.view(-1, *(1,) * (one.dim() - 1)), one, 0) for one in found)

    def _write(self, layer: int, spans: Sequence[Span], after: State) -> None:
        """The layer's states after these spans, from the end of the pass on."""
        rows = [span.row for span in spans]
        self._pending += [(number, rows, one) for number, one in zip(self._of_layer[layer], after, strict=True)]

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor, groups: Sequence[Padded]) -> Tensor:
        """`Attend.recur` of a flat batch [1, N, C] of the pass's spans, in groups of alike ones; no groups where it is
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
        """The pass is over: its states are the rows' own."""
        for number, rows, state in self._pending:
            self._data[number][integers(rows, self._device)] = state.to(self._data[number].dtype)
        self._at.update({span.row: span.end for span in self._spans} if self else {})
        self._pending, self._spans = [], ()

    def save(self, row: int, position: int, depth: int | None) -> Snapshot | None:
        """A copy of a row's states, where they are those of this position."""
        if not self or not self.is_at(row, position):
            return None
        found = zip(self._layout, self._data, strict=True)
        return Snapshot(tuple(data[row].clone() for one, data in found if depth is None or one.layer < depth))

    def forget(self, row: int) -> None:
        """Nothing can go on in this row but from its beginning."""
        self._at.pop(row, None)

    def close(self) -> None:
        """Gives the memory back."""
        self._data, self._pending, self._at = [], [], {}

    def load(self, row: int, position: int, snapshot: Snapshot | None) -> None:
        """A row's states at this position; without a snapshot nothing can go on from there."""
        self._at.pop(row, None)
        if snapshot is not None:
            for data, state in zip(self._data, snapshot.states, strict=False):
                data[row] = state
            self._at[row] = position


def _shape(one: Kept) -> tuple[int, ...]:
    return (one.value_size, one.key_size) if one.kind == "convolution" else (one.heads, one.key_size, one.value_size)
