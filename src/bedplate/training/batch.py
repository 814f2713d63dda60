"""Training examples, and the micro-batches packed from them: token rows for language models, labelled texts for
encoders.

Shapes: B rows, T tokens, N texts, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from bedplate.core.errors import DataError, TemplateError
from bedplate.models.device_memory import sent
from bedplate.models.inputs import Inputs, segment_positions
from bedplate.models.packed.placement import Placement
from bedplate.text.chat_template import Message
from bedplate.text.tokenizer import Tokenizer

NO_TARGET = -100
"""In `PackedBatch.targets`: no loss here (torch's own `ignore_index`)."""


@dataclass(frozen=True)
class TrainingExample:
    """Token ids with a loss mask: `loss[i]` says that token i is predicted from the tokens before it.

    source: what an encoder reads; the tokens are then the decoder's. DataError when lengths differ, no token carries
    loss, or the first does.
    """

    ids: tuple[int, ...]
    loss: tuple[bool, ...]
    id: str
    source: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.loss):
            raise DataError(f"example {self.id!r}: {len(self.ids)} tokens, but a loss mask of {len(self.loss)}")
        if not any(self.loss):
            raise DataError(
                f"example {self.id!r}: none of its {len(self.ids)} tokens carries loss, so nothing can be learned "
                "from it; give it a completion, or leave it out"
            )
        if self.loss[0]:
            raise DataError(f"example {self.id!r}: its first token carries loss, but nothing stands before it")

    @property
    def first_loss(self) -> int:
        """Index of the first token that carries loss."""
        return self.loss.index(True)

    @property
    def last_loss(self) -> int:
        """Index of the last token that carries loss, which is also the number of tokens that predictions read."""
        return len(self.loss) - 1 - self.loss[::-1].index(True)


class MicroBatch(Protocol):
    """The unit of one forward pass; objectives read further fields of their own batches.

    ids: its examples (or pieces). counts: what the loop sums and logs with every step, `tokens` at least; known where
    the batch is made, so that nothing is read back from a device.
    """

    @property
    def inputs(self) -> Inputs: ...
    @property
    def ids(self) -> tuple[str, ...]: ...
    @property
    def counts(self) -> Mapping[str, int]: ...
    def to(self, device: torch.device) -> Self: ...


@dataclass(frozen=True)
class PackedBatch:
    """Packed rows of a language model.

    tokens: int64 [B, T]; segments, positions: int64 [B, T] as in `Inputs`; targets: int64 [B, T], the next token of the
    same document where it carries loss, else −100; learned: int64 [N], indices of targets in the flattened rows. ids:
    examples (or pieces) by row and segment; lengths: tokens of each, without the shared prefix; losses: tokens of each
    that carry loss. placement: the documents' places in the rows. sources, source_segments: int64 [B, S], encoder
    inputs under the same numbers, at `source_placement`. rows: each row's number in the whole run, where the source has
    one. further_counts: counts beside tokens and targets.
    """

    tokens: Tensor
    segments: Tensor
    positions: Tensor
    targets: Tensor
    learned: Tensor
    ids: tuple[str, ...]
    lengths: tuple[int, ...]
    losses: tuple[int, ...]
    placement: Placement
    sources: Tensor | None = field(default=None, kw_only=True)
    source_segments: Tensor | None = field(default=None, kw_only=True)
    source_placement: Placement | None = field(default=None, kw_only=True)
    rows: tuple[int, ...] = field(default=(), kw_only=True)
    further_counts: Mapping[str, int] = field(default_factory=dict[str, int], kw_only=True)
    _further_targets: dict[int, tuple[Tensor, Tensor]] = field(
        default_factory=dict[int, tuple[Tensor, Tensor]], kw_only=True, repr=False
    )

    @classmethod
    def of(
        cls,
        tokens: Tensor,
        segments: Tensor,
        targets: Tensor,
        ids: Sequence[str],
        losses: Sequence[int],
        placement: Placement,
    ) -> PackedBatch:
        """Builds a batch on the CPU from the contents of its rows; derives positions and target indices."""
        learned = (targets.reshape(-1) != NO_TARGET).nonzero().squeeze(1)
        positions = segment_positions(segments)
        prefix = sum(document.token_count for document in placement.documents if not document.segment)
        lengths = (prefix, *(document.token_count for document in placement.documents if document.segment))
        return cls(tokens, segments, positions, targets, learned, tuple(ids), lengths, tuple(losses), placement)

    @property
    def inputs(self) -> Inputs:
        """The model's inputs."""
        read: Inputs | None = None
        if self.sources is not None:
            read = Inputs(self.sources, segments=self.source_segments, placement=self.source_placement)
        return Inputs(self.tokens, self.positions, self.segments, encoder=read, placement=self.placement)

    @property
    def token_count(self) -> int:
        """Tokens that the model computes, without padding; a shared prefix counts once."""
        return sum(self.lengths)

    @property
    def target_count(self) -> int:
        """Tokens that carry loss."""
        return sum(self.losses)

    @property
    def counts(self) -> Mapping[str, int]:
        documents = () if self.source_placement is None else self.source_placement.documents
        read = sum(document.token_count for document in documents)
        return {"tokens": self.token_count + read, "targets": self.target_count, **self.further_counts}

    def further_targets(self, distance: int) -> tuple[Tensor, Tensor]:
        """The targets `distance` tokens after the next one in the same document: their positions in the flattened rows,
        and the tokens. Read once, from the batch as its source gave it; `to` hands them on, still on the CPU."""
        if distance not in self._further_targets:
            targets_BT = torch.full_like(self.targets, NO_TARGET)
            inside = self.segments[:, distance:] == self.segments[:, :-distance]
            targets_BT[:, :-distance] = torch.where(inside, self.targets[:, distance:], NO_TARGET)
            targets = targets_BT.reshape(-1)
            learned = (targets != NO_TARGET).nonzero().squeeze(1)
            self._further_targets[distance] = learned, targets.index_select(0, learned)
        return self._further_targets[distance]

    def to(self, device: torch.device) -> Self:
        """The same batch on another device, including the tensors of subclasses."""
        return replace(self, **_sent_tensors(self, device))


