"""Training examples, and the micro-batches packed from them: token rows for language models, labelled texts for
encoders.

`pack_examples` puts a batch of examples into one row; a prefix that all of them share is computed once, as segment 0,
and tokens that no prediction reads are left out. `rows_batch` takes documents that `bedplate.data.packing` has laid out
in rows of a fixed length.

Shapes: B rows, T tokens, N texts, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
from numpy.typing import NDArray
from torch import Tensor

from bedplate.core.errors import DataError, TemplateError
from bedplate.data.packing import DocumentPiece, fill_rows, placed
from bedplate.models.device_memory import sent
from bedplate.models.inputs import Inputs, segment_positions
from bedplate.models.packed.placement import PlacedDocument, Placement
from bedplate.text.chat_template import Message
from bedplate.text.tokenizer import Tokenizer

NO_TARGET = -100
"""In `PackedBatch.targets`: no loss here (torch's own `ignore_index`)."""


@dataclass(frozen=True)
class TrainingExample:
    """Token ids with a loss mask: `loss[i]` is whether token i is predicted from the tokens before it.

    source: the encoder's token ids; `ids` are then the decoder's. DataError when lengths differ, no token carries loss,
    or the first does.
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

    ids: its examples (or pieces). counts: numbers that the loop sums and logs with every step, at least `tokens`; they
    are known on the host, so that nothing is read back from a device.
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
    inputs with the same segment numbers, at `source_placement`. rows: each row's number in the whole run, where the
    source numbers them. further_counts: counts in addition to tokens and targets.
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
        encoder_inputs: Inputs | None = None
        if self.sources is not None:
            encoder_inputs = Inputs(self.sources, segments=self.source_segments, placement=self.source_placement)
        return Inputs(self.tokens, self.positions, self.segments, encoder=encoder_inputs, placement=self.placement)

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
        source_count = sum(document.token_count for document in documents)
        return {"tokens": self.token_count + source_count, "targets": self.target_count, **self.further_counts}

    def further_targets(self, distance: int) -> tuple[Tensor, Tensor]:
        """The targets `distance` tokens after the next one in the same document: their positions in the flattened rows,
        and the tokens. Computed once, before the batch is moved to a device; `to` leaves them on the CPU."""
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
    """An example with loss on the completion's tokens and none on the tokens before them. decoder_start: of an
    encoder–decoder, whose encoder reads the prompt. DataError when prompt or completion is empty."""
    if not prompt or not completion:
        raise DataError(f"example {id!r}: its {'completion' if prompt else 'prompt'} is empty")
    before = decoder_start or prompt
    loss = (False,) * len(before) + (True,) * len(completion)
    return TrainingExample((*before, *completion), loss, id, tuple(prompt) if decoder_start else ())


def conversation_example(tokenizer: Tokenizer, messages: Sequence[Message], id: str) -> TrainingExample:
    """A conversation in the tokenizer's chat template, with loss on every assistant turn and its end token.

    DataError where the template renders a turn differently than in serving, or no token carries loss.
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


MIN_PREFIX = 4
"""Shorter common prefixes are not worth one more document in the attention."""


def common_prefix(examples: Sequence[TrainingExample]) -> int:
    """Number of leading tokens that all examples share, excluding the token before any that carries loss.

    The token that predicts the first loss-carrying one is excluded because each example needs its own prediction.
    """
    limit = min(example.first_loss - 1 for example in examples)
    first, last = min(e.ids[:limit] for e in examples), max(e.ids[:limit] for e in examples)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=True)) if a != b), limit)


def check_length(example: TrainingExample | LabelledText, context_length: int | None) -> None:
    """DataError where an example is longer than the context."""
    if context_length is not None and len(example.ids) > context_length:
        raise DataError(
            f"example {example.id!r} has {len(example.ids)} tokens, but the context holds {context_length}; "
            "shorten it or leave it out (nothing is cut silently)"
        )


def pack_examples(
    examples: Sequence[TrainingExample],
    *,
    share_prefix: bool = True,
    min_prefix: int = MIN_PREFIX,
    context_length: int | None = None,
) -> PackedBatch:
    """Packs every example as a document into one row [1, T] without padding, none attending to another.

    Tokens from an example's last target on are left out, as no prediction reads them. share_prefix: compute the common
    prefix once, if several examples share at least `min_prefix` tokens. DataError without examples, or for one longer
    than `context_length`.
    """
    if not examples:
        raise DataError("a batch needs at least one example")
    for example in examples:
        check_length(example, context_length)
    sources = [example.source for example in examples]
    share_prefix = share_prefix and not any(sources)  # states also depend on the encoder's input
    prefix = common_prefix(examples) if share_prefix and len(examples) > 1 else 0
    prefix = prefix if prefix >= min_prefix else 0
    tokens = list(examples[0].ids[:prefix])
    segments, targets = [0] * prefix, [NO_TARGET] * prefix
    for number, example in enumerate(examples, start=1):
        tokens += example.ids[prefix : example.last_loss]
        segments += [number] * (example.last_loss - prefix)
        predicted = slice(prefix + 1, example.last_loss + 1)
        following = zip(example.ids[predicted], example.loss[predicted], strict=True)
        targets += [token if learned else NO_TARGET for token, learned in following]
    batch = PackedBatch.of(
        torch.tensor([tokens]),
        torch.tensor([segments]),
        torch.tensor([targets]),
        [example.id for example in examples],
        [sum(example.loss) for example in examples],
        Placement.of_lengths([prefix, *(example.last_loss - prefix for example in examples)]),
    )
    if not any(sources):
        return batch
    if not all(sources):
        missing = next(example.id for example in examples if not example.source)
        raise DataError(f"example {missing!r} has no text for the encoder, but others of its batch do")
    numbers = torch.arange(1, len(sources) + 1).repeat_interleave(torch.tensor([len(source) for source in sources]))
    source_tokens = torch.tensor([[token for source in sources for token in source]])
    placement = Placement.of_lengths([0, *map(len, sources)])
    return replace(batch, sources=source_tokens, source_segments=numbers[None], source_placement=placement)


# --- documents in rows of one length


def rows_batch(
    rows: Sequence[Sequence[DocumentPiece]],
    documents: Sequence[Sequence[int] | NDArray[Any]],
    ids: Sequence[str],
    row_length: int,
) -> PackedBatch:
    """A batch [B, row_length] of packed rows. The last token of a piece predicts the document's next token, even where
    that is in another piece, so that splitting loses no target."""
    filled = fill_rows(rows, documents, row_length, NO_TARGET)
    shape = (len(rows), row_length)
    places = [
        PlacedDocument(row * row_length + start, row * row_length + stop, row=row, segment=segment)
        for _, row, start, stop, segment in placed(rows)
    ]
    return PackedBatch.of(
        torch.from_numpy(filled.tokens),
        torch.from_numpy(filled.segments),
        torch.from_numpy(filled.targets),
        [ids[piece.document] for row in rows for piece in row],
        filled.followed,
        Placement(shape, tuple(places)),
    )
