"""The feed-forward block (MLP): plain, or gated (SwiGLU and others, https://arxiv.org/abs/2002.05202)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.models.layers.fused.custom_ops import operation
from bedplate.models.layers.fused.linears import FusedLinears
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.recomputation import gated, recompute_in_backward
from bedplate.models.precision import Device
from bedplate.models.specs.parts import Activation
from bedplate.models.specs.transformer import TransformerSpec


def relu2(x: Tensor) -> Tensor:
    """relu(x)² (Primer, https://arxiv.org/abs/2109.08668)."""
    return F.relu(x).square()


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x) (https://arxiv.org/abs/1606.08415, section 2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": relu2,
    "quick_gelu": quick_gelu,
}


def _gated(gate_up: Tensor, activation: Activation) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * up


_GATED = operation("gated(Tensor both, str activation) -> Tensor", _gated)
"""act(gate) ⊙ up of [..., gate and up behind it]."""


class FeedForward(nn.Module):
    """`down(act(gate x) ⊙ up x)`, or `down(act(up x))` without a gate. size: intermediate features, where not the
    spec's."""

    def __init__(
        self, spec: TransformerSpec, layer: int, device: Device, dtype: torch.dtype, size: int | None = None
    ) -> None:
        super().__init__()
        hidden, inner_size, bias = spec.hidden_size, size or spec.feedforward_size_of(layer), spec.feedforward.bias
        self.activation, self._named = ACTIVATIONS[spec.feedforward.activation], spec.feedforward.activation
        self.gate = Linear(hidden, inner_size, bias, device, dtype) if spec.feedforward.gated else None
        self.up = Linear(hidden, inner_size, bias, device, dtype)
        self.down = Linear(inner_size, hidden, bias, device, dtype)
        self.joined = None if self.gate is None else FusedLinears(self.gate, self.up)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_up = None if self.joined is None else self.joined.product(x_BTD)
        if gate_up is not None:
            return self.down(_GATED(gate_up, self._named))
        up_BTI = self.up(x_BTD)
        if self.gate is None:
            h_BTI = self.activation(up_BTI)
            with recompute_in_backward(h_BTI, self.activation, up_BTI):
                return self.down(h_BTI)
        gate_BTI = self.gate(x_BTD)
        h_BTI = gated(gate_BTI, up_BTI, self.activation)
        with recompute_in_backward(h_BTI, partial(gated, activation=self.activation), gate_BTI, up_BTI):
            return self.down(h_BTI)


class PerLayerEmbeddingGate(nn.Module):
    """`down(act(gate x) ⊙ e)`: a gated feed-forward whose second factor is the token's per-layer embedding (Gemma 3n,
    https://huggingface.co/docs/transformers/model_doc/gemma3n). x [B, T, D], e [B, T, E]."""

    def __init__(self, spec: TransformerSpec, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[spec.feedforward.activation]
        self.gate = Linear(spec.hidden_size, spec.layer_input_size, False, device, dtype)
        self.down = Linear(spec.layer_input_size, spec.hidden_size, False, device, dtype)

    def forward(self, x_BTD: Tensor, given_BTE: Tensor) -> Tensor:
        gate_BTE = self.gate(x_BTD)
        return self.down(gated(gate_BTE, given_BTE, self.activation))
