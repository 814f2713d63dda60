"""How many (query, key) pairs a layer's attention forms, and what each costs.

Pairs are exact: a causal query sees itself and what came before it, bounded by its layer's window. Kernels that compute
the full square and mask it do more; `causal=False` counts that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from bedplate.economics.model.mixer_flops import attends, recurrent_flops
from bedplate.models.specs.transformer import TransformerSpec


def causal_pairs(new: int, cached: int, window: int | None) -> int:
    """Pairs of `new` tokens after `cached` ones, each seeing itself and those before, at most `window` in all."""
    last = cached + new
    return _triangle(last, window) - _triangle(cached, window)


def _triangle(tokens: int, window: int | None) -> int:
    if window is None or tokens <= window:
        return tokens * (tokens + 1) // 2
    return window * (window + 1) // 2 + (tokens - window) * window


def square_pairs(new: int, cached: int, window: int | None) -> int:
    """Pairs where every query is given all keys, or a full window of them, and a mask does the rest."""
    keys = cached + new
    return new * (keys if window is None else min(keys, window))


def two_sided_pairs(tokens: int, window: int | None) -> int:
    """Pairs of an encoder: all, or those at most half a window apart."""
    half = tokens if window is None else min(window // 2, tokens - 1)
    if window is None or half >= tokens - 1:
        return tokens * tokens
    return tokens * (2 * half + 1) - half * (half + 1)


@lru_cache(maxsize=256)
def windows(spec: TransformerSpec) -> tuple[tuple[int | None, int, int], ...]:
    """The windows of layers with attention, each with the operations of a pair there, and the number of layers that
    have both; prediction modules see all."""
    layers = (layer for layer in range(spec.layers) if attends(spec, layer))
    layer_counts = Counter((spec.window(layer), pair_flops(spec, layer)) for layer in layers)
    if spec.prediction_modules:
        layer_counts[None, pair_flops(spec, spec.layers)] += spec.prediction_modules
    return tuple((window, pair, count) for (window, pair), count in layer_counts.items())


def pair_flops(spec: TransformerSpec, layer: int) -> int:
    """Operations of one pair in this layer: the score and the weighted value of every head, 2 a feature."""
    if spec.attention.latent is not None:
        return 2 * spec.attention.heads * (spec.attention.latent.key_dim + spec.attention.latent.value_dim)
    return 4 * spec.attention.heads * spec.head_dim_of(layer)


def absorbed_pair_flops(spec: TransformerSpec) -> int:
    """The same of latent attention that reads the cached latents themselves: its up-projection is absorbed into queries
    and outputs (https://arxiv.org/abs/2405.04434, section 2.1.2)."""
    assert spec.attention.latent is not None
    return 2 * spec.attention.heads * (2 * spec.attention.latent.kv_rank + spec.attention.latent.rope_dim)


def attention_flops(spec: TransformerSpec, new: int, cached: int = 0, causal: bool | None = None) -> float:
    """Operations of self-attention over all layers, for `new` tokens after `cached` ones of one sequence; and of the
    recurrences of layers that have one in its place.

    causal: None: exact for the spec's kind; False: the full square of a decoder. An encoder has no cache.
    """
    states = sum(not attends(spec, layer) for layer in range(spec.layers)) if spec.state.mixer is not None else 0
    pairs = sum(layers * _layer(spec, new, cached, window, pair, causal) for window, pair, layers in windows(spec))
    return pairs + states * recurrent_flops(spec) * new


def _layer(spec: TransformerSpec, new: int, cached: int, window: int | None, pair: int, causal: bool | None) -> float:
    if spec.kind != "decoder":
        return pair * two_sided_pairs(new, window)
    pairs = square_pairs(new, cached, window) if causal is False else causal_pairs(new, cached, window)
    plain = pair * pairs
    if spec.attention.latent is None or not cached:
        return plain
    # Keys and values of the cached latents must be made anew, or attention reads the latents: the cheaper of the two.
    part = spec.attention.latent
    rebuild_flops = 2 * part.kv_rank * spec.attention.heads * (part.nope_dim + part.value_dim) * cached
    return min(plain + rebuild_flops, absorbed_pair_flops(spec) * pairs)


def cached_features(spec: TransformerSpec) -> Iterator[tuple[int | None, int]]:
    """(window, values that each token leaves in the cache) of each group of layers with one window; a layer that uses
    another one's keys and values leaves none."""
    features_by_window: dict[int | None, int] = {}
    for layer in (layer for layer in range(spec.layers) if attends(spec, layer)):
        size = 2 * spec.kv_heads_of(layer) * spec.head_dim_of(layer) if spec.keys_of(layer) == layer else 0
        if spec.attention.latent is not None:
            size = spec.attention.latent.kv_rank + spec.attention.latent.rope_dim
        features_by_window[spec.window(layer)] = features_by_window.get(spec.window(layer), 0) + size
    yield from features_by_window.items()
