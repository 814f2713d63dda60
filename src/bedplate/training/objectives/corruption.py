"""Objectives that corrupt a text and learn to restore it.

Masked                 an encoder predicts masked tokens (BERT, https://arxiv.org/abs/1810.04805, section 3.1)
SpanCorruption         an encoder reads a text without some spans, and a decoder predicts them (T5,
                       https://arxiv.org/abs/1910.10683, section 3.1.4)
MixtureOfDenoisers     the same by several denoisers (UL2, https://arxiv.org/abs/2205.05131, section 3.1)
FillInMiddle           a document's middle moves behind its end, so that next-token prediction learns to fill a gap
                       (https://arxiv.org/abs/2207.14255)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from bedplate.core.config import Strict
from bedplate.core.errors import ConfigError, DataError
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.batch import NO_TARGET, PackedBatch
from bedplate.training.objectives import objective
from bedplate.training.objectives.token_term import targets_term

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]


class Masked(objective.Corrupting):
    """Masks tokens at random. density: share of a document's tokens to predict, at least one. Of those, `hidden` become
    the token `mask`, `random` any other token, the rest are unchanged. whole_words: mask all tokens of a word or none.
    """

    name: ClassVar[str] = "masked"
    architectures: ClassVar[tuple[str, ...]] = ("encoder",)

    density: OpenShare = 0.15
    hidden: Share = 0.8
    random: Share = 0.1
    whole_words: bool = False
    mask: str = "[MASK]"

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        if self.hidden + self.random > 1:
            raise ValueError(f"hidden and random are {self.hidden + self.random:g} together: at most 1")
        return self

    @property
    def special(self) -> tuple[str, ...]:
        return (self.mask,)

    def token_counts(self, length: int) -> objective.TokenCounts:
        return objective.TokenCounts(0, length, max(1, round(length * self.density)))

    def corruption(self, words: objective.CorruptionVocabulary) -> objective.Corruption:
        (mask,) = words.ids_of([self.mask], self.name)
        special = np.zeros(words.size, bool)
        special[[index for index in words.tokenizer.special_ids if index < words.size]] = True
        vocab_size = min(words.size, words.tokenizer.vocab_size)
        plain = np.flatnonzero(~special[:vocab_size])
        starts = starts_word(words.tokenizer, words.size) if self.whole_words else None

        def corrupt(batch: PackedBatch, draws: Sequence[np.random.Generator]) -> PackedBatch:
            tokens = batch.tokens.reshape(-1).numpy().copy()
            targets = np.full_like(tokens, NO_TARGET)
            losses: list[int] = []
            for place, ids in objective.documents_of(batch):
                draw = draws[place.row]
                chosen = self._chosen(ids, special, starts, draw)
                at = place.start + chosen
                targets[at] = ids[chosen]
                uniform = draw.random(len(chosen))
                random_tokens = plain[draw.integers(0, len(plain), len(chosen))]
                replacements = np.where(
                    uniform < self.hidden,
                    mask,
                    np.where(uniform < self.hidden + self.random, random_tokens, ids[chosen]),
                )
                tokens[at] = replacements
                losses.append(len(chosen))
            shape = batch.tokens.shape
            learned = torch.from_numpy(np.flatnonzero(targets != NO_TARGET))
            return replace(
                batch,
                tokens=torch.from_numpy(tokens).reshape(shape),
                targets=torch.from_numpy(targets).reshape(shape),
                learned=learned,
                losses=tuple(losses),
            )

        return corrupt

    def _chosen(
        self,
        ids: NDArray[np.int64],
        special: NDArray[np.bool_],
        starts: NDArray[np.bool_] | None,
        draw: np.random.Generator,
    ) -> NDArray[np.int64]:
        """Positions of the tokens to predict, in order; never a control token."""
        places = np.flatnonzero(~special[ids])
        if not len(places):
            return places
        target_count = max(1, round(len(places) * self.density))
        if starts is None:
            return np.sort(draw.permutation(places)[:target_count])
        # A word ends before the next beginning of a word, or before a control token.
        first = starts[ids[places]]
        first[1:] |= np.diff(places) > 1
        first[0] = True
        words = np.split(places, np.flatnonzero(first)[1:])
        chosen_places: list[NDArray[np.int64]] = []
        count = 0
        for number in draw.permutation(len(words)):
            chosen_places.append(words[number])
            count += len(words[number])
            if count >= target_count:
                break
        return np.sort(np.concatenate(chosen_places))

    def __call__(self, models: objective.Models, batch: PackedBatch) -> dict[str, objective.Term]:
        model, inputs = models["policy"], batch.inputs
        return {self.name: targets_term(model, model(inputs).hidden, batch, hits=True)}


def starts_word(tokenizer: Tokenizer, size: int) -> NDArray[np.bool_]:
    """Whether a word begins with each id: in a WordPiece vocabulary, ids without ##; otherwise ids that begin with
    anything but a letter or digit, such as a space or a punctuation mark."""
    names = [tokenizer.id_to_token(index) for index in range(min(size, tokenizer.vocab_size))]
    pieces = any((name or "").startswith("##") for name in names)
    starts = np.ones(size, bool)
    for index, name in enumerate(names):
        if name is None or index in tokenizer.special_ids:
            continue
        if pieces:
            starts[index] = not name.startswith("##")
        else:
            first = tokenizer.token_bytes(index)[:1]
            starts[index] = not (first.isalnum() or first >= b"\x80")
    return starts


SENTINELS = tuple(f"<extra_id_{number}>" for number in range(100))


class Denoiser(Strict):
    """One setting of span corruption. density: share of tokens to cut; mean_span: mean tokens of a span, which
    determines the number of spans; None: one span, at the document's end (UL2's S-denoiser). mode: a token that
    identifies the denoiser, at the beginning of the encoder's input."""

    density: OpenShare = 0.15
    mean_span: Annotated[float, Field(ge=1)] | None = 3.0
    mode: str | None = None

    def spans(self, length: int, draw: np.random.Generator) -> list[tuple[int, int]]:
        """Begin and end of each span: anywhere in the document, and not adjacent. (T5's last span always ends the text,
        so that a short document only ever loses its end.) Lengths of spans and gaps are uniform over all partitions."""
        noise, count = self._cut(length)
        uncut = length - noise
        if self.mean_span is None:
            return [(uncut, length)]
        cut, gaps = _lengths(noise, count, draw), _lengths(uncut + 2, count + 1, draw)
        gaps[0] -= 1  # the gaps before the first and after the last span may be empty
        spans: list[tuple[int, int]] = []
        at = 0
        for before, span in zip(gaps, cut, strict=False):
            spans.append((at + before, at + before + span))
            at += before + span
        return spans

    def sides(self, length: int) -> tuple[int, int]:
        """Numbers of tokens, read and predicted, of a text of this length, without special tokens around them."""
        noise, count = self._cut(length)
        return length - noise + count, noise + count

    def _cut(self, length: int) -> tuple[int, int]:
        """The number of tokens to cut, and of spans."""
        noise = min(max(round(length * self.density), 1), max(length - 1, 1))
        if self.mean_span is None:
            return noise, 1
        return noise, max(1, min(round(noise / self.mean_span), noise, length - noise))


