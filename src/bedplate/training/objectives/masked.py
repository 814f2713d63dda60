"""Masked language modelling (BERT, https://arxiv.org/abs/1810.04805, section 3.1): an encoder predicts masked
tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from bedplate.text.tokenizer import Tokenizer
from bedplate.training.batch import NO_TARGET, PackedBatch
from bedplate.training.objectives.objective import (
    Corrupting,
    Corruption,
    CorruptionVocabulary,
    Models,
    Term,
    TokenCounts,
    documents_of,
)
from bedplate.training.objectives.token_term import targets_term

Share = Annotated[float, Field(ge=0, le=1)]


class Masked(Corrupting):
    """Masks tokens at random. density: share of a document's tokens to predict, at least one. Of those, `hidden` become
    the token `mask`, `random` any other token, the rest are unchanged. whole_words: mask all tokens of a word or none.
    """

    name: ClassVar[str] = "masked"
    architectures: ClassVar[tuple[str, ...]] = ("encoder",)

    density: Annotated[float, Field(gt=0, lt=1)] = 0.15
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

    def token_counts(self, length: int) -> TokenCounts:
        return TokenCounts(0, length, max(1, round(length * self.density)))

    def corruption(self, words: CorruptionVocabulary) -> Corruption:
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
            for place, ids in documents_of(batch):
                draw = draws[place.row]
                chosen = self._chosen(ids, special, starts, draw)
                at = place.start + chosen
                targets[at] = ids[chosen]
                luck = draw.random(len(chosen))
                random_tokens = plain[draw.integers(0, len(plain), len(chosen))]
                replacements = np.where(
                    luck < self.hidden, mask, np.where(luck < self.hidden + self.random, random_tokens, ids[chosen])
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
        # A word goes on to the next place where one begins, or where there is a control token between.
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

    def __call__(self, models: Models, batch: PackedBatch) -> dict[str, Term]:
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
