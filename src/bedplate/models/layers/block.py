"""The transformer block: a token mixer (attention, convolution, recurrence) and a feed-forward (dense, experts), each
with a residual connection and norms.

Each layer's spec names its mixer and its feed-forward (`TransformerSpec.mixer`, `.feedforward_kind`); a new one needs
an entry in MIXERS or FEEDFORWARDS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from bedplate.models.layers.attention import Attend, Attention, CrossAttention, LatentAttentionLayer
from bedplate.models.layers.experts import MixtureOfExperts, ParallelExperts
from bedplate.models.layers.feedforward import FeedForward, PerLayerEmbeddingGate
from bedplate.models.layers.norms import add_norm, make_norm
from bedplate.models.layers.positions import Rotation
from bedplate.models.layers.recomputation import recompute_in_backward
from bedplate.models.layers.recurrence import ConvolutionMixer, DeltaRuleMixer, Mamba2Mixer
from bedplate.models.precision import Device
from bedplate.models.specs.transformer import FeedForwardKind, Mixer, Scales, TransformerSpec

ModuleFactory = Callable[[TransformerSpec, int, Device, torch.dtype], nn.Module]

MIXERS: Mapping[Mixer, ModuleFactory] = {
    "attention": Attention,
    "latent": LatentAttentionLayer,
    "convolution": ConvolutionMixer,
    "delta_rule": DeltaRuleMixer,
    "mamba2": Mamba2Mixer,
}
"""Called with x [B, T, D], the layer's rotation or None, and the layout: → [B, T, D]."""

FEEDFORWARDS: Mapping[FeedForwardKind, ModuleFactory] = {"dense": FeedForward, "experts": MixtureOfExperts}
"""Called with x [B, T, D]: → [B, T, D]."""