def _lengths(whole: int, parts: int, draw: np.random.Generator) -> list[int]:
    """A uniformly random partition of `whole` into positive parts."""
    edges = np.sort(draw.choice(whole - 1, parts - 1, replace=False)) + 1 if parts > 1 else np.empty(0, np.int64)
    return np.diff(np.concatenate(([0], edges, [whole]))).astype(int).tolist()


class _Spans(objective.Corrupting):
    """The base of objectives that cut spans. sentinels: tokens that mark the spans on both sides, in order; T5's by
    default."""

    architectures: ClassVar[tuple[str, ...]] = ("encoder–decoder",)

    sentinels: tuple[str, ...] = SENTINELS

    @property
    def special(self) -> tuple[str, ...]:
        modes = dict.fromkeys(denoiser.mode for denoiser in self.mixture if denoiser.mode is not None)
        return (*self.sentinels, *modes)

    @property
    def max_growth(self) -> int:
        return 2  # the mode token, and a sentinel in a document so short that cutting a span saves nothing

    @property
    @abstractmethod
    def mixture(self) -> tuple[Denoiser, ...]:
        """The denoisers from which each document's is drawn."""

    def token_counts(self, length: int) -> objective.TokenCounts:
        """On each side, the largest count of any denoiser, because rows are as long as their longest document."""
        read, written = (max(side) for side in zip(*(denoiser.sides(length) for denoiser in self.mixture), strict=True))
        return objective.TokenCounts(read, written, written)

    def corruption(self, words: objective.CorruptionVocabulary) -> objective.Corruption:
        sentinels = words.ids_of(self.sentinels, self.name)
        named = [() if denoiser.mode is None else (denoiser.mode,) for denoiser in self.mixture]
        modes = [words.ids_of(names, self.name) for names in named]
        if not words.decoder_start:
            raise ConfigError(f"the objective {self.name} is for encoder–decoders, and this model is none")
        if not sentinels:
            raise ConfigError(f"the objective {self.name} needs at least one sentinel")
        eos = words.tokenizer.eos_id
        ends = () if eos is None else (eos,)

        def corrupt(batch: PackedBatch, draws: Sequence[np.random.Generator]) -> PackedBatch:
            read: list[Sequence[int]] = []
            written: list[Sequence[int]] = []
            for (place, ids), name in zip(objective.documents_of(batch), batch.ids, strict=True):
                draw = draws[place.row]
                number = int(draw.integers(len(self.mixture))) if len(self.mixture) > 1 else 0
                # The document's end token is not corrupted: it ends both sides.
                text = ids[:-1] if len(ids) > 1 and ids[-1] == eos else ids
                spans = self.mixture[number].spans(len(text), draw)
                if len(spans) > len(sentinels):
                    raise DataError(
                        f"{name}: {len(text)} tokens have {len(spans)} spans cut out, and there are "
                        f"{len(sentinels)} sentinels; take shorter rows, longer spans or more sentinels"
                    )
                source, target = cut_out(text, spans, sentinels)
                read.append([*modes[number], *source, *ends])
                written.append([*words.decoder_start, *target, *ends])
            sources = objective.rows_of(batch, read)
            return replace(
                objective.relaid(batch, written),
                sources=sources.tokens,
                source_segments=sources.segments,
                source_placement=sources.placement,
            )

        return corrupt

    def __call__(self, models: objective.Models, batch: PackedBatch) -> dict[str, objective.Term]:
        model, inputs = models["policy"], batch.inputs
        hidden_BTD = model(inputs, inputs.layout(causal=True)).hidden
        return {self.name: targets_term(model, hidden_BTD, batch, hits=True)}


