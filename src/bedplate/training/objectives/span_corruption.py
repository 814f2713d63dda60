"""Span corruption (T5, https://arxiv.org/abs/1910.10683, section 3.1.4) and UL2's mixture of denoisers
(https://arxiv.org/abs/2205.05131, section 3.1): an encoder reads a text without some spans, and a decoder predicts
them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from bedplate.core.config import Strict
from bedplate.core.errors import ConfigError, DataError
from bedplate.training.batch import PackedBatch
from bedplate.training.objectives.objective import (
    Corrupting,
    Corruption,
    CorruptionVocabulary,
    Ids,
    Models,
    Term,
    TokenCounts,
    documents_of,
    relaid,
    rows_of,
)
from bedplate.training.objectives.token_term import targets_term

SENTINELS = tuple(f"<extra_id_{number}>" for number in range(100))
Share = Annotated[float, Field(gt=0, lt=1)]


class Denoiser(Strict):
    """One setting of span corruption. density: share of the tokens that are cut; mean_span: mean tokens of a span,
    which determines their number; None: one span, at the document's end (UL2's S-denoiser). mode: a token that the
    encoder reads first, which names the denoiser."""

    density: Share = 0.15
    mean_span: Annotated[float, Field(ge=1)] | None = 3.0
    mode: str | None = None

    def spans(self, length: int, draw: np.random.Generator) -> list[tuple[int, int]]:
        """Begin and end of each span, anywhere in the document and apart from each other. (T5's last span always ends
        the text, and in a short document that is the only span ever cut.) Lengths of spans and gaps are uniform over
        all partitions."""
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
        """How many tokens of a text of this length are read and predicted, without special tokens around them."""
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


class _Spans(Corrupting):
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
        return 2  # the mode's token, and a sentinel where a document is shorter than that saves

    @property
    @abstractmethod
    def mixture(self) -> tuple[Denoiser, ...]:
        """The denoisers from which each document's is drawn."""

    def token_counts(self, length: int) -> TokenCounts:
        """On each side, the count of the denoiser that makes most of a text, because rows are as long as their longest
        document."""
        read, written = (max(side) for side in zip(*(denoiser.sides(length) for denoiser in self.mixture), strict=True))
        return TokenCounts(read, written, written)

    def corruption(self, words: CorruptionVocabulary) -> Corruption:
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
            for (place, ids), name in zip(documents_of(batch), batch.ids, strict=True):
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
            sources = rows_of(batch, read)
            return replace(
                relaid(batch, written),
                sources=sources.tokens,
                source_segments=sources.segments,
                source_placement=sources.placement,
            )

        return corrupt

    def __call__(self, models: Models, batch: PackedBatch) -> dict[str, Term]:
        model, inputs = models["policy"], batch.inputs
        hidden_BTD = model(inputs, inputs.layout(causal=True)).hidden
        return {self.name: targets_term(model, hidden_BTD, batch, hits=True)}


class SpanCorruption(_Spans):
    """T5's objective: spans of `mean_span` tokens on average, together a share of `density`."""

    name: ClassVar[str] = "span_corruption"

    density: Share = 0.15
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


def cut_out(ids: Ids, spans: Sequence[tuple[int, int]], sentinels: Sequence[int]) -> tuple[list[int], list[int]]:
    """The text with each span replaced by its own sentinel, and the sentinels each followed by its span."""
    source: list[int] = []
    target: list[int] = []
    at = 0
    for (start, stop), sentinel in zip(spans, sentinels, strict=False):
        source += [*ids[at:start].tolist(), sentinel]
        target += [sentinel, *ids[start:stop].tolist()]
        at = stop
    return source + ids[at:].tolist(), target
