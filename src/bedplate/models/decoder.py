"""The decoder: tokens to the states from which the next token is predicted. Knows no family and no cache layout."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.core.errors import ContextLengthExceeded, UsageError
from bedplate.models.inputs import Inputs, Outputs
from bedplate.models.layers.attention import Attend, SharingAttend
from bedplate.models.layers.block import STACK_FIELDS, Block
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.norms import make_norm
from bedplate.models.layers.positions import Rotation, Rotations
from bedplate.models.layers.routing import collect_routings
from bedplate.models.model import EmbeddingTable, Model
from bedplate.models.precision import Device
from bedplate.models.specs.transformer import Scales, TransformerSpec
from bedplate.models.stack import run_blocks


class Decoder(Model):
    """A causal transformer. `head` is apart from the forward pass, so that logits are computed only where needed."""

    can = frozenset(("generate", "score", "embed", "classify"))
    reads = STACK_FIELDS | {"shared_keys", "layer_input_size", "output_scales"}

    def __init__(self, spec: TransformerSpec, device: Device = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.spec, self.scales = spec, spec.scales or Scales()
        self.embedding = EmbeddingTable(spec.vocab_size, spec.hidden_size, device=device, dtype=dtype)
        self.position_embedding = (
            EmbeddingTable(spec.positions, spec.hidden_size, device=device, dtype=dtype) if spec.positions else None
        )
        self.embedding_norm = make_norm(spec, device, dtype) if spec.norms_embedding else None
        self.layer_inputs = LayerInputs(spec, device, dtype) if spec.layer_input_size else None
        self._shared = frozenset(source for n in range(spec.layers) if (source := spec.keys_of(n)) != n)
        self.layers = nn.ModuleList(Block(spec, layer, device, dtype) for layer in range(spec.layers))
        self.norm = make_norm(spec, device, dtype) if spec.norms_output else nn.Identity()
        self.lm_head = None if spec.tied_head else Linear(spec.hidden_size, spec.vocab_size, False, device, dtype)
        self.predictions = nn.ModuleList(
            PredictionModule(spec, number, device, dtype) for number in range(spec.prediction_modules)
        )
        self._rotations = Rotations(spec)
        for table in (self.embedding, self.position_embedding):
            if table is not None and not table.weight.is_meta:
                nn.init.normal_(table.weight, std=spec.hidden_size**-0.5)

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
        positions_BT = inputs.resolved_positions()
        x_BTD = self._embedded(inputs, positions_BT)
        rotations = self._rotations.at(positions_BT, x_BTD.dtype, inputs.known_last)
        attend = inputs.layout(causal=True) if cache is None else cache
        attend = SharingAttend(attend, self._shared) if self._shared else attend
        layer_inputs = None if self.layer_inputs is None else self.layer_inputs(inputs, x_BTD)
        with collect_routings() as routings:
            x_BTD, captured = run_blocks(self.layers, x_BTD, rotations, attend, capture, depth, layer_inputs)
        return Outputs(x_BTD if depth is not None else self.norm(x_BTD), captured, tuple(routings))

    def predict_ahead(self, hidden_BTD: Tensor, inputs: Inputs, cache: Attend | None = None) -> tuple[Tensor, ...]:
        """States [B, T, D] of each prediction module, from which `head` predicts the token two, three, … places on;
        of a document's last ones, after which there are not so many, they say nothing (the last one stands for those).

        hidden: what `forward` gave for these inputs. UsageError for a shared prefix: what follows on its last token is
        not one token.
        """
        placement = inputs.placed()
        if placement is not None and any(document.segment == 0 for document in placement.documents):
            raise UsageError("further tokens cannot be predicted after a prefix that several documents share")
        positions_BT = inputs.resolved_positions()
        rotation = self._rotations.at(positions_BT, hidden_BTD.dtype, inputs.known_last)[-1]
        attend = inputs.layout(causal=True) if cache is None else cache
        x_BTD, states = self._embedded(inputs, positions_BT), [hidden_BTD]
        for module in self.predictions:
            x_BTD = _following(x_BTD, inputs.segments)
            states.append(module(states[-1], x_BTD, rotation, attend))
        return tuple(states[1:])

    def token_table(self) -> nn.Embedding:
        """The vectors of tokens [V, D]."""
        return self.embedding

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Next-token logits [N, V] of hidden states [N, D]."""
        if self.scales.head != 1:
            hidden_ND = hidden_ND * self.scales.head
        table = self.embedding.weight
        logits_NV = F.linear(hidden_ND, table) if self.lm_head is None else self.lm_head(hidden_ND)
        cap = self.scales.logit_cap
        return logits_NV if cap is None else torch.tanh(logits_NV / cap) * cap

    def _embedded(self, inputs: Inputs, positions_BT: Tensor) -> Tensor:
        """What the first block gets."""
        x_BTD = inputs.embedded(self.embedding, self.scales.embedding)
        if self.position_embedding is not None:
            last, rows = inputs.last_position(), self.position_embedding.num_embeddings
            if last >= rows:
                raise ContextLengthExceeded(
                    f"a text of {last + 1} tokens is longer than the model's {rows} learned positions"
                )
            x_BTD = x_BTD + self.position_embedding(positions_BT)
        return x_BTD if self.embedding_norm is None else self.embedding_norm(x_BTD)


def _following(x_BTD: Tensor, segments_BT: Tensor | None) -> Tensor:
    """What stands one place on in the same document; at its end, what stands there."""
    next_BTD = torch.cat((x_BTD[:, 1:], x_BTD[:, -1:]), dim=1)
    if segments_BT is None:
        return next_BTD
    ends_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    ends_BT[:, :-1] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return torch.where(ends_BT[..., None], x_BTD, next_BTD)


SUM_SCALE = 2.0**-0.5
"""What the sum of the two is multiplied by, so that it varies as much as each."""


class LayerInputs(nn.Module):
    """What every layer is told of a token beside its input (Gemma 3n's per-layer embeddings,
    https://huggingface.co/docs/transformers/model_doc/gemma3n): (√E · row + norm(projection / √D)) / √2 for each of L
    layers, E features each, of a row of a table of their own and a projection of the token's embedding."""

    def __init__(self, spec: TransformerSpec, device: Device, dtype: torch.dtype) -> None:
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


class PredictionModule(nn.Module):
    """A module after the last block that predicts a further token (DeepSeek-V3, https://arxiv.org/abs/2412.19437).

    Module m, counted from 0, makes of its predecessor's state of a token and of the token m places on the state from
    which the one after that is predicted. All share the model's token table and its head.
    """

    def __init__(self, spec: TransformerSpec, number: int, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        hidden = spec.hidden_size
        self.token_norm, self.state_norm = make_norm(spec, device, dtype), make_norm(spec, device, dtype)
        self.join = Linear(2 * hidden, hidden, False, device, dtype)
        self.block = Block(spec, spec.layers + number, device, dtype)
        self.norm = make_norm(spec, device, dtype)

    def forward(self, state_BTD: Tensor, token_BTD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        """From the states before it and the embeddings of the tokens that are known by now."""
        joined = torch.cat((self.token_norm(token_BTD), self.state_norm(state_BTD)), dim=-1)
        return self.norm(self.block(self.join(joined), rotation, attend))
