"""A document on its way through the curation rules, which may change its text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bedplate.data.corpus.curate.vocabulary import TextWords, WordTable, shared

Judge = Callable[[Sequence[str]], Sequence[float]]
"""Texts → how good each is, from 0 to 1."""


class Tools:
    """What rules share: the language of the corpus, its vocabulary, and judges by name."""

    def __init__(self, language: str = "en", judges: Mapping[str, Judge] | None = None) -> None:
        self.language, self.judges = language, judges or {}

    @cached_property
    def vocabulary(self) -> WordTable:
        return shared(self.language)


class DraftDocument:
    """A text and what is known of it."""

    def __init__(self, text: str, about: Mapping[str, str], tools: Tools) -> None:
        self._text, self.about, self.tools = text, about, tools
        self._words: TextWords | None = None
        self._lines: list[str] | None = None

    @property
    def text(self) -> str:
        return self._text

    @text.setter
    def text(self, text: str) -> None:
        if text != self._text:
            self._text, self._words, self._lines = text, None, None

    @property
    def words(self) -> TextWords:
        if self._words is None:
            self._words = self.tools.vocabulary.words(self._text)
        return self._words

    @property
    def least_words(self) -> int:
        """A count that is not above that of the words, and found faster."""
        return self.tools.vocabulary.min_words(self._text) if self._words is None else self._words.count

    @property
    def lines(self) -> list[str]:
        """Without those that are empty."""
        if self._lines is None:
            self._lines = [line for line in self._text.split("\n") if line.strip()]
        return self._lines


Rule = Callable[[DraftDocument], str | None]
"""Why a draft is dropped (a word, and a detail behind a colon), or None where it is kept, changed or not."""


@dataclass(frozen=True)
class Together:
    """A rule that is faster for several drafts at once; for one it is as any other."""

    apply_batch: Callable[[Sequence[DraftDocument]], Sequence[str | None]]

    def __call__(self, draft: DraftDocument) -> str | None:
        return self.apply_batch([draft])[0]


PARAGRAPHS = re.compile(r"\n{2,}")
