"""Quality by heuristics: Gopher's (https://arxiv.org/abs/2112.11446, appendix A1.1) and FineWeb's
(https://arxiv.org/abs/2406.17557, section 3.6). The outcomes are those of datatrove's filters.
"""

from __future__ import annotations

import numpy as np

from bedplate.core.config import Strict
from bedplate.data.corpus.curate.draft import DraftDocument, Rule, Tools


class LengthSettings(Strict):
    """Characters."""

    min_characters: int = 1
    max_characters: int = 10_000_000


def length(settings: LengthSettings, tools: Tools) -> Rule:
    """Too short to say anything, or so long that it is no document."""

    def rule(draft: DraftDocument) -> str | None:
        size = len(draft.text.strip())
        if size < settings.min_characters:
            return f"short: {size} characters" if size else "empty"
        return f"long: {size} characters" if size > settings.max_characters else None

    return rule


class GopherSettings(Strict):
    """Gopher's thresholds."""

    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3
    max_word_length: float = 10
    max_symbols_per_word: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_words_with_letter: float = 0.8
    min_stop_words: int = 2


def gopher(settings: GopherSettings, tools: Tools) -> Rule:
    """Words, symbols, bullets, ellipses, letters and stop words."""

    def rule(draft: DraftDocument) -> str | None:
        words, text = draft.words, draft.text
        real = words.length[~words.symbol]
        if len(real) < settings.min_words:
            return f"few_words: {len(real)}"
        if len(real) > settings.max_words:
            return f"many_words: {len(real)}"
        mean = float(real.mean())
        if mean < settings.min_word_length:
            return f"short_words: {mean:.2f} characters on average"
        if mean > settings.max_word_length:
            return f"long_words: {mean:.2f} characters on average"
        hashes = text.count("#") / words.count
        if hashes > settings.max_symbols_per_word:
            return f"hashes: {hashes:.3f} a word"
        ellipses = (text.count("...") + text.count("…")) / words.count
        if ellipses > settings.max_symbols_per_word:
            return f"ellipses: {ellipses:.3f} a word"
        if "•" in text or "-" in text:
            lines = text.splitlines()
            bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines)
            if bullets > settings.max_bullet_lines:
                return f"bullets: {bullets:.3f} of lines"
        if ellipses:
            lines = text.splitlines()
            ends = sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)
            if ends > settings.max_ellipsis_lines:
                return f"ellipsis_lines: {ends:.3f} of lines"
        letters = int(words.alpha.sum()) / words.count
        if letters < settings.min_words_with_letter:
            return f"few_letters: {letters:.3f} of words have one"
        stops = int(np.count_nonzero(np.bincount(words.stop)[1:]))
        return f"stop_words: {stops} of 8" if stops < settings.min_stop_words else None

    return rule


class FineWebSettings(Strict):
    """FineWeb's thresholds."""

    min_punctuated_lines: float = 0.12
    punctuated_lines_may_be_none: bool = False
    max_short_lines: float = 0.67
    short_line: int = 30
    max_duplicate_characters: float = 0.01
    max_newlines_per_word: float = 0.3


def fineweb(settings: FineWebSettings, tools: Tools) -> Rule:
    """Ends of lines, short lines, repeated lines, lists."""
    from datatrove.utils.text import TERMINAL_PUNCTUATION

    def rule(draft: DraftDocument) -> str | None:
        lines = draft.lines
        if not lines:
            return "empty"
        punctuated = sum(line[-1] in TERMINAL_PUNCTUATION for line in lines) / len(lines)
        if punctuated < settings.min_punctuated_lines and (punctuated or not settings.punctuated_lines_may_be_none):
            return f"punctuated_lines: {punctuated:.3f}"
        short = sum(len(line) <= settings.short_line for line in lines) / len(lines)
        if short > settings.max_short_lines:
            return f"short_lines: {short:.3f}"
        breaks = draft.text.count("\n")
        repeated = repeats(lines)[1] / (len(draft.text) - breaks)
        if repeated > settings.max_duplicate_characters:
            return f"duplicate_lines: {repeated:.3f} of characters"
        if breaks <= settings.max_newlines_per_word * draft.least_words:
            return None
        newlines = breaks / draft.words.count
        return f"list: {newlines:.3f} newlines a word" if newlines > settings.max_newlines_per_word else None

    return rule


def repeats(segments: list[str]) -> tuple[int, int]:
    """How many came before, and their characters."""
    if len(set(segments)) == len(segments):
        return 0, 0
    unique: set[str] = set()
    count = characters = 0
    for segment in segments:
        if segment in unique:
            count += 1
            characters += len(segment)
        else:
            unique.add(segment)
    return count, characters
