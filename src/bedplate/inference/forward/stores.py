"""Which keys and values stand together in one tensor, and what is saved of them from a slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from bedplate.inference.forward.states import Snapshot
from bedplate.models.specs.cache import Kept


class Store(NamedTuple):
    """What is kept together: all of these heads, features, and window (None: every token)."""

    heads: int
    size: int
    window: int | None


def stores_of(one: Kept) -> tuple[Store, ...]:
    """A key's and a value's, or of a latent one for both."""
    if one.kind == "latent":
        return (Store(1, one.key_size + one.value_size, None),)
    return Store(one.heads, one.key_size, one.window), Store(one.heads, one.value_size, one.window)


class SlotSegment:
    """A copy of n tokens' keys and values: of each `Store` that there is, those of its layers [M, G, n, D]; and the
    states after the last of them."""

    def __init__(self, tokens: int, data: Sequence[Tensor], snapshot: Snapshot | None = None) -> None:
        self.tokens, self.data, self.snapshot = tokens, data, snapshot

    @property
    def nbytes(self) -> int:
        own = sum(part.numel() * part.element_size() for part in self.data)
        return own + (0 if self.snapshot is None else self.snapshot.nbytes)

    @property
    def resumes(self) -> bool:
        return self.snapshot is not None

    def split(self, at: int) -> tuple[SlotSegment, SlotSegment]:
        # Copies, because a view would keep the whole alive after the other half was evicted.
        first, second = ([part[..., s, :].clone() for part in self.data] for s in (slice(at), slice(at, None)))
        return SlotSegment(at, first), SlotSegment(self.tokens - at, second, self.snapshot)

    def release(self) -> None:
        self.data, self.snapshot = (), None
