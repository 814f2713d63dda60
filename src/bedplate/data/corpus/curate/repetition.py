"""Gopher's repetition rules (https://arxiv.org/abs/2112.11446, table A1), over hashes of n-grams of words. The outcomes
are those of datatrove's filter.
"""

from __future__ import annotations

import numpy as np
import pydantic
from numpy.typing import NDArray

from bedplate.core.config import Strict
from bedplate.data.corpus.curate.draft import PARAGRAPHS, DraftDocument, Rule, Tools
from bedplate.data.corpus.curate.quality import repeats
from bedplate.data.corpus.curate.vocabulary import TextWords
from bedplate.data.corpus.repeated.words import longer


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

    def rule(draft: DraftDocument) -> str | None:
        text = draft.text
        if not text:
            return "empty"
        inner = text.strip()
        paragraphs = PARAGRAPHS.split(inner) if "\n\n" in inner else [inner]
        count, characters = repeats(paragraphs)
        if count / len(paragraphs) > settings.paragraphs:
            return f"paragraphs: {count} of {len(paragraphs)}"
        if characters / len(text) > settings.paragraph_characters:
            return f"paragraph_characters: {characters / len(text):.3f}"
        lines = _lines(text)
        count, characters = repeats(lines)
        if count / len(lines) > settings.lines:
            return f"lines: {count} of {len(lines)}"
        if characters / len(text) > settings.line_characters:
            return f"line_characters: {characters / len(text):.3f}"
        return _n_grams(draft.words, len(text), settings)

    return rule


def _lines(text: str) -> list[str]:
    """As split by runs of newlines: an empty one before the first run, and behind the last, at the text's ends."""
    lines = [line for line in text.split("\n") if line]
    return [*([""] if text[0] == "\n" else []), *lines, *([""] if text[-1] == "\n" else [])]


def _n_grams(words: TextWords, characters: int, settings: RepetitionSettings) -> str | None:
    before = np.concatenate([[0], np.cumsum(words.length)])
    grams, size = words.hash, 1
    for n in range(2, max((0, *settings.top, *settings.duplicate)) + 1):
        grams, size = longer(grams, words.hash, size), n
        if not len(grams):
            return None
        if n not in settings.top and n not in settings.duplicate:
            continue
        repeat_count = _repeated(grams)
        longest = int((before[n:] - before[:-n]).max())
        # what no n-gram of these can reach is not counted
        if n in settings.top and (longest + n - 1) * (repeat_count + 1) / characters > settings.top[n]:
            at, count = _most_frequent(grams)
            share = (int(before[at + n] - before[at]) + n - 1) * count / characters
            if share > settings.top[n]:
                return f"top_{n}_gram: {share:.3f} of characters"
        if not repeat_count and n >= max((0, *settings.top)):
            return None  # nor does a longer one occur twice
        if n in settings.duplicate and longest * repeat_count / characters > settings.duplicate[n]:
            share = _said_again(grams, before, n) / characters
            if share > settings.duplicate[n]:
                return f"duplicate_{n}_grams: {share:.3f} of characters"
    return None


def _repeated(grams: NDArray[np.uint64]) -> int:
    """How many came before."""
    ordered = np.sort(grams)
    return int(np.count_nonzero(ordered[1:] == ordered[:-1]))


def _most_frequent(grams: NDArray[np.uint64]) -> tuple[int, int]:
    """Where it is first, and how often it occurs; of several so frequent the one that came first."""
    _, first, count = np.unique(grams, return_index=True, return_counts=True)
    largest = count.max()
    return int(first[count == largest].min()), int(largest)


def _said_again(grams: NDArray[np.uint64], before: NDArray[np.int64], n: int) -> int:
    """Characters in n-grams that came before, none counted twice. Only those that occur twice can be."""
    ordered = np.sort(grams)
    duplicates = ordered[1:][ordered[1:] == ordered[:-1]]
    at = np.minimum(np.searchsorted(duplicates, grams), len(duplicates) - 1)
    places = np.flatnonzero(duplicates[at] == grams)
    visited: set[int] = set()
    characters = free = 0
    for place, gram in zip(places.tolist(), grams[places].tolist(), strict=True):
        if place < free:
            continue
        if gram in visited:
            characters += int(before[place + n] - before[place])
            free = place + n
        else:
            visited.add(gram)
    return characters
