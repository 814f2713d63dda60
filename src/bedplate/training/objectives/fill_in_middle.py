"""Fill in the middle (https://arxiv.org/abs/2207.14255): a document's middle moves behind its end, so that next-token
prediction learns to fill a gap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from bedplate.core.errors import ConfigError
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.batch import PackedBatch
from bedplate.training.objectives.objective import (
    Corrupting,
    Corruption,
    CorruptionVocabulary,
    Ids,
    Models,
    Term,
    documents_of,
    relaid,
)
from bedplate.training.objectives.token_term import targets_term

FIM_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
"""Names that tokenizers have for what stands before the prefix, the suffix and the middle (Qwen, StarCoder, SantaCoder,
CodeLlama)."""
_SPLIT = 4
"""Tokens by which cuts inside of tokens may lengthen a document; beyond, it is cut between tokens."""
Three = tuple[list[int], list[int], list[int]]


class FillInMiddle(Corrupting):
    """Fill-in-the-middle.

    rate: share of documents whose middle is moved. spm: share of those with the suffix before the prefix. at: where the
    two cuts fall, uniformly: between characters, possibly inside tokens (section 3.1), or between tokens. tokens:
    markers of prefix, suffix and middle; None: the first of FIM_TOKENS that the tokenizer has. Start and end tokens of
    a document stay in place; texts under 3 tokens are unchanged.
    """

    name: ClassVar[str] = "fill_in_middle"
    architectures: ClassVar[tuple[str, ...]] = ("decoder",)
    likelihood: ClassVar[bool] = True

    rate: Annotated[float, Field(ge=0, le=1)] = 0.5
    spm: Annotated[float, Field(ge=0, le=1)] = 0.5
    at: Literal["characters", "tokens"] = "characters"
    tokens: tuple[str, str, str] | None = None

    @property
    def special(self) -> tuple[str, ...]:
        return self.tokens or FIM_TOKENS[0]

    @property
    def max_growth(self) -> int:
        return 3 + (_SPLIT if self.at == "characters" else 0)

    def corruption(self, words: CorruptionVocabulary) -> Corruption:
        marks, tokenizer = self._marks(words), words.tokenizer
        starts, eos = list(tokenizer.prompt_start), tokenizer.eos_id

        def moved(ids: Ids, draw: np.random.Generator) -> Sequence[int] | Ids:
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
            return relaid(batch, [moved(ids, draws[place.row]) for place, ids in documents_of(batch)])

        return corrupt

    def _marks(self, words: CorruptionVocabulary) -> list[int]:
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

    def _parts(self, text: list[int], draw: np.random.Generator, tokenizer: Tokenizer) -> Three:
        if self.at == "characters":
            parts = split_at_characters(text, draw, tokenizer)
            if parts is not None:
                return parts
        first, second = sorted(draw.integers(0, len(text) + 1, 2).tolist())
        return text[:first], text[first:second], text[second:]

    def __call__(self, models: Models, batch: PackedBatch) -> dict[str, Term]:
        model, inputs = models["policy"], batch.inputs
        hidden_BTD = model(inputs, inputs.layout(causal=True)).hidden
        return {self.name: targets_term(model, hidden_BTD, batch)}


def split_at_characters(text: list[int], draw: np.random.Generator, tokenizer: Tokenizer) -> Three | None:
    """Prefix, middle and suffix of a text cut between characters, each encoded separately. None where they do not
    decode to the text (a document that was split within a character), or take over `_SPLIT` tokens more."""
    written = tokenizer.decode(text, skip_special_tokens=False)
    first, second = sorted(draw.integers(0, len(written) + 1, 2).tolist())
    pieces = [written[:first], written[first:second], written[second:]]
    encoded = tokenizer.encode_batch(pieces, parse_special=False)
    if sum(map(len, encoded)) > len(text) + _SPLIT:
        return None
    if b"".join(tokenizer.token_bytes(i) for piece_ids in encoded for i in piece_ids) != b"".join(
        map(tokenizer.token_bytes, text)
    ):
        return None
    return encoded[0], encoded[1], encoded[2]


def arranged(parts: Three, marks: Sequence[int], suffix_first: bool) -> list[int]:
    """Prefix, suffix, middle, each after its marker; or the suffix first, and prefix and middle as one text (section 3,
    the second variant), which can reuse a cached suffix."""
    (prefix, middle, suffix), (pre, suf, mid) = parts, marks
    if suffix_first:
        return [pre, suf, *suffix, mid, *prefix, *middle]
    return [pre, *prefix, suf, *suffix, mid, *middle]