def completion_example(
    prompt: Sequence[int], completion: Sequence[int], id: str, decoder_start: tuple[int, ...] = ()
) -> TrainingExample:
    """An example with loss on the completion's tokens and none on what stands before them. decoder_start: of an
    encoder–decoder, whose encoder reads the prompt. DataError when prompt or completion is empty."""
    if not prompt or not completion:
        raise DataError(f"example {id!r}: its {'completion' if prompt else 'prompt'} is empty")
    before = decoder_start or prompt
    loss = (False,) * len(before) + (True,) * len(completion)
    return TrainingExample((*before, *completion), loss, id, tuple(prompt) if decoder_start else ())


def conversation_example(tokenizer: Tokenizer, messages: Sequence[Message], id: str) -> TrainingExample:
    """A conversation in the tokenizer's chat template, with loss on every assistant turn and its end token.

    DataError where the template renders a turn otherwise than when serving, or nothing carries loss.
    """
    try:
        encoded = tokenizer.encode_conversation(messages)
    except TemplateError as error:
        raise DataError(f"example {id!r}: {error}") from error
    return TrainingExample(tuple(encoded.ids), tuple(encoded.assistant), id)


@dataclass(frozen=True)
class LabelledText:
    """A text's token ids, with 1 for each label that is right, else 0. DataError for a text without tokens."""

    ids: tuple[int, ...]
    targets: tuple[float, ...]
    id: str

    def __post_init__(self) -> None:
        if not self.ids:
            raise DataError(f"example {self.id!r} has no tokens, so nothing can be learned from it; leave it out")


@dataclass(frozen=True)
class Texts:
    """A micro-batch of texts for an encoder. tokens, segments: int64 [1, T], the texts concatenated and numbered from
    1. placement: the texts' places. ids: of the examples."""

    tokens: Tensor
    segments: Tensor
    placement: Placement
    ids: tuple[str, ...]

    @property
    def inputs(self) -> Inputs:
        return Inputs(self.tokens, segments=self.segments, placement=self.placement)

    @property
    def counts(self) -> Mapping[str, int]:
        return {"tokens": self.tokens.numel(), "targets": len(self.ids)}

    def to(self, device: torch.device) -> Self:
        return replace(self, **_sent_tensors(self, device))


@dataclass(frozen=True)
class TextBatch(Texts):
    """Texts with their labels. targets: float32 [N, C]."""

    targets: Tensor


def pack_texts(texts: Sequence[LabelledText]) -> TextBatch:
    """Packs labelled texts into one micro-batch. DataError when there are none."""
    if not texts:
        raise DataError("a batch needs at least one example")
    return TextBatch(
        *in_one_row([text.ids for text in texts]),
        tuple(text.id for text in texts),
        torch.tensor([text.targets for text in texts], dtype=torch.float32),
    )


def in_one_row(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Placement]:
    """Tokens and segments of concatenated texts, int64 [1, T] each, and the texts' places."""
    lengths = [len(text) for text in texts]
    tokens = torch.tensor([[token for text in texts for token in text]])
    segments = torch.arange(1, len(texts) + 1).repeat_interleave(torch.tensor(lengths))[None]
    return tokens, segments, Placement.of_lengths([0, *lengths])


def _sent_tensors(batch: PackedBatch | Texts, device: torch.device) -> dict[str, Tensor]:
    return {name: sent(value, device) for name, value in vars(batch).items() if isinstance(value, Tensor)}


def pooled(states_TD: Tensor, segments_T: Tensor, texts: int, pooling: str) -> Tensor:
    """Pools each text's states: their mean, or the first token's. Returns float32 or wider [N, D]."""
    upcast = states_TD.to(torch.promote_types(states_TD.dtype, torch.float32))
    counts_N = torch.bincount(segments_T - 1, minlength=texts)
    if pooling == "first":
        return upcast.index_select(0, counts_N.cumsum(0) - counts_N)
    sums_ND = upcast.new_zeros(texts, upcast.shape[1]).index_add(0, segments_T - 1, upcast)
    return sums_ND / counts_N[:, None]
