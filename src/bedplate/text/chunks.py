"""Texts cut into pieces of at most so many tokens, at borders of paragraphs, sentences and words, with an overlap."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bedplate.core.errors import UsageError

# What ends a paragraph, a sentence (also in scripts without spaces between them), a word: the better border first.
_BORDERS = (re.compile(r"\n\s*\n\s*"), re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])|\n+"), re.compile(r"\s+"))


@dataclass(frozen=True)
class TextChunk:
    """Characters `start` to `end` of a text. fresh: where what the piece before it does not have begins."""

    start: int
    end: int
    fresh: int


def pieces(text: str, size: int, overlap: int, count: Callable[[str], int]) -> list[TextChunk]:
    """The text's pieces, in order; together they hold every character of it. count: tokens of a text. A piece has at
    most `size` of them, unless a single character has more, and begins with at most `overlap` tokens of the end of the
    one before it, as whole sentences or paragraphs. UsageError for a size below 1, or an overlap that is not below the
    size."""
    if size < 1 or not 0 <= overlap < size:
        raise UsageError(f"passages of {size} tokens with {overlap} of overlap cannot be: 0 ≤ overlap < size")
    atoms = list(_atoms(text, 0, len(text), size, count, 0))
    chunks: list[TextChunk] = []
    first = 0
    while first < len(atoms):
        start = atoms[first][0] if not chunks else _overlapping(text, atoms, first, size, overlap, count)
        last = first
        while last + 1 < len(atoms) and count(text[start : atoms[last + 1][1]]) <= size:
            last += 1
        last = _better(text, atoms, first, last)
        chunks.append(TextChunk(start, atoms[last][1], atoms[first][0]))
        first = last + 1
    return chunks


def _atoms(
    text: str, start: int, end: int, size: int, count: Callable[[str], int], level: int
) -> Iterator[tuple[int, int]]:
    """Consecutive stretches that fit: sentences, or words where a sentence does not, or halves of a word. White space
    belongs to what it ends. level: of the borders that the stretch is cut at."""
    if start == end:
        return
    if end - start == 1 or (level >= 2 and count(text[start:end]) <= size):
        yield start, end
        return
    if level < len(_BORDERS):
        cuts = [border.end() for border in _BORDERS[level].finditer(text, start, end)]
        level += 1
    else:
        cuts = [(start + end) // 2]
    for cut in (*cuts, end):
        if cut > start:
            yield from _atoms(text, start, cut, size, count, level)
            start = cut


def _overlapping(
    text: str, atoms: list[tuple[int, int]], first: int, size: int, overlap: int, count: Callable[[str], int]
) -> int:
    """Where a piece begins whose own first stretch is `first`: as far before it as overlap and size allow."""
    start = atoms[first][0]
    for before in range(first - 1, -1, -1):
        at = atoms[before][0]
        if count(text[at : atoms[first][0]]) > overlap or count(text[at : atoms[first][1]]) > size:
            break
        start = at
    return start


def _better(text: str, atoms: list[tuple[int, int]], first: int, last: int) -> int:
    """The last stretch of a piece: an earlier one that ends a paragraph, if the piece stays more than half as long."""
    if last + 1 == len(atoms):
        return last
    begin, end = atoms[first][0], atoms[last][1]
    for at in range(last, first - 1, -1):
        if atoms[at][1] - begin <= (end - begin) / 2:
            break
        if _BORDERS[0].search(text, max(atoms[at][0], atoms[at][1] - 8), atoms[at][1]):
            return at
    return last
