"""The encoder–decoder: an encoder reads a text, and a decoder that sees its states writes another (Transformer,
https://arxiv.org/abs/1706.03762; T5, https://arxiv.org/abs/1910.10683; BART, https://arxiv.org/abs/1910.13461)."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.core.errors import ContextLengthExceeded, UsageError
from bedplate.models.inputs import Inputs, Outputs
from bedplate.models.layers.attention import Attend, Attention
from bedplate.models.layers.block import STACK_FIELDS, Block
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.norms import make_norm
from bedplate.models.layers.positions import Rotations, sinusoids
from bedplate.models.layers.relative import RelativePositions
from bedplate.models.model import Model
from bedplate.models.packed.cross_attention import EncoderStatesLayout
from bedplate.models.precision import Device
from bedplate.models.specs.encoder_decoder import EncoderDecoderSpec
from bedplate.models.specs.transformer import Scales, TransformerSpec
from bedplate.models.stack import run_blocks


class Side(nn.Module):
    """One of the two stacks, from its tokens' embeddings to the states after its last norm."""

    def __init__(self, spec: TransformerSpec, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        self.spec, self.scales = spec, spec.scales or Scales()
        rows, hidden = spec.positions, spec.hidden_size
        self.position_embedding = nn.Embedding(rows, hidden, device=device, dtype=dtype) if rows else None
        self.embedding_norm = make_norm(spec, device, dtype) if spec.norms_embedding else None
        self.layers = nn.ModuleList(Block(spec, layer, device, dtype) for layer in range(spec.layers))
        self.norm = make_norm(spec, device, dtype) if spec.norms_output else nn.Identity()
        self._rotations = Rotations(spec)
        self.relative_positions: RelativePositions | None = None
        if spec.position.relative_bias is not None:
            both_ways = spec.kind == "encoder"
            self.relative_positions = RelativePositions(
                spec.position.relative_bias, spec.attention.heads, both_ways, device, dtype
            )
            for block in self.blocks():
                if isinstance(block.attention, Attention):
                    block.attention.add_bias(self.relative_positions.bias)
        if self.position_embedding is not None and not self.position_embedding.weight.is_meta:
            nn.init.normal_(self.position_embedding.weight, std=hidden**-0.5)

    def blocks(self) -> list[Block]:
        return [block for block in self.layers if isinstance(block, Block)]

    def forward(
        self,
        inputs: Inputs,
        table: nn.Embedding,
        attend: Attend,
        capture: Collection[str] = (),
        depth: int | None = None,
    ) -> Outputs:
        """States [B, T, D]: after the last norm, or, with `depth`, after that many blocks and before it."""
        positions_BT = inputs.resolved_positions()
        x_BTD = self._embedded(inputs, table, positions_BT)
        rotations = self._rotations.at(positions_BT, x_BTD.dtype, inputs.known_last)
        try:
            x_BTD, captured = run_blocks(self.layers, x_BTD, rotations, attend, capture, depth)
        finally:
            if self.relative_positions is not None:
                self.relative_positions.forget()
        return Outputs(x_BTD if depth is not None else self.norm(x_BTD), captured)

    def _embedded(self, inputs: Inputs, table: nn.Embedding, positions_BT: Tensor) -> Tensor:
        x_BTD = inputs.embedded(table, self.scales.embedding)
        if self.position_embedding is not None:
            last, rows = inputs.last_position(), self.position_embedding.num_embeddings - self.spec.position.offset
            if last >= rows:
                raise ContextLengthExceeded(
                    f"a text of {last + 1} tokens is longer than the {self.spec.kind}'s {rows} learned positions"
                )
            x_BTD = x_BTD + self.position_embedding(positions_BT + self.spec.position.offset)
        if self.spec.position.sinusoids:
            x_BTD = x_BTD + sinusoids(positions_BT, self.spec.hidden_size, x_BTD.dtype)
        return x_BTD if self.embedding_norm is None else self.embedding_norm(x_BTD)


class EncoderDecoder(Model):
    """`encode` reads; a forward pass writes what follows the decoder's tokens. Both sides read one token table,
    `embedding`, or the decoder one of its own, `target_embedding`."""

    can = frozenset(("generate", "score", "embed", "classify", "encode"))
    reads = STACK_FIELDS | {"cross_size", "relative_bias", "position_offset", "sinusoids", "head_bias"}
    head_bias: Tensor | None

    def __init__(self, spec: EncoderDecoderSpec, device: Device = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.spec, hidden, words = spec, spec.decoder.hidden_size, spec.vocab_size
        self.scales = spec.decoder.scales or Scales()
        self.embedding = nn.Embedding(spec.source_vocab_size, spec.hidden_size, device=device, dtype=dtype)
        separate_tables = not spec.shared_embedding
        self.target_embedding = nn.Embedding(words, hidden, device=device, dtype=dtype) if separate_tables else None
        self.encoder = Side(spec.stack, device, dtype)
        self.decoder = Side(spec.decoder, device, dtype)
        self.lm_head = None if spec.decoder.tied_head else Linear(hidden, words, False, device, dtype)
        bias = torch.zeros(words, device=device, dtype=dtype) if spec.decoder.head_bias else None
        # Its published models add it and never train it.
        self.register_buffer("head_bias", bias)
        for table in (self.embedding, self.target_embedding):
            if table is not None and not table.weight.is_meta:
                nn.init.normal_(table.weight, std=table.embedding_dim**-0.5)

    @property
    def written(self) -> nn.Embedding:
        """The table of the tokens that it writes."""
        return self.embedding if self.target_embedding is None else self.target_embedding

    def encode(
        self,
        inputs: Inputs,
        attend: Attend | None = None,
        capture: Collection[str] = (),
        depth: int | None = None,
    ) -> Outputs:
        """The encoder's states [B, S, D] of what it reads; with `depth`, after that many of its blocks."""
        attend = inputs.layout(causal=False) if attend is None else attend
        return self.encoder(inputs, self.embedding, attend, capture, depth)

    def cross_keys(self, states_BSD: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values [B, S, G, D] of the encoder's states, for each of the decoder's layers."""
        for block in self.decoder.blocks():
            if block.cross is not None:
                yield block.cross.keys(states_BSD)

    def forward(
        self,
        inputs: Inputs,
        cache: Attend | None = None,
        capture: Collection[str] = (),
        depth: int | None = None,
    ) -> Outputs:
        """The decoder's states [B, T, D], where the encoder reads `inputs.encoder` or a `cache` has read it before."""
        attend = cache
        if inputs.encoder is not None:
            self_attend = inputs.layout(causal=True) if cache is None else cache
            states_BSD = self.encode(inputs.encoder).hidden
            attend = EncoderStatesLayout(self_attend, states_BSD, inputs.placed(), inputs.encoder.placed())
        if attend is None:
            raise UsageError("an encoder–decoder writes after what its encoder reads: give that as `Inputs.encoder`")
        return self.decoder(inputs, self.written, attend, capture, depth)

    def token_table(self) -> nn.Embedding:
        """The vectors of tokens [V, D]."""
        return self.embedding

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Next-token logits [N, V] of the decoder's states [N, D]."""
        if self.scales.head != 1:
            hidden_ND = hidden_ND * self.scales.head
        table = self.written.weight
        logits_NV = F.linear(hidden_ND, table) if self.lm_head is None else self.lm_head(hidden_ND)
        return logits_NV if self.head_bias is None else logits_NV + self.head_bias
