"""Which keys and values stand together in one tensor, and what is saved of them from a slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from bedplate.inference.forward.recurrent_states import Snapshot
from bedplate.models.specs.cache import LayerCache


class Store(NamedTuple):
    """What is kept together: all of these heads, features, and window (None: every token)."""

    heads: int
    size: int
    window: int | None


def stores_of(layer_cache: LayerCache) -> tuple[Store, ...]:
    """A key's and a value's, or of a latent one for both."""
    if layer_cache.cache_type == "latent":
        return (Store(1, layer_cache.key_size + layer_cache.value_size, None),)
    return Store(layer_cache.heads, layer_cache.key_size, layer_cache.window), Store(
        layer_cache.heads, layer_cache.value_size, layer_cache.window
    )


class SlotSegment:
    """A copy of n tokens' keys and values: of each `Store` that there is, those of its layers [M, G, n, D]; and the
    states after the last of them."""

    def __init__(self, tokens: int, data: Sequence[Tensor], snapshot: Snapshot | None = None) -> None:
        self.tokens, self.data, self.snapshot = tokens, data, snapshot

    @property
    def nbytes(self) -> int:
        data_bytes = sum(part.numel() * part.element_size() for part in self.data)
        return data_bytes + (0 if self.snapshot is None else self.snapshot.nbytes)

    @property
    def resumes(self) -> bool:
        return self.snapshot is not None

    def split(self, at: int) -> tuple[SlotSegment, SlotSegment]:
        # Copies, because a view would keep the whole alive after the other half was evicted.
        first, second = ([part[..., s, :].clone() for part in self.data] for s in (slice(at), slice(at, None)))
        return SlotSegment(at, first), SlotSegment(self.tokens - at, second, self.snapshot)

    def release(self) -> None:
        self.data, self.snapshot = (), None
