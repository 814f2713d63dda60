"""Heads of encoders: label logits from a pooled vector, and token logits for masked language modelling.

Shapes: N texts or tokens, D features, L labels, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.models.layers.feedforward import ACTIVATIONS
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.norms import make_norm
from bedplate.models.precision import Device
from bedplate.models.specs.transformer import Classifier, MaskedHead, TransformerSpec


class ClassifierHead(nn.Module):
    """A linear layer to the labels, after a dense layer and a norm where `spec.classifier` has them."""

    def __init__(self, spec: TransformerSpec, head: Classifier, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        hidden = spec.hidden_size
        self.dense = Linear(hidden, hidden, head.dense_bias, device, dtype) if head.dense else None
        self.activation = torch.tanh if head.activation == "tanh" else ACTIVATIONS[head.activation]
        self.norm = make_norm(spec, device, dtype) if head.norm else None
        self.out = Linear(hidden, len(head.labels), True, device, dtype)

    def forward(self, pooled_ND: Tensor) -> Tensor:
        """Logits [N, L]."""
        if self.dense is not None:
            pooled_ND = self.activation(self.dense(pooled_ND))
        return self.out(pooled_ND if self.norm is None else self.norm(pooled_ND))


class TokenHead(nn.Module):
    """BERT's head for masked tokens: a dense layer, a norm, and the transposed token table, which is passed in."""

    bias: nn.Parameter | None

    def __init__(self, spec: TransformerSpec, head: MaskedHead, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        hidden = spec.hidden_size
        self.dense = Linear(hidden, hidden, head.dense_bias, device, dtype)
        self.activation = ACTIVATIONS[head.activation]
        self.norm = make_norm(spec, device, dtype)
        bias = nn.Parameter(torch.zeros(spec.vocab_size, device=device, dtype=dtype)) if head.bias else None
        self.register_parameter("bias", bias)

    def forward(self, hidden_ND: Tensor, table_VD: Tensor) -> Tensor:
        """Logits [N, V]."""
        return F.linear(self.norm(self.activation(self.dense(hidden_ND))), table_VD, self.bias)
