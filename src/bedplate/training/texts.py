"""Texts for a base that only reads, here with their labels: packed into one row, none seeing another, no token added.

Shapes: T tokens, N texts, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from bedplate.core.errors import DataError
from bedplate.models.device_memory import sent
from bedplate.models.inputs import Inputs


@dataclass(frozen=True)
class LabelledText:
    """A text's token ids, and of each label 1 where it is right, else 0. DataError for a text without tokens."""

    ids: tuple[int, ...]
    targets: tuple[float, ...]
    id: str

    def __post_init__(self) -> None:
        if not self.ids:
            raise DataError(f"example {self.id!r} has no tokens, so nothing can be learned from it; leave it out")


@dataclass(frozen=True)
class Texts:
    """A micro-batch. tokens, segments: int64 [1, T], the texts one after the other, numbered from 1. ids: of what is
    learned from."""

    tokens: Tensor
    segments: Tensor
    ids: tuple[str, ...]

    @property
    def inputs(self) -> Inputs:
        return Inputs(self.tokens, segments=self.segments)

    @property
    def counts(self) -> Mapping[str, int]:
        return {"tokens": self.tokens.numel(), "targets": len(self.ids)}

    def to(self, device: torch.device) -> Self:
        field_values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return replace(self, **{name: sent(value, device) for name, value in field_values if isinstance(value, Tensor)})


@dataclass(frozen=True)
class TextBatch(Texts):
    """targets: float32 [N, C]."""

    targets: Tensor


def pack_texts(texts: Sequence[LabelledText]) -> TextBatch:
    """The texts as one micro-batch. DataError when there are none."""
    if not texts:
        raise DataError("a batch needs at least one example")
    return TextBatch(
        *in_one_row([text.ids for text in texts]),
        tuple(text.id for text in texts),
        torch.tensor([text.targets for text in texts], dtype=torch.float32),
    )


def in_one_row(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Tokens and segments of a micro-batch."""
    lengths = torch.tensor([len(text) for text in texts])
    tokens = torch.tensor([[token for text in texts for token in text]])
    return tokens, torch.arange(1, len(texts) + 1).repeat_interleave(lengths)[None]


def pooled(states_TD: Tensor, segments_T: Tensor, texts: int, pooling: str) -> Tensor:
    """Of each text the mean of its tokens' states, or the first token's: float32 or wider [N, D]."""
    upcast = states_TD.to(torch.promote_types(states_TD.dtype, torch.float32))
    counts_N = torch.bincount(segments_T - 1, minlength=texts)
    if pooling == "first":
        return upcast.index_select(0, counts_N.cumsum(0) - counts_N)
    sums_ND = upcast.new_zeros(texts, upcast.shape[1]).index_add(0, segments_T - 1, upcast)
    return sums_ND / counts_N[:, None]
