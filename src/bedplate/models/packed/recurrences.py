"""Layers that keep a state over packed rows: each document by itself, behind what its row shares.

Documents of about one length run together, so that little is padded: a quarter of what a document takes at most. What
a row shares is read once, and its documents go on from the state behind it.

Shapes: B rows, T tokens a row, S documents of a group, L tokens of its longest, C features that go in, E that come out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bedplate.models.layers.attention_options import Recurrence, State
from bedplate.models.packed.placement import PlacedDocument, Placement

LENGTH_RATIO = 0.75
"""Documents run together that have at least so many tokens of the longest of them."""


@dataclass(frozen=True)
class _Group:
    """Documents that run together. gather: int64 [S, L], flat numbers of their tokens; behind a document's end its
    first stands. lengths: int64 [S]; None: all are equal. back: int64, where their tokens are in the flattened group.
    prefix: of which row's prefix they go on from the state; prefix_row: which row's prefix it is itself."""

    gather_SL: Tensor
    lengths_S: Tensor | None
    back: Tensor
    prefix: int | None
    prefix_row: int | None


class PackedDocuments:
    """The documents of a placement as sequences."""

    def __init__(self, placement: Placement) -> None:
        self._groups = [list(group) for group in _length_groups(placement.documents)]
        self._device_groups: dict[torch.device, tuple[list[_Group], Tensor]] = {}

    def recur(self, run: Recurrence, x_BTC: Tensor) -> Tensor:
        """Each document by itself, [B, T, E]; padding's outputs are zero."""
        B, T, C = x_BTC.shape
        groups, tokens = self._on(x_BTC.device)
        flat, outputs, states = x_BTC.reshape(B * T, C), list[Tensor](), dict[int, State]()
        for group in groups:
            S, L = group.gather_SL.shape
            before: State | None = None
            if group.prefix is not None:
                before = tuple(state.expand(S, *state.shape[1:]) for state in states[group.prefix])
            x_SLC = flat.index_select(0, group.gather_SL.reshape(-1)).view(S, L, C)
            y_SLE, state = run(x_SLC, group.lengths_S, before)
            if group.prefix_row is not None:
                states[group.prefix_row] = state
            outputs.append(y_SLE.reshape(S * L, -1).index_select(0, group.back))
        y = torch.cat(outputs)
        return y.new_zeros(B * T, y.shape[1]).index_copy(0, tokens, y).view(B, T, -1)

    def _on(self, device: torch.device) -> tuple[list[_Group], Tensor]:
        """The groups, and the flat numbers of their tokens in their order."""
        if device not in self._device_groups:
            tokens = [torch.arange(document.start, document.stop) for group in self._groups for document in group]
            self._device_groups[device] = [_on(group, device) for group in self._groups], torch.cat(tokens).to(device)
        return self._device_groups[device]


def _length_groups(documents: Sequence[PlacedDocument]) -> Iterator[list[PlacedDocument]]:
    """Prefixes, each by itself, and then groups of documents of about one length behind one of them, or behind none."""
    yield from ([prefix] for prefix in documents if prefix.segment == 0)
    remaining = [candidate for candidate in documents if candidate.segment != 0]
    remaining.sort(key=lambda placed: (placed.row if placed.shared else -1, -placed.token_count))
    group: list[PlacedDocument] = []
    for document in remaining:
        if group and (
            _prefix(document) != _prefix(group[0]) or document.token_count < LENGTH_RATIO * group[0].token_count
        ):
            yield group
            group = []
        group.append(document)
    if group:
        yield group


def _prefix(document: PlacedDocument) -> int | None:
    return document.row if document.shared else None


def _on(group: Sequence[PlacedDocument], device: torch.device) -> _Group:
    starts, lengths = torch.tensor([[document.start, document.token_count] for document in group]).unbind(1)
    at_L = torch.arange(int(lengths.max()))
    inside_SL = at_L < lengths[:, None]
    gather_SL = torch.where(inside_SL, starts[:, None] + at_L, starts[:, None])
    return _Group(
        gather_SL.to(device),
        None if bool(inside_SL.all()) else lengths.to(device),
        inside_SL.reshape(-1).nonzero().squeeze(1).to(device),
        _prefix(group[0]),
        group[0].row if group[0].segment == 0 else None,
    )
