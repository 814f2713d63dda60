"""Softmax attention layers (grouped-query, cross, latent), and the layouts that determine which tokens see each other.

An `Attend` object, made once per forward pass and used by every layer, implements attention for one layout of tokens
(whole rows, packed documents, a KV cache), so that model code knows nothing of padding, packing or caches.

Shapes: B rows, T tokens, S keys, H query heads, G key-value heads, D features of one head's query and key, V of its
value.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.layers.attention_options import PLAIN, AttentionOptions, CrossAttend, Recurrence, plain_attention
from bedplate.models.layers.fused.linears import FusedLinears
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.norms import Norm, RMSNorm, make_norm
from bedplate.models.layers.positions import Rotation, rotate
from bedplate.models.precision import Device
from bedplate.models.specs.position import YarnScaling, yarn_scale
from bedplate.models.specs.transformer import Scales, TransformerSpec


class Attend(Protocol):
    """Attends for layer number `layer`: queries [B, T, H, D], keys [B, T, G, D], values [B, T, G, V] → [B, T, H, V].

    UnsupportedModelError, by name, for an option that this implementation does not support.
    """

    @property
    def is_cached(self) -> bool:
        """Whether keys and values are cached for later passes, as `cache_layout` specifies: layers with latent
        attention then pass one key [B, T, 1, rope_dim + kv_rank], the rotated part followed by the latent, and the
        latent as the value."""
        ...

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, options: AttentionOptions = PLAIN
    ) -> Tensor: ...

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        """Runs a recurrent layer's `run` over each sequence separately, from the state before its first token: [B, T,
        C] → [B, T, E]."""
        ...


def masked_attention(
    q_BTHD: Tensor,
    k_BSGD: Tensor,
    v_BSGV: Tensor,
    seen_BTS: Tensor,
    options: AttentionOptions = PLAIN,
    distance_BTS: Tensor | None = None,
) -> Tensor:
    """`plain_attention`, by torch's `scaled_dot_product_attention` where that supports the options.

    The query heads of one key-value head are folded into the query axis, so that keys are never copied (`enable_gqa`
    copies them on CPU).
    """
    if not options.fits_sdpa:
        return plain_attention(q_BTHD, k_BSGD, v_BSGV, seen_BTS, options, distance_BTS)
    B, T, H, D = q_BTHD.shape
    G, V = v_BSGV.shape[2:]
    q = q_BTHD.view(B, T, G, H // G, D).permute(0, 2, 3, 1, 4).reshape(B, G, (H // G) * T, D)
    mask, k, v = seen_BTS[:, None].repeat(1, 1, H // G, 1), k_BSGD.transpose(1, 2), v_BSGV.transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=options.scale)
    return out.view(B, G, H // G, T, V).permute(0, 3, 1, 2, 4).reshape(B, T, H, V)


def distances(count: int, device: torch.device) -> Tensor:
    """Distances between tokens of one row, [1, T, T]: key position − query position."""
    at = torch.arange(count, device=device)
    return (at - at[:, None])[None]


def whole_attention(
    q_BTHD: Tensor,
    k_BTGD: Tensor,
    v_BTGV: Tensor,
    options: AttentionOptions,
    causal: bool,
    distance: Tensor | None = None,
) -> Tensor:
    """Full or causal attention; builds a mask only where one is needed. distance: the result of `distances`, if already
    computed."""
    if options.is_plain:
        gqa = q_BTHD.shape[2] != k_BTGD.shape[2]
        q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTGD, v_BTGV))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=options.scale, enable_gqa=gqa)
        return out.transpose(1, 2)
    distance = distances(q_BTHD.shape[1], q_BTHD.device) if distance is None else distance
    mask = options.apply_window(
        distance <= 0 if causal else torch.ones_like(distance, dtype=torch.bool), distance, causal
    )
    return masked_attention(q_BTHD, k_BTGD, v_BTGV, mask, options, distance)


class RowAttention:
    """The layout of rows that are one document each, without padding."""

    is_cached = False

    def __init__(self, causal: bool) -> None:
        self._causal = causal
        self._distance: Tensor | None = None

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, options: AttentionOptions = PLAIN
    ) -> Tensor:
        if not options.is_plain and self._distance is None:
            # One tensor for all layers, so that a bias made from it is shared.
            self._distance = distances(q_BTHD.shape[1], q_BTHD.device)
        return whole_attention(q_BTHD, k_BTGD, v_BTGV, options, self._causal, self._distance)

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        return run(x_BTC, None, None)[0]


class SharingAttend:
    """A layout for one pass of a stack in which some layers reuse the keys and values of an earlier layer
    (https://arxiv.org/abs/2405.12981). sources: those earlier layers."""

    def __init__(self, attend: Attend, sources: Collection[int]) -> None:
        self._attend, self._sources = attend, sources
        self._key_values: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def is_cached(self) -> bool:
        return self._attend.is_cached

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, options: AttentionOptions = PLAIN
    ) -> Tensor:
        if layer in self._sources:
            self._key_values[layer] = k_BTGD, v_BTGV
        return self._attend(layer, q_BTHD, k_BTGD, v_BTGV, options)

    def attend_shared(self, layer: int, q_BTHD: Tensor, options: AttentionOptions) -> Tensor:
        """Attends to the keys and values of the layer's source: the same tensors, so that a cache need not store them
        twice."""
        return self._attend(layer, q_BTHD, *self._key_values[layer], options)

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        return self._attend.recur(layer, run, x_BTC)