BLOCK_FIELDS = frozenset(
    (
        *("kind", "vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "feedforward_size"),
        *("context_length", "norm", "norm_eps", "norm_placement", "rope", "activation", "gated", "attention_bias"),
        *("feedforward_bias", "tied_head", "pooling", "windows", "local_rope", "key_bias", "output_bias", "qk_norm"),
        *("norm_weight", "norm_bias", "norm_offset", "first_norm", "parallel", "attention_sinks", "rope_layers"),
        *("latent", "experts", "prediction_modules", "attention_gate", "full", "value_norm"),
    )
)
"""The flat spec fields that blocks implement, or that do not concern them; an architecture adds its own. Every other
field must have the value that corresponds to a block without that feature."""
STACK_FIELDS = BLOCK_FIELDS | {"position_rows", "embedding_norm", "final_norm", "scales", "state", "state_layers"}
"""`BLOCK_FIELDS`, and those of stacks with a token embedding."""


class Block(nn.Module):
    """One block of a stack, as the spec describes it.

    Norms are placed "pre" (https://arxiv.org/abs/2002.04745), "post", "branch" (OLMo-2) or "sandwich" (Gemma-2); mixer
    and feed-forward run in sequence, or in parallel on the block's input (GPT-J, GPT-NeoX). A decoder with an encoder
    has cross-attention between them ("pre" and "post" only). With per-layer embeddings (Gemma 3n), their gated branch
    and its norm come last, then the output scale.
    """

    output_scale: Tensor | None

    def __init__(self, spec: TransformerSpec, layer: int, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        self.placement, self.parallel = spec.norm.placement, spec.parallel
        self.residual = (spec.scales or Scales()).residual
        sandwich = spec.norm.placement == "sandwich"
        normed = layer > 0 or spec.norm.first or sandwich
        self.attention_norm = make_norm(spec, device, dtype) if normed else nn.Identity()
        self.attention = MIXERS[spec.mixer(layer)](spec, layer, device, dtype)
        self.attention_after_norm = make_norm(spec, device, dtype) if sandwich else None
        crosses = spec.attention.cross_size is not None
        self.cross_norm = make_norm(spec, device, dtype) if crosses else None
        self.cross = CrossAttention(spec, layer, device, dtype) if crosses else None
        self.feedforward_norm = make_norm(spec, device, dtype)
        self.feedforward = FEEDFORWARDS[spec.feedforward_kind(layer)](spec, layer, device, dtype)
        self.feedforward_after_norm = make_norm(spec, device, dtype) if sandwich else None
        self.beside = ParallelExperts(spec, layer, device, dtype) if spec.has_beside(layer) else None
        has_input = spec.layer_input_size > 0
        self.layer_input = PerLayerEmbeddingGate(spec, device, dtype) if has_input else None
        self.layer_input_norm = make_norm(spec, device, dtype) if has_input else None
        self.register_buffer("output_scale", torch.ones(1, device=device, dtype=dtype) if spec.output_scales else None)

    def forward(
        self, x_BTD: Tensor, rotation: Rotation | None, attend: Attend, given_BTE: Tensor | None = None
    ) -> Tensor:
        """The block's output [B, T, D]. given: the layer's per-layer embeddings, where the spec has them."""
        x_BTD, y_BTD = self.forward_unsummed(x_BTD, None, rotation, attend, given_BTE)
        return x_BTD if y_BTD is None else x_BTD + y_BTD

    def forward_unsummed(
        self,
        x_BTD: Tensor,
        y_BTD: Tensor | None,
        rotation: Rotation | None,
        attend: Attend,
        given_BTE: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """`forward` of x + y that returns its last residual sum as two terms, so that the next norm can fuse with
        it."""
        x_BTD, y_BTD = self._parts(x_BTD, y_BTD, rotation, attend)
        if self.layer_input is None and self.output_scale is None:
            return x_BTD, y_BTD
        x_BTD = x_BTD if y_BTD is None else x_BTD + y_BTD
        if self.layer_input is not None and self.layer_input_norm is not None and given_BTE is not None:
            x_BTD = x_BTD + self.layer_input_norm(self.layer_input(x_BTD, given_BTE))
        return x_BTD if self.output_scale is None else x_BTD * self.output_scale, None

    def _parts(
        self, x_BTD: Tensor, y_BTD: Tensor | None, rotation: Rotation | None, attend: Attend
    ) -> tuple[Tensor, Tensor | None]:
        """Applies the mixer and the feed-forward, each with its residual."""
        if self.placement == "post":
            return self._post_norm(x_BTD if y_BTD is None else x_BTD + y_BTD, rotation, attend), None
        if self.placement == "branch":
            x_BTD = x_BTD if y_BTD is None else x_BTD + y_BTD
            x_BTD = x_BTD + self._scaled(self.attention_norm(self.attention(x_BTD, rotation, attend)))
            return x_BTD, self._scaled(self.feedforward_norm(self.feedforward(x_BTD)))
        x_BTD, normed = add_norm(x_BTD, y_BTD, self.attention_norm)
        with recompute_in_backward(normed, self.attention_norm, x_BTD):
            mixed = self.attention(normed, rotation, attend)
        mixed = self._branch(mixed, self.attention_after_norm)
        if self.parallel:
            return x_BTD + mixed, self._fed(x_BTD, self.feedforward_norm(x_BTD))
        if self.cross is not None and self.cross_norm is not None:
            x_BTD, normed = add_norm(x_BTD, mixed, self.cross_norm)
            with recompute_in_backward(normed, self.cross_norm, x_BTD):
                mixed = self.cross(normed, rotation, attend)
            mixed = self._scaled(mixed)
        x_BTD, normed = add_norm(x_BTD, mixed, self.feedforward_norm)
        return x_BTD, self._fed(x_BTD, normed)

    def _fed(self, x_BTD: Tensor, normed_BTD: Tensor) -> Tensor:
        """The feed-forward's contribution to the residual stream."""
        with recompute_in_backward(normed_BTD, self.feedforward_norm, x_BTD):
            fed_BTD = self.feedforward(normed_BTD)
        if self.beside is not None:
            fed_BTD = self.beside(x_BTD, fed_BTD)
        return self._branch(fed_BTD, self.feedforward_after_norm)

    def _post_norm(self, x_BTD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        x_BTD = self.attention_norm(x_BTD + self._scaled(self.attention(x_BTD, rotation, attend)))
        if self.cross is not None and self.cross_norm is not None:
            x_BTD = self.cross_norm(x_BTD + self._scaled(self.cross(x_BTD, rotation, attend)))
        return self.feedforward_norm(x_BTD + self._scaled(self.feedforward(x_BTD)))

    def _branch(self, y_BTD: Tensor, norm: nn.Module | None) -> Tensor:
        """A branch's contribution to the residual stream."""
        return self._scaled(y_BTD if norm is None else norm(y_BTD))

    def _scaled(self, y_BTD: Tensor) -> Tensor:
        return y_BTD if self.residual == 1 else y_BTD * self.residual
