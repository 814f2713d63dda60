"""The decoder: tokens to the states from which the next token is predicted. Knows no family and no cache layout."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.models.inputs import Inputs, Outputs
from bedplate.models.layers.attention import Attend, row_or_segment_attention
from bedplate.models.layers.block import Block, make_norm
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.positions import Rotation, rotary_frequencies, rotation
from bedplate.models.model import Model
from bedplate.models.specs.transformer import TransformerSpec
from bedplate.models.stack import run_blocks


class Decoder(Model):
    """A causal transformer. `head` is apart from the forward pass, so that logits are computed only where needed."""

    can = frozenset(("generate", "score", "embed", "classify"))

    def __init__(
        self,
        spec: TransformerSpec,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(spec.vocab_size, spec.hidden_size, device=device, dtype=dtype)
        self.layers = nn.ModuleList(Block(spec, layer, device, dtype) for layer in range(spec.layers))
        self.norm = make_norm(spec, device, dtype)
        self.lm_head = None if spec.tied_head else Linear(spec.hidden_size, spec.vocab_size, False, device, dtype)
        self._frequencies: Tensor | None = None
        if not self.embedding.weight.is_meta:
            nn.init.normal_(self.embedding.weight, std=spec.hidden_size**-0.5)

    def forward(
        self,
        inputs: Inputs,
        cache: Attend | None = None,
        capture: Collection[str] = (),
        depth: int | None = None,
    ) -> Outputs:
        """Hidden states [B, T, D]: after the final norm, or, with `depth`, after that many blocks and before it.

        `cache` replaces attention within the rows by its own (it holds earlier tokens' keys and values); then
        `inputs.positions` must be given.
        """
        x_BTD = inputs.embedded(self.embedding)
        by = self._rotation(inputs.resolved_positions(), x_BTD.dtype)
        attend = row_or_segment_attention(inputs.segments, causal=True) if cache is None else cache
        x_BTD, captured = run_blocks(self.layers, x_BTD, by, attend, capture, depth)
        return Outputs(x_BTD if depth is not None else self.norm(x_BTD), captured)

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Next-token logits [N, V] of hidden states [N, D]."""
        if self.lm_head is not None:
            return self.lm_head(hidden_ND)
        return F.linear(hidden_ND, self.embedding.weight)

    def _rotation(self, positions_BT: Tensor, dtype: torch.dtype) -> Rotation | None:
        if self.spec.rope is None:
            return None
        if self._frequencies is None or self._frequencies.device != positions_BT.device:
            self._frequencies = rotary_frequencies(self.spec.rope, self.spec.head_dim, positions_BT.device)
        return rotation(positions_BT, self._frequencies, dtype)
