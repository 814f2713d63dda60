"""Multi-head latent attention (DeepSeek-V2, https://arxiv.org/abs/2405.04434): keys and values from one latent a token.

Two forms that are equal. Naive: every head's key and value are made of the latent, and attention is as anywhere.
Absorbed: the product that makes keys is moved to the queries and the one that makes values behind the mixing, so that
attention reads the latents themselves; what is cached is them, and one rotated key that all heads share.

Shapes: B rows, T tokens, H heads, N features of a head that do not turn, P of those that do, C of the latent, V of a
head's value.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bedplate.models.layers.attention import Attend
from bedplate.models.layers.attention_options import AttentionOptions
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.norms import RMSNorm
from bedplate.models.layers.positions import Rotation, rotate
from bedplate.models.precision import Device
from bedplate.models.specs.position import yarn_scale
from bedplate.models.specs.transformer import Scales, TransformerSpec, YarnScaling

NORM_EPS = 1e-6
"""Epsilon of the latents' norms in DeepSeek's code, which does not take the model's."""


class LatentAttentionLayer(nn.Module):
    """Causal attention over latents with rotary positions beside them."""

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
        q_BTHQ = self._queries(x_BTD).unflatten(-1, (self.heads, part.key_dim))
        q_BTHN, q_BTHP = q_BTHQ.split((part.nope_dim, part.rope_dim), dim=-1)
        latent_BTC, key_BTP = self.kv_down(x_BTD).split((part.kv_rank, part.rope_dim), dim=-1)
        latent_BTC, key_BT1P = self.kv_norm(latent_BTC), key_BTP[:, :, None]
        if rotation is not None:
            q_BTHP, key_BT1P = rotate(q_BTHP, rotation), rotate(key_BT1P, rotation)
        mix = self.absorbed if attend.is_cached else self.naive
        return self.o(mix(q_BTHN, q_BTHP, latent_BTC, key_BT1P, attend).flatten(2))

    def _queries(self, x_BTD: Tensor) -> Tensor:
        return self.q(x_BTD) if self.part.q_rank is None else self.q_up(self.q_norm(self.q_down(x_BTD)))

    def naive(self, q_BTHN: Tensor, q_BTHP: Tensor, latent_BTC: Tensor, key_BT1P: Tensor, attend: Attend) -> Tensor:
        """Every head's keys and values are made: [B, T, H, V]."""
        part = self.part
        keys_values = self.kv_up(latent_BTC).unflatten(-1, (self.heads, part.nope_dim + part.value_dim))
        k_BTHN, v_BTHV = keys_values.split((part.nope_dim, part.value_dim), dim=-1)
        k = torch.cat((k_BTHN, key_BT1P.expand(-1, -1, self.heads, -1)), dim=-1)
        return attend(self.layer, torch.cat((q_BTHN, q_BTHP), dim=-1), k, v_BTHV, self.options)

    def absorbed(self, q_BTHN: Tensor, q_BTHP: Tensor, latent_BTC: Tensor, key_BT1P: Tensor, attend: Attend) -> Tensor:
        """`naive`, over the latents: the one key is the rotated part before the latent, the value the latent."""
        q_BTHC = self._through_weights(q_BTHN, keys=True)
        latent_BT1C = latent_BTC[:, :, None]
        q, k = torch.cat((q_BTHP, q_BTHC), dim=-1), torch.cat((key_BT1P, latent_BT1C), dim=-1)
        mixed_BTHC = attend(self.layer, q, k, latent_BT1C, self.options)
        return self._through_weights(mixed_BTHC, keys=False)

    def _through_weights(self, x_BTHX: Tensor, keys: bool) -> Tensor:
        """Queries through the transposed product that makes keys, or latents through that which makes values; rows with
        an adapter through that product with it."""
        hook = self.kv_up.low_rank
        groups = [(None, self.kv_up.weight)] if hook is None else hook.weights()
        if len(groups) == 1 and groups[0][0] is None:
            return self._product(x_BTHX, groups[0][1], keys)
        # Rows are numbered along the batch, or along the tokens of a flat one.
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
    """Scale of the scores: 1/√key_dim, and with YaRN DeepSeek's temperature twice, for queries and for keys."""
    assert spec.attention.latent is not None
    if spec.scales is not None and spec.scales.attention is not None:
        return spec.scales.attention
    scale = spec.attention.latent.key_dim**-0.5
    scaling = None if spec.position.rope is None else spec.position.rope.scaling
    if isinstance(scaling, YarnScaling) and scaling.scale_all:
        scale *= yarn_scale(scaling.factor, scaling.scale_all) ** 2
    return scale