class Attention(nn.Module):
    """Grouped-query attention (https://arxiv.org/abs/2305.13245), with rotary positions where the layer has them.

    With `qk_norm`, queries and keys are normalised before rotation: over each head's features (Qwen3,
    https://arxiv.org/abs/2302.05442), or over the whole projection (OLMo-2). A layer that reuses another layer's keys
    and values has no projections for them; one whose values are its keys has one projection for both.
    """

    def __init__(self, spec: TransformerSpec, layer: int, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.head_dim, self.keys_of = layer, spec.head_dim_of(layer), spec.keys_of(layer)
        scales, has_keys = spec.scales or Scales(), self.keys_of == layer
        self._options = AttentionOptions(scales.attention, scales.attention_cap, spec.window(layer))
        hidden, size = spec.hidden_size, self.head_dim
        q_size, kv_size = spec.attention.heads * size, spec.kv_heads_of(layer) * size
        # With a gate, each head's gate features follow its query's.
        self.gated = spec.attention.gate
        self.q = Linear(hidden, q_size * (1 + self.gated), spec.attention.bias, device, dtype)
        self.k = Linear(hidden, kv_size, spec.has_key_bias, device, dtype) if has_keys else None
        valued = has_keys and not spec.keys_are_values(layer)
        self.v = Linear(hidden, kv_size, spec.attention.bias, device, dtype) if valued else None
        self.o = Linear(q_size, hidden, spec.has_output_bias, device, dtype)
        projections = [projection for projection in (self.q, self.k, self.v) if projection is not None]
        self.joined = FusedLinears(*projections) if len(projections) > 1 else None
        self._plain = not (spec.attention.gate or spec.attention.qk_norm is not None or spec.attention.value_norm)
        self.whole_norm = spec.attention.qk_norm == "projection"
        sizes = (q_size, kv_size) if self.whole_norm else (size, size)
        self.q_norm, self.k_norm = (
            make_norm(spec, device, dtype, norm_size) if spec.attention.qk_norm is not None and present else None
            for norm_size, present in zip(sizes, (True, has_keys), strict=True)
        )
        self.v_norm = RMSNorm(size, spec.norm.eps, weighted=False) if spec.attention.value_norm and has_keys else None
        sinks = torch.zeros(spec.attention.heads, device=device, dtype=dtype) if spec.attention.sinks else None
        self.sinks = None if sinks is None else nn.Parameter(sinks)

    def add_bias(self, bias: Callable[[Tensor], Tensor]) -> None:
        """Sets `AttentionOptions.bias`, whose parameters belong to the stack, not to the layer."""
        self._options = replace(self._options, bias=bias)

    @property
    def options(self) -> AttentionOptions:
        return self._options if self.sinks is None else replace(self._options, sinks=self.sinks)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        B, T, _ = x_BTD.shape
        qkv = None if self.joined is None else self.joined.product(x_BTD)
        gate: Tensor | None = None
        if qkv is not None and self._plain:
            y = attend(self.layer, *self._split_heads(qkv, rotation), self.options)
        else:
            q, k, v = self._products(x_BTD, qkv)
            if self.gated:
                q, gate = (part.flatten(2) for part in q.unflatten(-1, (-1, 2 * self.head_dim)).chunk(2, dim=-1))
            q = self._norm_heads(q, self.q_norm)
            q = q if rotation is None else rotate(q, rotation)
            q = q if rotation is None or rotation.query_scale is None else q * rotation.query_scale
            y = self._attend(q, k, v, rotation, attend)
        y = y.reshape(B, T, -1)
        return self.o(y if gate is None else y * gate.sigmoid())

    def _products(self, x_BTD: Tensor, whole_BTO: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """q, k and v: parts of the fused product if it was computed, else separate products."""
        if whole_BTO is None:
            k = None if self.k is None else self.k(x_BTD)
            return self.q(x_BTD), k, k if self.v is None else self.v(x_BTD)
        sizes = [projection.out_features for projection in (self.q, self.k, self.v) if projection is not None]
        q, k, *v = whole_BTO.split(sizes, dim=-1)
        return q, k, v[0] if v else k

    def _split_heads(self, whole_BTO: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values by heads, from the fused product; queries and keys are rotated as one tensor."""
        heads, q_heads = whole_BTO.unflatten(-1, (-1, self.head_dim)), self.q.out_features // self.head_dim
        kv_heads = (heads.shape[2] - q_heads) // (1 if self.v is None else 2)
        qk, v = heads[:, :, : q_heads + kv_heads], heads[:, :, -kv_heads:]
        rotated = qk if rotation is None else rotate(qk, rotation)
        q, k = rotated[:, :, :q_heads], rotated[:, :, q_heads:]
        return q if rotation is None or rotation.query_scale is None else q * rotation.query_scale, k, v

    def _attend(
        self, q_BTHD: Tensor, k: Tensor | None, v: Tensor | None, rotation: Rotation | None, attend: Attend
    ) -> Tensor:
        """Attention to this layer's keys and values, or to those of its source layer."""
        if k is None or v is None:
            assert isinstance(attend, SharingAttend)
            return attend.attend_shared(self.keys_of, q_BTHD, self.options)
        v_BTGD, k_BTGD = v.unflatten(-1, (-1, self.head_dim)), self._norm_heads(k, self.k_norm)
        k_BTGD = k_BTGD if rotation is None else rotate(k_BTGD, rotation)
        v_BTGD = v_BTGD if self.v_norm is None else self.v_norm(v_BTGD)
        return attend(self.layer, q_BTHD, k_BTGD, v_BTGD, self.options)

    def _norm_heads(self, x: Tensor, norm: Norm | None) -> Tensor:
        """Normalises queries or keys, and splits them into heads."""
        if norm is not None and self.whole_norm:
            x = norm(x)
        x_BTHD = x.unflatten(-1, (-1, self.head_dim))
        return x_BTHD if norm is None or self.whole_norm else norm(x_BTHD)


class CrossAttention(nn.Module):
    """Attention to an encoder's states (https://arxiv.org/abs/1706.03762, section 3.2.3): queries of the decoder's
    tokens, keys and values of S states of E features, without positions."""

    def __init__(self, spec: TransformerSpec, layer: int, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        part, hidden, scales = spec.attention, spec.hidden_size, spec.scales or Scales()
        assert part.cross_size is not None
        self.layer, self.head_dim = layer, part.head_dim
        self.options = AttentionOptions(scales.attention, scales.attention_cap)
        q_size, kv_size = part.heads * part.head_dim, part.kv_heads * part.head_dim
        self.q = Linear(hidden, q_size, part.bias, device, dtype)
        self.k = Linear(part.cross_size, kv_size, spec.has_key_bias, device, dtype)
        self.v = Linear(part.cross_size, kv_size, part.bias, device, dtype)
        self.o = Linear(q_size, hidden, spec.has_output_bias, device, dtype)

    def keys(self, states_BSE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, S, G, D] of the encoder's states."""
        B, S, _ = states_BSE.shape
        k, v = (layer(states_BSE).view(B, S, -1, self.head_dim) for layer in (self.k, self.v))
        return k, v

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        if not isinstance(attend, CrossAttend):
            raise UnsupportedModelError(f"attention to an encoder's states is not supported by {type(attend).__name__}")
        B, T, _ = x_BTD.shape
        q_BTHD = self.q(x_BTD).view(B, T, -1, self.head_dim)
        return self.o(attend.cross_attend(self.layer, q_BTHD, self.options, self.keys).reshape(B, T, -1))


NORM_EPS = 1e-6
"""Epsilon of the latents' norms: DeepSeek's code uses this constant, not the model's."""


class LatentAttentionLayer(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, https://arxiv.org/abs/2405.04434): causal attention whose keys and
    values are projected from one latent per token, with one rotary key shared by all heads.

    Two equivalent forms. Naive: keys and values of every head are projected from the latent, followed by ordinary
    attention. Absorbed: the key projection is applied to the queries, and the value projection after mixing, so that
    attention reads the latents themselves; the cache holds these and the one rotated key that all heads share.

    Shapes: N features of a head without rotation, P with rotation, C of the latent, V of a head's value.
    """

    def __init__(self, spec: TransformerSpec, layer: int, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        part, hidden, heads, bias = spec.attention.latent, spec.hidden_size, spec.attention.heads, spec.attention.bias
        assert part is not None
        self.layer, self.part, self.heads = layer, part, heads
        self.options = AttentionOptions(score_scale(spec), (spec.scales or Scales()).attention_cap, spec.window(layer))
        queries = heads * part.key_dim
        if part.q_rank is None:
            self.q = Linear(hidden, queries, False, device, dtype)
        else:
            self.q_down = Linear(hidden, part.q_rank, bias, device, dtype)
            self.q_norm = RMSNorm(part.q_rank, NORM_EPS, device, dtype)
            self.q_up = Linear(part.q_rank, queries, False, device, dtype)
        self.kv_down = Linear(hidden, part.kv_rank + part.rope_dim, bias, device, dtype)
        self.kv_norm = RMSNorm(part.kv_rank, NORM_EPS, device, dtype)
        self.kv_up = Linear(part.kv_rank, heads * (part.nope_dim + part.value_dim), False, device, dtype)
        self.o = Linear(heads * part.value_dim, hidden, spec.has_output_bias, device, dtype)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        part = self.part
        queries = self.q(x_BTD) if part.q_rank is None else self.q_up(self.q_norm(self.q_down(x_BTD)))
        q_BTHQ = queries.unflatten(-1, (self.heads, part.key_dim))
        q_BTHN, q_BTHP = q_BTHQ.split((part.nope_dim, part.rope_dim), dim=-1)
        latent_BTC, key_BTP = self.kv_down(x_BTD).split((part.kv_rank, part.rope_dim), dim=-1)
        latent_BTC, key_BT1P = self.kv_norm(latent_BTC), key_BTP[:, :, None]
        if rotation is not None:
            q_BTHP, key_BT1P = rotate(q_BTHP, rotation), rotate(key_BT1P, rotation)
        mix = self.absorbed if attend.is_cached else self.naive
        return self.o(mix(q_BTHN, q_BTHP, latent_BTC, key_BT1P, attend).flatten(2))

    def naive(self, q_BTHN: Tensor, q_BTHP: Tensor, latent_BTC: Tensor, key_BT1P: Tensor, attend: Attend) -> Tensor:
        """Attention with the projected keys and values of every head: [B, T, H, V]."""
        part = self.part
        keys_values = self.kv_up(latent_BTC).unflatten(-1, (self.heads, part.nope_dim + part.value_dim))
        k_BTHN, v_BTHV = keys_values.split((part.nope_dim, part.value_dim), dim=-1)
        k = torch.cat((k_BTHN, key_BT1P.expand(-1, -1, self.heads, -1)), dim=-1)
        return attend(self.layer, torch.cat((q_BTHN, q_BTHP), dim=-1), k, v_BTHV, self.options)

    def absorbed(self, q_BTHN: Tensor, q_BTHP: Tensor, latent_BTC: Tensor, key_BT1P: Tensor, attend: Attend) -> Tensor:
        """`naive`, computed over the latents: the one key is the rotated part followed by the latent, the value is the
        latent."""
        q_BTHC = self._through_weights(q_BTHN, keys=True)
        latent_BT1C = latent_BTC[:, :, None]
        q, k = torch.cat((q_BTHP, q_BTHC), dim=-1), torch.cat((key_BT1P, latent_BT1C), dim=-1)
        mixed_BTHC = attend(self.layer, q, k, latent_BT1C, self.options)
        return self._through_weights(mixed_BTHC, keys=False)

    def _through_weights(self, x_BTHX: Tensor, keys: bool) -> Tensor:
        """Queries through the transposed key projection, or latents through the value projection; rows with an adapter
        use its merged weight."""
        hook = self.kv_up.low_rank
        groups = [(None, self.kv_up.weight)] if hook is None else hook.weights()
        if len(groups) == 1 and groups[0][0] is None:
            return self._product(x_BTHX, groups[0][1], keys)
        # Adapters number rows by batch element, or by token of a flat batch.
        flat = len(x_BTHX) == 1
        x_RTHX = x_BTHX.transpose(0, 1) if flat else x_BTHX
        out_RTHX = x_RTHX.new_empty(*x_RTHX.shape[:3], self.part.kv_rank if keys else self.part.value_dim)
        for rows, weight in groups:
            assert rows is not None
            out_RTHX[rows] = self._product(x_RTHX[rows], weight, keys)
        return out_RTHX.transpose(0, 1) if flat else out_RTHX

    def _product(self, x_BTHX: Tensor, weight: Tensor, keys: bool) -> Tensor:
        part = self.part
        weight_HOC = weight.unflatten(0, (self.heads, part.nope_dim + part.value_dim))
        to_key_HNC, to_value_HVC = weight_HOC.split((part.nope_dim, part.value_dim), dim=1)
        if keys:
            return torch.einsum("bthn,hnc->bthc", x_BTHX, to_key_HNC)
        return torch.einsum("bthc,hvc->bthv", x_BTHX, to_value_HVC)


def score_scale(spec: TransformerSpec) -> float:
    """Scale of the scores: 1/√key_dim, with YaRN times DeepSeek's temperature twice, for queries and for keys."""
    assert spec.attention.latent is not None
    if spec.scales is not None and spec.scales.attention is not None:
        return spec.scales.attention
    scale = spec.attention.latent.key_dim**-0.5
    scaling = None if spec.position.rope is None else spec.position.rope.scaling
    if isinstance(scaling, YarnScaling) and scaling.scale_all:
        scale *= yarn_scale(scaling.factor, scaling.scale_all) ** 2
    return scale
