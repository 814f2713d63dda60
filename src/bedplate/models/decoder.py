"""The decoder: tokens to the states from which the next token is predicted. Knows no family and no cache layout."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from bedplate.core.errors import UsageError
from bedplate.models.inputs import Inputs, Outputs
from bedplate.models.layers.attention import Attend
from bedplate.models.layers.block import STACK_FIELDS, Block
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.norms import make_norm
from bedplate.models.layers.positions import Rotation
from bedplate.models.model import Model
from bedplate.models.precision import Device
from bedplate.models.specs.transformer import TransformerSpec
from bedplate.models.stack import EmbeddingTable, Stack, draw_tables


class Decoder(Stack, Model):
    """A causal transformer. `head` is apart from the forward pass, so that logits are computed only where needed."""

    can = frozenset(("generate", "score", "embed", "classify"))
    reads = STACK_FIELDS | {"shared_keys", "layer_input_size", "output_scales"}

    def __init__(self, spec: TransformerSpec, device: Device = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = EmbeddingTable(spec.vocab_size, spec.hidden_size, device=device, dtype=dtype)
        self.add_stack(spec, device, dtype)
        self.lm_head = None if spec.tied_head else Linear(spec.hidden_size, spec.vocab_size, False, device, dtype)
        self.predictions = nn.ModuleList(
            PredictionModule(spec, number, device, dtype) for number in range(spec.prediction_modules)
        )
        draw_tables(self.embedding, self.position_embedding)

    def forward(
        self, inputs: Inputs, cache: Attend | None = None, capture: Collection[str] = (), depth: int | None = None
    ) -> Outputs:
        """Hidden states [B, T, D]: after the final norm, or, with `depth`, after that many blocks and before it.

        `cache` replaces attention within the rows by its own (it holds earlier tokens' keys and values); then
        `inputs.positions` must be given.
        """
        attend = inputs.layout(causal=True) if cache is None else cache
        return self.states(inputs, self.embedding, attend, capture, depth)

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
        x_BTD, states = self.embedded(inputs, self.embedding, positions_BT), [hidden_BTD]
        for module in self.predictions:
            x_BTD = _following(x_BTD, inputs.segments)
            states.append(module(states[-1], x_BTD, rotation, attend))
        return tuple(states[1:])

    def token_table(self) -> nn.Embedding:
        """The vectors of tokens [V, D]."""
        return self.embedding

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Next-token logits [N, V] of hidden states [N, D]."""
        return self.next_token_logits(hidden_ND, self.embedding.weight, self.lm_head)


def _following(x_BTD: Tensor, segments_BT: Tensor | None) -> Tensor:
    """What stands one place on in the same document; at its end, what stands there."""
    next_BTD = torch.cat((x_BTD[:, 1:], x_BTD[:, -1:]), dim=1)
    if segments_BT is None:
        return next_BTD
    ends_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    ends_BT[:, :-1] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return torch.where(ends_BT[..., None], x_BTD, next_BTD)


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
