"""The encoder–decoder: an encoder reads a text, and a decoder that sees its states writes another (Transformer,
https://arxiv.org/abs/1706.03762; T5, https://arxiv.org/abs/1910.10683; BART, https://arxiv.org/abs/1910.13461)."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from bedplate.core.errors import UsageError
from bedplate.models.inputs import Inputs, Outputs
from bedplate.models.layers.attention import Attend
from bedplate.models.layers.block import STACK_FIELDS
from bedplate.models.layers.linear import Linear
from bedplate.models.model import EmbeddingTable, Model
from bedplate.models.packed.cross_attention import EncoderStatesLayout
from bedplate.models.precision import Device
from bedplate.models.specs.encoder_decoder import EncoderDecoderSpec
from bedplate.models.specs.transformer import TransformerSpec
from bedplate.models.stack import Stack, draw_tables


class Side(Stack):
    """One of the two stacks, from its tokens' embeddings to the states after its last norm."""

    def __init__(self, spec: TransformerSpec, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        self.add_stack(spec, device, dtype)
        draw_tables(self.position_embedding)


class EncoderDecoder(Model):
    """`encode` reads; a forward pass writes what follows the decoder's tokens. Both sides read one token table,
    `embedding`, or the decoder one of its own, `target_embedding`."""

    can = frozenset(("generate", "score", "embed", "classify", "encode"))
    reads = STACK_FIELDS | {"cross_size", "relative_bias", "position_offset", "sinusoids", "head_bias"}
    head_bias: Tensor | None

    def __init__(self, spec: EncoderDecoderSpec, device: Device = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.spec, hidden, words = spec, spec.decoder.hidden_size, spec.vocab_size
        self.embedding = EmbeddingTable(spec.source_vocab_size, spec.hidden_size, device=device, dtype=dtype)
        separate_tables = not spec.shared_embedding
        self.target_embedding = EmbeddingTable(words, hidden, device=device, dtype=dtype) if separate_tables else None
        self.encoder = Side(spec.stack, device, dtype)
        self.decoder = Side(spec.decoder, device, dtype)
        self.lm_head = None if spec.decoder.tied_head else Linear(hidden, words, False, device, dtype)
        bias = torch.zeros(words, device=device, dtype=dtype) if spec.decoder.head_bias else None
        # Its published models add it and never train it.
        self.register_buffer("head_bias", bias)
        draw_tables(self.embedding, self.target_embedding)

    @property
    def written(self) -> nn.Embedding:
        """The table of the tokens that it writes."""
        return self.embedding if self.target_embedding is None else self.target_embedding

    def encode(
        self, inputs: Inputs, attend: Attend | None = None, capture: Collection[str] = (), depth: int | None = None
    ) -> Outputs:
        """The encoder's states [B, S, D] of what it reads; with `depth`, after that many of its blocks."""
        attend = inputs.layout(causal=False) if attend is None else attend
        return self.encoder.states(inputs, self.embedding, attend, capture, depth)

    def cross_keys(self, states_BSD: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values [B, S, G, D] of the encoder's states, for each of the decoder's layers."""
        for block in self.decoder.blocks():
            if block.cross is not None:
                yield block.cross.keys(states_BSD)

    def forward(
        self, inputs: Inputs, cache: Attend | None = None, capture: Collection[str] = (), depth: int | None = None
    ) -> Outputs:
        """The decoder's states [B, T, D], where the encoder reads `inputs.encoder` or a `cache` has read it before."""
        attend = cache
        if inputs.encoder is not None:
            self_attend = inputs.layout(causal=True) if cache is None else cache
            states_BSD = self.encode(inputs.encoder).hidden
            attend = EncoderStatesLayout(self_attend, states_BSD, inputs.placed(), inputs.encoder.placed())
        if attend is None:
            raise UsageError("an encoder–decoder writes after what its encoder reads: give that as `Inputs.encoder`")
        return self.decoder.states(inputs, self.written, attend, capture, depth)

    def token_table(self) -> nn.Embedding:
        """The vectors of tokens [V, D]."""
        return self.embedding

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Next-token logits [N, V] of the decoder's states [N, D]."""
        logits_NV = self.decoder.next_token_logits(hidden_ND, self.written.weight, self.lm_head)
        return logits_NV if self.head_bias is None else logits_NV + self.head_bias
