"""The cache layout of a spec: what each layer keeps of earlier tokens. Slots, blocks and prices all read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bedplate.models.specs import TextSpec
from bedplate.models.specs.parts import DeltaRule, Mamba2, ShortConvolution
from bedplate.models.specs.transformer import TransformerSpec

CacheKind = Literal["kv", "window", "latent", "cross", "convolution", "recurrent"]


@dataclass(frozen=True)
class LayerCache:
    """One cache of layer number `layer`: `heads` pairs of `key_size` and `value_size` numbers.

    kv: keys and values of every token. window: of the last `window` tokens. latent: one rotated key (key_size) and the
    latent (value_size) of every token, which attention takes as one key, the latent behind the rotated part, and its
    end as the value. cross: keys and values of every token of the encoder. convolution, recurrent: of a sequence,
    however long: the last value_size inputs of a convolution of key_size features, or a matrix of key_size by
    value_size of each head of a recurrence, in float32 at least.
    """

    layer: int
    cache_type: CacheKind
    heads: int
    key_size: int
    value_size: int
    window: int | None = None

    @property
    def of_sequence(self) -> bool:
        """Whether it is one per sequence, and not one per token."""
        return self.cache_type in ("convolution", "recurrent")

    @property
    def values(self) -> int:
        """Numbers per token, or per sequence."""
        if self.of_sequence:
            return self.heads * self.key_size * self.value_size
        return self.heads * (self.key_size + self.value_size)


def cache_layout(spec: TextSpec) -> tuple[LayerCache, ...]:
    """The caches of all layers, in their order; empty for a model that sees all its tokens at once."""
    main = spec.main
    if main.kind != "decoder":
        return ()
    return tuple(cache for layer in range(main.layers) for cache in _layer_caches(main, layer))


def _layer_caches(spec: TransformerSpec, layer: int) -> Iterator[LayerCache]:
    heads, size, window = spec.kv_heads_of(layer), spec.head_dim_of(layer), spec.window(layer)
    mixer, state = spec.mixer(layer), spec.state.mixer
    if isinstance(state, ShortConvolution) and mixer == "convolution":
        yield LayerCache(layer, "convolution", 1, spec.hidden_size, state.width - 1)
    elif isinstance(state, DeltaRule | Mamba2) and mixer in ("delta_rule", "mamba2"):
        yield LayerCache(layer, "convolution", 1, state.channels, state.width - 1)
        yield LayerCache(layer, "recurrent", *state.state_shape)
    elif spec.attention.latent is not None:
        yield LayerCache(layer, "latent", 1, spec.attention.latent.rope_dim, spec.attention.latent.kv_rank)
    elif spec.keys_of(layer) == layer:  # what is another layer's is kept with that
        yield LayerCache(layer, "kv" if window is None else "window", heads, size, size, window)
    if spec.attention.cross_size is not None:
        yield LayerCache(layer, "cross", heads, size, size)


def row_layout(spec: TextSpec) -> tuple[LayerCache, ...]:
    """The layout for a cache of rows: keys and values (or their latents) of tokens, and states of sequences.

    An encoder's tokens stand before the decoder's in the row, where attention to them and to the row's own tokens have
    keys and values of the same sizes: what is "cross" needs no room of its own.
    """
    return tuple(cache for cache in cache_layout(spec) if cache.cache_type != "cross")