class SpanCorruption(_Spans):
    """T5's objective: spans of `mean_span` tokens on average, together a share of `density`."""

    name: ClassVar[str] = "span_corruption"

    density: OpenShare = 0.15
    mean_span: Annotated[float, Field(ge=1)] = 3.0

    @property
    def mixture(self) -> tuple[Denoiser, ...]:
        return (Denoiser(density=self.density, mean_span=self.mean_span),)


class MixtureOfDenoisers(_Spans):
    """UL2's objective: each document's denoiser is drawn uniformly from `denoisers`, by default the seven of its table
    1."""

    name: ClassVar[str] = "mixture_of_denoisers"

    denoisers: Annotated[tuple[Denoiser, ...], Field(min_length=1)] = (
        Denoiser(density=0.15, mean_span=3, mode="[R]"),
        Denoiser(density=0.15, mean_span=8, mode="[R]"),
        Denoiser(density=0.25, mean_span=None, mode="[S]"),
        Denoiser(density=0.5, mean_span=3, mode="[X]"),
        Denoiser(density=0.5, mean_span=8, mode="[X]"),
        Denoiser(density=0.15, mean_span=64, mode="[X]"),
        Denoiser(density=0.5, mean_span=64, mode="[X]"),
    )

    @property
    def mixture(self) -> tuple[Denoiser, ...]:
        return self.denoisers


