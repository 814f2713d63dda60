"""The encoder–decoder: an encoder reads a text, and a decoder that sees its states writes another (Transformer,
https://arxiv.org/abs/1706.03762; T5, https://arxiv.org/abs/1910.10683; BART, https://arxiv.org/abs/1910.13461)."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.core.errors import UsageError
from bedplate.models.inputs import Inputs, Outputs
from bedplate.models.layers.attention import Attend, masked_attention
from bedplate.models.layers.attention_options import PLAIN, AttentionOptions, KeysOf, Recurrence
from bedplate.models.layers.block import STACK_FIELDS
from bedplate.models.layers.linear import Linear
from bedplate.models.model import Model
from bedplate.models.packed.block_attention import BLOCK, TokenBlock, adjacent_groups, as_mask, block_attention, pieces
from bedplate.models.packed.placement import Placement
from bedplate.models.precision import Device
from bedplate.models.specs.encoder_decoder import EncoderDecoderSpec
from bedplate.models.specs.transformer import TransformerSpec
from bedplate.models.stack import EmbeddingTable, Stack, draw_tables


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


KEYS = 4 * BLOCK
"""Documents whose texts have more tokens together are blocks by themselves."""


class EncoderStatesLayout:
    """A decoder's own layout, beside the encoder's states of this pass.

    Where neither side has documents, each row is one. Otherwise a token sees the encoder's tokens of its own row and
    segment.
    """

    is_cached = False

    def __init__(
        self, self_attend: Attend, states_BSE: Tensor, ours: Placement | None = None, theirs: Placement | None = None
    ) -> None:
        if (ours is None) != (theirs is None):
            raise UsageError("segments are given for one side of an encoder–decoder and not for the other")
        self._self_attend, self._states, self._ours = self_attend, states_BSE, ours
        self._blocks = [] if ours is None or theirs is None else _blocks(ours, theirs, states_BSE.device)

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, options: AttentionOptions = PLAIN
    ) -> Tensor:
        return self._self_attend(layer, q_BTHD, k_BTGD, v_BTGV, options)

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        return self._self_attend.recur(layer, run, x_BTC)

    def cross_attend(self, layer: int, q_BTHD: Tensor, options: AttentionOptions, keys_of: KeysOf) -> Tensor:
        k_BSGD, v_BSGD = keys_of(self._states)
        if self._ours is not None:
            options.check_supported("attention across packed documents", "scale", "softcap", "sinks")
            q, k, v = (x.flatten(0, 1) for x in (q_BTHD, k_BSGD, v_BSGD))
            return block_attention(q, k, v, self._blocks, options, padded=self._ours.padded).view(q_BTHD.shape)
        if options.is_plain:
            gqa = q_BTHD.shape[2] != k_BSGD.shape[2]
            q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BSGD, v_BSGD))
            return F.scaled_dot_product_attention(q, k, v, scale=options.scale, enable_gqa=gqa).transpose(1, 2)
        seen_BTS = torch.ones(1, q_BTHD.shape[1], k_BSGD.shape[1], dtype=torch.bool, device=q_BTHD.device)
        return masked_attention(q_BTHD, k_BSGD, v_BSGD, seen_BTS, options)


def _blocks(ours: Placement, theirs: Placement, device: torch.device) -> list[TokenBlock]:
    """Blocks that pair each document of the decoder with the encoder's document of the same row and number. Short ones
    that stand beside each other, as their texts do, are one block."""
    read = {(source.row, source.segment): source for source in theirs.documents}
    for document in ours.documents:
        if document.segment == 0 or (document.row, document.segment) not in read:
            raise UsageError(f"row {document.row}: document {document.segment} has no text for the encoder of its own")
    blocks: list[TokenBlock] = []
    for group in adjacent_groups(ours.documents):
        texts = [read[member.row, member.segment] for member in group]
        together = all(earlier.stop == later.start for earlier, later in itertools.pairwise(texts))
        if together and len(group) > 1 and sum(text.token_count for text in texts) <= KEYS:
            at = torch.arange(len(group))
            queries, keys = (
                at.repeat_interleave(torch.tensor([placed.token_count for placed in side])) for side in (group, texts)
            )
            mask, span = as_mask(queries[:, None] == keys).to(device), ((texts[0].start, texts[-1].stop),)
            blocks.append(TokenBlock(group[0].start, group[-1].stop, span, mask))
            continue
        for document, text in zip(group, texts, strict=True):
            span = ((text.start, text.stop),)
            blocks += [TokenBlock(start, stop, span, None) for start, stop in pieces(document.start, document.stop)]
    return blocks
