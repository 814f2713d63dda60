"""Gopher's repetition rules (https://arxiv.org/abs/2112.11446, table A1), over hashes of n-grams of words. The outcomes
are those of datatrove's filter.
"""

from __future__ import annotations

import re

import numpy as np
import pydantic
from numpy.typing import NDArray

from bedplate.core.config import Strict
from bedplate.data.corpus.curate.draft import PARAGRAPHS, Draft, Rule, Tools
from bedplate.data.corpus.curate.quality import repeats
from bedplate.data.corpus.curate.vocabulary import Words
from bedplate.data.corpus.repeated.words import n_grams

_LINES = re.compile("\n+")


class RepetitionSettings(Strict):
    """Shares that may be repetition: of lines, paragraphs and their characters, and of characters in the most frequent
    n-gram (`top`) or in n-grams that came before (`duplicate`), by n."""

    lines: float = 0.3
    paragraphs: float = 0.3
    line_characters: float = 0.2
    paragraph_characters: float = 0.2
    top: dict[int, float] = pydantic.Field(default_factory=lambda: {2: 0.2, 3: 0.18, 4: 0.16})
    duplicate: dict[int, float] = pydantic.Field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    )


def repetition(settings: RepetitionSettings, tools: Tools) -> Rule:
    """Lines, paragraphs and n-grams said again."""

    def rule(draft: Draft) -> str | None:
        text = draft.text
        if not text:
            return "empty"
        paragraphs = PARAGRAPHS.split(text.strip())
        count, characters = repeats(paragraphs)
        if count / len(paragraphs) > settings.paragraphs:
            return f"paragraphs: {count} of {len(paragraphs)}"
        if characters / len(text) > settings.paragraph_characters:
            return f"paragraph_characters: {characters / len(text):.3f}"
        lines = _LINES.split(text)
        count, characters = repeats(lines)
        if count / len(lines) > settings.lines:
            return f"lines: {count} of {len(lines)}"
        if characters / len(text) > settings.line_characters:
            return f"line_characters: {characters / len(text):.3f}"
        return _n_grams(draft.words, len(text), settings)

    return rule


def _n_grams(words: Words, characters: int, settings: RepetitionSettings) -> str | None:
    before = np.concatenate([[0], np.cumsum(words.length)])
    for n, most in settings.top.items():
        grams = n_grams(words.hash, n)
        if len(grams):
            _, first, counts = np.unique(grams, return_index=True, return_counts=True)
            largest = int(counts.max())
            at = int(first[counts == largest].min())  # of several so frequent the one that came first
            share = (int(before[at + n] - before[at]) + n - 1) * largest / characters
            if share > most:
                return f"top_{n}_gram: {share:.3f} of characters"
    for n, most in settings.duplicate.items():
        share = _said_again(n_grams(words.hash, n), before, n) / characters
        if share > most:
            return f"duplicate_{n}_grams: {share:.3f} of characters"
    return None


def _said_again(grams: NDArray[np.uint64], before: NDArray[np.int64], n: int) -> int:
    """Characters in n-grams that came before, none counted twice. Only n-grams that occur twice can be."""
    if len(grams) < 2:
        return 0
    order = np.argsort(grams, kind="stable")
    same = grams[order][1:] == grams[order][:-1]
    if not same.any():
        return 0
    twice = np.zeros(len(grams), bool)
    twice[order[1:][same]] = twice[order[:-1][same]] = True
    places = np.flatnonzero(twice)
    seen: set[int] = set()
    characters = free = 0
    for place, gram in zip(places.tolist(), grams[places].tolist(), strict=True):
        if place < free:
            continue
        if gram in seen:
            characters += int(before[place + n] - before[place])
            free = place + n
        else:
            seen.add(gram)
    return characters