def cut_out(
    ids: objective.Ids, spans: Sequence[tuple[int, int]], sentinels: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The text with each span replaced by its own sentinel, and the sentinels each followed by its span."""
    source: list[int] = []
    target: list[int] = []
    at = 0
    for (start, stop), sentinel in zip(spans, sentinels, strict=False):
        source += [*ids[at:start].tolist(), sentinel]
        target += [sentinel, *ids[start:stop].tolist()]
        at = stop
    return source + ids[at:].tolist(), target


FIM_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
"""Markers of prefix, suffix and middle in published tokenizers (Qwen, StarCoder, SantaCoder, CodeLlama)."""
_MAX_SPLIT = 4
"""Tokens by which cuts inside of tokens may lengthen a document; above that, it is cut between tokens."""
Parts = tuple[list[int], list[int], list[int]]


class FillInMiddle(objective.Corrupting):
    """Fill-in-the-middle.

    rate: share of documents whose middle is moved. spm: share of those with the suffix before the prefix. at: where the
    two cuts fall, uniformly: between characters, possibly inside tokens (section 3.1), or between tokens. tokens:
    markers of prefix, suffix and middle; None: the first of FIM_TOKENS that the tokenizer has. Start and end tokens of
    a document stay in place; texts under 3 tokens are unchanged.
    """

    name: ClassVar[str] = "fill_in_middle"
    architectures: ClassVar[tuple[str, ...]] = ("decoder",)
    likelihood: ClassVar[bool] = True

    rate: Share = 0.5
    spm: Share = 0.5
    at: Literal["characters", "tokens"] = "characters"
    tokens: tuple[str, str, str] | None = None

    @property
    def special(self) -> tuple[str, ...]:
        return self.tokens or FIM_TOKENS[0]

    @property
    def max_growth(self) -> int:
        return 3 + (_MAX_SPLIT if self.at == "characters" else 0)

    def corruption(self, words: objective.CorruptionVocabulary) -> objective.Corruption:
        marks, tokenizer = self._marks(words), words.tokenizer
        starts, eos = list(tokenizer.prompt_start), tokenizer.eos_id

        def moved(ids: objective.Ids, draw: np.random.Generator) -> Sequence[int] | objective.Ids:
            if draw.random() >= self.rate:
                return ids
            text = ids.tolist()
            before = starts if starts and text[: len(starts)] == starts else []
            after = text[-1:] if text[-1] == eos else []
            text = text[len(before) : len(text) - len(after)]
            if len(text) < 3:
                return ids
            parts = self._parts(text, draw, tokenizer)
            return [*before, *arranged(parts, marks, bool(draw.random() < self.spm)), *after]

        def corrupt(batch: PackedBatch, draws: Sequence[np.random.Generator]) -> PackedBatch:
            return objective.relaid(
                batch, [moved(ids, draws[place.row]) for place, ids in objective.documents_of(batch)]
            )

        return corrupt

    def _marks(self, words: objective.CorruptionVocabulary) -> list[int]:
        for names in (self.tokens,) if self.tokens else FIM_TOKENS:
            if all(words.tokenizer.token_to_id(name) is not None for name in names):
                return words.ids_of(names, self.name)
        if self.tokens:
            return words.ids_of(self.tokens, self.name)
        supported = "; ".join(", ".join(names) for names in FIM_TOKENS)
        raise ConfigError(
            f"the objective {self.name} needs tokens for prefix, suffix and middle, and the tokenizer has none of "
            f"{supported}; name its own in the objective's settings (tokens), or train a tokenizer that has them"
        )

    def _parts(self, text: list[int], draw: np.random.Generator, tokenizer: Tokenizer) -> Parts:
        if self.at == "characters":
            parts = split_at_characters(text, draw, tokenizer)
            if parts is not None:
                return parts
        first, second = sorted(draw.integers(0, len(text) + 1, 2).tolist())
        return text[:first], text[first:second], text[second:]

    def __call__(self, models: objective.Models, batch: PackedBatch) -> dict[str, objective.Term]:
        model, inputs = models["policy"], batch.inputs
        hidden_BTD = model(inputs, inputs.layout(causal=True)).hidden
        return {self.name: targets_term(model, hidden_BTD, batch)}


def split_at_characters(text: list[int], draw: np.random.Generator, tokenizer: Tokenizer) -> Parts | None:
    """Prefix, middle and suffix of a text cut between characters, each encoded separately. None where they do not
    decode to the text (a document that was split within a character), or need over `_MAX_SPLIT` tokens more."""
    written = tokenizer.decode(text, skip_special_tokens=False)
    first, second = sorted(draw.integers(0, len(written) + 1, 2).tolist())
    pieces = [written[:first], written[first:second], written[second:]]
    encoded = tokenizer.encode_batch(pieces, parse_special=False)
    if sum(map(len, encoded)) > len(text) + _MAX_SPLIT:
        return None
    if b"".join(tokenizer.token_bytes(i) for piece_ids in encoded for i in piece_ids) != b"".join(
        map(tokenizer.token_bytes, text)
    ):
        return None
    return encoded[0], encoded[1], encoded[2]


def arranged(parts: Parts, marks: Sequence[int], suffix_first: bool) -> list[int]:
    """Prefix, suffix, middle, each after its marker; or the suffix first, and prefix and middle as one text (section 3,
    the second variant), which can reuse a cached suffix."""
    (prefix, middle, suffix), (pre, suf, mid) = parts, marks
    if suffix_first:
        return [pre, suf, *suffix, mid, *prefix, *middle]
    return [pre, *prefix, suf, *suffix, mid, *middle]
