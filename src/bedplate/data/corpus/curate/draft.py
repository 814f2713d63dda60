"""A document on its way through the curation rules, which may change its text, and its words as numbers.

spaCy's tokenizer treats each whitespace-separated stretch alone, so its result is cached by stretch. The words are
those of `datatrove.utils.text.split_into_words`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import UsageError
from bedplate.data.corpus.repeated import Remembered

_BITS = (1 << 64) - 1
_CACHE_SIZE, _LONGEST = 1 << 18, 64
"""Stretches and words that are remembered before all is forgotten, by spaCy too; characters that one may have to be
remembered as it is."""
_NO_SPACES = frozenset(("zh", "ja", "th", "vi", "ko", "lo", "km", "my", "bo"))
"""Languages whose words are not to be had from stretches between white space alone."""
_NUMBERS: dict[str, type] = {"length": np.int64, "hash": np.uint64, "stop": np.int64}
_FACTS = _NUMBERS | dict.fromkeys(("symbol", "alpha", "ends", "punct"), bool)
"""What is known of a word: its length, a random number, whether it is of symbols alone and has a letter, which
stop word it is (from 1, or 0), whether it ends a sentence and is punctuation."""
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
"""Gopher's (https://arxiv.org/abs/2112.11446, appendix A1.1)."""


class WordTable:
    """Words by number, with what rules ask of each. Languages that spaCy does not split at white space are tokenised
    as a whole, in datatrove's way. UsageError where datatrove and spaCy are not installed, or have no such language."""

    def __init__(self, language: str = "en") -> None:
        self._language = language
        self._punctuation, self._tokenizer = _datatrove(language)
        self._splits_on_spaces = language not in _NO_SPACES
        self._forget()

    def _forget(self) -> None:
        self._numbers: dict[str | bytes, int] = {}
        self._remembered = Remembered(self._of_stretch, math.inf)
        self._split, self._sentence_ends = (
            _spacy(self._language, self._tokenizer) if self._splits_on_spaces else (None, frozenset())
        )
        self._facts = {name: np.zeros(1 << 12, dtype) for name, dtype in _FACTS.items()}

    def words(self, text: str) -> TextWords:
        if self._splits_on_spaces:
            numbers = self._numbered(text.split())
        else:
            self._make_room()
            numbers = np.fromiter(map(self._number, self._tokenizer.word_tokenize(text)), np.int64)
        return TextWords(self._facts, numbers)

    def sentences(self, text: str) -> int:
        """How many there are, as datatrove has spaCy count them: one begins with the first word behind an end."""
        stretches = text.split(" ")
        if self._split is None or "IS_ALPHA" in text or stretches != text.split():
            return len(self._tokenizer.span_tokenize(text))  # other white space is a word to spaCy
        numbers = self._numbered(stretches)
        ended = np.cumsum(self._facts["ends"][numbers])[~self._facts["punct"][numbers]]
        return 1 + int(np.count_nonzero(np.diff(ended, prepend=0)))

    def _numbered(self, stretches: list[str]) -> NDArray[np.int64]:
        self._make_room()
        return np.frombuffer(b"".join(map(self._remembered.__getitem__, stretches)), np.int64)

    def _make_room(self) -> None:
        if max(len(self._remembered), len(self._numbers)) > _CACHE_SIZE:
            self._forget()

    def min_words(self, text: str) -> int:
        """A count that is not above that of a text's words: each stretch has one."""
        return 0 if self._split is None or "IS_ALPHA" in text else len(text.split())

    def _of_stretch(self, stretch: str) -> bytes:
        if self._split is None:
            numbers = [self._number(word) for word in self._tokenizer.word_tokenize(stretch) if word]
        else:  # datatrove leaves this string out, which the tokenizer cannot read
            tokens = self._split(stretch.replace("IS_ALPHA", ""))
            numbers = [self._number(word, token.is_punct) for token in tokens if (word := token.text.strip())]
        return np.array(numbers, np.int64).tobytes()

    def _number(self, word: str, punct: bool = False) -> int:
        key = word if len(word) <= _LONGEST else hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._numbers)
            if number == len(self._facts["length"]):
                self._facts |= {name: np.concatenate([old, np.zeros_like(old)]) for name, old in self._facts.items()}
            ends = word in self._sentence_ends
            values = {
                "length": len(word),
                "hash": _random(number),
                "symbol": all(c in self._punctuation for c in word),
                "alpha": any(c.isalpha() for c in word),
                "stop": STOP_WORDS.index(word) + 1 if word in STOP_WORDS else 0,
                "ends": ends,
                "punct": punct or ends,
            }
            for name, value in values.items():
                self._facts[name][number] = value
        return number


@cache
def shared(language: str) -> WordTable:
    """One for all parts that a process works off: what is remembered of words depends on no text."""
    return WordTable(language)


class TextWords:
    """A text's words. `words["length"]` and other names of _FACTS: [W] each."""

    def __init__(self, facts: Mapping[str, NDArray[Any]], numbers: NDArray[np.int64]) -> None:
        self.count, self._facts, self._numbers = len(numbers), facts, numbers

    def __getitem__(self, fact: str) -> NDArray[Any]:
        return self._facts[fact][self._numbers]


def _random(number: int) -> int:
    """splitmix64's output at a number (Steele, Lea & Flood, 2014)."""
    x = (number + 1) * 0x9E3779B97F4A7C15 & _BITS
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _BITS
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _BITS
    return x ^ (x >> 31)


def _datatrove(language: str) -> tuple[set[str], Any]:
    try:
        from datatrove.utils.text import PUNCTUATION_SET
        from datatrove.utils.word_tokenizers import load_word_tokenizer

        tokenizer: Any = load_word_tokenizer(language)
        tokenizer.word_tokenize("a")
    except (ValueError, ImportError, KeyError) as error:
        raise UsageError(f"there is no word tokenizer for the language {language!r}: {error}") from error
    return PUNCTUATION_SET, tokenizer


def _spacy(language: str, tokenizer: Any) -> tuple[Any, frozenset[str]]:
    """What splits for spaCy, alone, and what ends a sentence to it: without the sentences that datatrove's object finds
    as well. None where the language is split by another program."""
    from datatrove.utils.word_tokenizers import SpaCyTokenizer

    if not isinstance(tokenizer, SpaCyTokenizer):
        return None, frozenset()
    import spacy
    from spacy.pipeline import Sentencizer

    split = spacy.blank(language if tokenizer.language is None else tokenizer.language).tokenizer
    return split, frozenset(Sentencizer.default_punct_chars)


Judge = Callable[[Sequence[str]], Sequence[float]]
"""Texts → how good each is, from 0 to 1."""


class Tools:
    """What rules share: the language of the corpus, its vocabulary, judges by name, and whether long texts are cut
    (`cuts`), so that none is too long."""

    def __init__(self, language: str = "en", judges: Mapping[str, Judge] | None = None, *, cuts: bool = False) -> None:
        self.language, self.judges, self.cuts = language, judges or {}, cuts

    @cached_property
    def vocabulary(self) -> WordTable:
        return shared(self.language)


class DraftDocument:
    """A text and what is known of it. rule, detail: what drops it, and why; changed: which rules changed its text."""

    def __init__(self, text: str, about: Mapping[str, str], tools: Tools) -> None:
        self._text, self.about, self.tools = text, about, tools
        self.rule: str | None = None
        self.detail, self.changed = "", list[str]()
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
