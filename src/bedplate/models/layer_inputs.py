"""What every layer is told of a token beside its input: a row of a table of their own, and a projection of the token's
embedding (Gemma 3n's per-layer embeddings, https://huggingface.co/docs/transformers/model_doc/gemma3n)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bedplate.models.inputs import Inputs
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.norms import make_norm
from bedplate.models.model import EmbeddingTable
from bedplate.models.specs.transformer import TransformerSpec

SUM_SCALE = 2.0**-0.5
"""What the sum of the two is multiplied by, so that it varies as much as each."""


class LayerInputs(nn.Module):
    """(√E · row + norm(projection / √D)) / √2 for each of L layers, E features each. Shapes: B rows, T tokens, D hidden
    features."""

    def __init__(self, spec: TransformerSpec, device: torch.device | str | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.size, self.hidden = spec.layer_input_size, spec.hidden_size
        width = spec.layers * self.size
        self.embedding = EmbeddingTable(spec.vocab_size, width, device=device, dtype=dtype)
        self.projection = Linear(spec.hidden_size, width, False, device, dtype)
        self.norm = make_norm(spec, device, dtype, self.size)
        if not self.embedding.weight.is_meta:
            nn.init.normal_(self.embedding.weight, std=self.size**-0.5)

    def forward(self, inputs: Inputs, x_BTD: Tensor) -> Tensor:
        """[B, T, L, E], of the tokens and what the first layer gets. Where vectors stand in the place of tokens, the
        row is that of token 0, as of padding."""
        tokens = inputs.tokens if inputs.vector_mask is None else inputs.tokens.masked_fill(inputs.vector_mask, 0)
        rows_BTLE = self.embedding(tokens).unflatten(-1, (-1, self.size))
        made_BTLE = (self.projection(x_BTD) * self.hidden**-0.5).unflatten(-1, (-1, self.size))
        scale = torch.tensor(self.size**0.5, dtype=rows_BTLE.dtype, device=rows_BTLE.device)
        return (self.norm(made_BTLE) + rows_BTLE * scale) * SUM_SCALE
