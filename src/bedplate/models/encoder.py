"""The encoder: tokens to hidden states in which every token sees every other (BERT, https://arxiv.org/abs/1810.04805)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from bedplate.core.errors import ContextLengthExceeded
from bedplate.models.inputs import Inputs, Outputs
from bedplate.models.layers.attention import Attend, row_or_segment_attention
from bedplate.models.layers.block import Block
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.norms import make_norm
from bedplate.models.layers.positions import Rotations
from bedplate.models.model import Model
from bedplate.models.specs.transformer import TransformerSpec
from bedplate.models.stack import run_blocks


class Pooler(Linear):
    """The first token's pooled features tanh(W h + b), [N, D], of hidden states [N, D]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


class Encoder(Model):
    """A bidirectional transformer with learned positions. Every token is of type 0."""

    can = frozenset(("embed", "classify"))

    def __init__(
        self,
        spec: TransformerSpec,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.spec = spec
        hidden = spec.hidden_size
        self.embedding = nn.Embedding(spec.vocab_size, hidden, device=device, dtype=dtype)
        self.position_embedding = nn.Embedding(spec.context_length, hidden, device=device, dtype=dtype)
        self.token_type_embedding = nn.Embedding(spec.token_types, hidden, device=device, dtype=dtype)
        self.embedding_norm = make_norm(spec, device, dtype)
        self.layers = nn.ModuleList(Block(spec, layer, device, dtype) for layer in range(spec.layers))
        self._rotations = Rotations(spec)
        # Carried for lossless export; sentence embeddings pool the hidden states instead.
        self.pooler = Pooler(hidden, hidden, True, device, dtype) if spec.pooler else None

    def forward(
        self,
        inputs: Inputs,
        cache: Attend | None = None,
        capture: Collection[str] = (),
        depth: int | None = None,
    ) -> Outputs:
        """Hidden states [B, T, D] of the last block (or after `depth` blocks)."""
        positions = inputs.resolved_positions()
        if positions.numel() and int(positions.max()) >= self.spec.context_length:
            raise ContextLengthExceeded(
                f"a text of {int(positions.max()) + 1} tokens is longer than the encoder's {self.spec.context_length}"
            )
        x_BTD = inputs.embedded(self.embedding) + self.token_type_embedding.weight[0]
        x_BTD = self.embedding_norm(x_BTD + self.position_embedding(positions))
        by = self._rotations.at(positions, x_BTD.dtype)
        attend = row_or_segment_attention(inputs.segments, causal=False) if cache is None else cache
        x_BTD, captured = run_blocks(self.layers, x_BTD, by, attend, capture, depth)
        return Outputs(x_BTD, captured)
