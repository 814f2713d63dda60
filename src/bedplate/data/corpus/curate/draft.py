"""A document on its way through the rules, which may change its text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bedplate.data.corpus.curate.vocabulary import Vocabulary, Words, shared

Judge = Callable[[Sequence[str]], Sequence[float]]
"""Texts → how good each is, from 0 to 1."""


class Tools:
    """What rules share: the language of the corpus, its vocabulary, and judges by name."""

    def __init__(self, language: str = "en", judges: Mapping[str, Judge] | None = None) -> None:
        self.language, self.judges = language, judges or {}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return shared(self.language)


class Draft:
    """A text and what is known of it."""

    def __init__(self, text: str, about: Mapping[str, str], tools: Tools) -> None:
        self._text, self.about, self.tools = text, about, tools
        self._words: Words | None = None
        self._lines: list[str] | None = None

    @property
    def text(self) -> str:
        return self._text

    @text.setter
    def text(self, text: str) -> None:
        if text != self._text:
            self._text, self._words, self._lines = text, None, None

    @property
    def words(self) -> Words:
        if self._words is None:
            self._words = self.tools.vocabulary.words(self._text)
        return self._words

    @property
    def least_words(self) -> int:
        """A count that is not above that of the words, and found faster."""
        return self.tools.vocabulary.least(self._text) if self._words is None else self._words.count

    @property
    def lines(self) -> list[str]:
        """Without those that are empty."""
        if self._lines is None:
            self._lines = [line for line in self._text.split("\n") if line.strip()]
        return self._lines


Rule = Callable[[Draft], str | None]
"""Why a draft is dropped (a word, and a detail behind a colon), or None where it is kept, changed or not."""


@dataclass(frozen=True)
class Together:
    """A rule that is faster for several drafts at once; for one it is as any other."""

    many: Callable[[Sequence[Draft]], Sequence[str | None]]

    def __call__(self, draft: Draft) -> str | None:
        return self.many([draft])[0]


PARAGRAPHS = re.compile(r"\n{2,}")
