"""The encoder: tokens to hidden states in which every token sees every other, or its neighbours (BERT,
https://arxiv.org/abs/1810.04805; ModernBERT, https://arxiv.org/abs/2412.13663), and the heads behind it: label logits
from a pooled vector, and token logits for masked language modelling.

Shapes: N texts or tokens, D features, L labels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.core.errors import ContextLengthExceeded, UsageError
from bedplate.models.inputs import Inputs, Outputs
from bedplate.models.layers.attention import Attend
from bedplate.models.layers.block import BLOCK_FIELDS
from bedplate.models.layers.feedforward import ACTIVATIONS
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.norms import make_norm
from bedplate.models.model import Model
from bedplate.models.precision import Device
from bedplate.models.specs.transformer import Classifier, MaskedHead, TransformerSpec
from bedplate.models.stack import EmbeddingTable, Stack, draw_tables


class Pooler(Linear):
    """The first token's pooled features tanh(W h + b), [N, D], of hidden states [N, D]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


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


class Encoder(Stack, Model):
    """A bidirectional transformer with learned or rotary positions."""

    can = frozenset(("embed", "classify"))
    reads = BLOCK_FIELDS | {
        *("token_types", "pooler", "position_rows", "position_offset", "embedding_norm", "final_norm"),
        *("classifier", "masked_head"),
    }

    def __init__(self, spec: TransformerSpec, device: Device = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.spec = spec
        hidden = spec.hidden_size
        self.embedding = EmbeddingTable(spec.vocab_size, hidden, device=device, dtype=dtype)
        self.add_stack(spec, device, dtype)
        # Without a classifier on it, it is carried for lossless export: sentence embeddings pool the hidden states.
        self.pooler = Pooler(hidden, hidden, True, device, dtype) if spec.pooler else None
        head = spec.classifier
        self.classifier = None if head is None else ClassifierHead(spec, head, device, dtype)
        masked = spec.masked_head
        self.masked_head = None if masked is None else TokenHead(spec, masked, device, dtype)
        if masked is not None:
            draw_tables(self.embedding)  # it gives logits too

    def token_table(self) -> nn.Embedding:
        """The vectors of tokens [V, D]."""
        return self.embedding

    def forward(
        self, inputs: Inputs, cache: Attend | None = None, capture: Collection[str] = (), depth: int | None = None
    ) -> Outputs:
        """Hidden states [B, T, D]: after the final norm where there is one, or, with `depth`, after that many blocks
        and before it."""
        last = inputs.last_position()
        if last >= self.spec.context_length:
            raise ContextLengthExceeded(
                f"a text of {last + 1} tokens is longer than the encoder's {self.spec.context_length}"
            )
        attend = inputs.layout(causal=False) if cache is None else cache
        return self.states(inputs, self.embedding, attend, capture, depth, last)

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] of the tokens that stood where the states [N, D] are from. UsageError for an encoder without
        the head of its pretraining."""
        if self.masked_head is None:
            can = ", ".join(sorted(self.can))
            raise UsageError(
                f"this encoder has no next-token logits; it can {can}. Which tokens were hidden it cannot say either: "
                "it has no head of its pretraining (spec.masked_head)"
            )
        return self.masked_head(hidden_ND, self.embedding.weight)

    def label_logits(self, pooled_ND: Tensor) -> Tensor:
        if self.classifier is None:
            return super().label_logits(pooled_ND)
        on_pooler = self.spec.classifier is not None and self.spec.classifier.on_pooler
        return self.classifier(self.pooler(pooled_ND) if on_pooler and self.pooler is not None else pooled_ND)
