"""Cuts a long text into documents of about a stated length, at the ends of paragraphs, lines or, in texts without line
breaks, sentences nearest to it.

Rules, deduplication, decontamination and the held-out split see the whole text: it is cut when it is encoded, so that
its pieces stay together. `ID#1`, `ID#2`, … name them.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

LONGEST = 1.5
"""Lengths that a piece may have at most; the least is a half."""
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_WORDS = re.compile(r"\s*[^\s。！？]+[。！？]*[」』”’）]*|\s*[。！？]+[」』”’）]*|\s+")
"""White space goes before a word; Chinese and Japanese sentences end without any."""
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»」』）)\]]*$")
_PARAGRAPH, _LINE, _SENTENCE, _WORD, _CHARACTER = range(5)
"""What ends where a text may be cut, the better place first."""


def cut_text(text: str, length: int, sizes_of: Callable[[Sequence[str]], Sequence[int]]) -> list[str]:
    """The text in pieces of between a half and one and a half of `length`, which together are the text. Of the places
    that leave such pieces the nearest to `length` is taken among the ends of paragraphs, else of lines, else of
    sentences, else of words. sizes_of: the sizes of some stretches of text, in the unit of `length`."""
    pairs = list(_stretches(text, max(1, length // 4)))  # of which a character has at most 4 tokens
    stretches, ends = [stretch for stretch, _ in pairs], [end for _, end in pairs]
    at = [0, *accumulate(sizes_of(stretches))]
    cuts = [0]
    while at[-1] - at[cuts[-1]] > LONGEST * length:
        target = at[cuts[-1]] + length
        first = max(cuts[-1] + 1, bisect_left(at, target - length / 2))
        last = max(first + 1, bisect_right(at, min(target + length / 2, at[-1] - length / 2)))
        cuts.append(min(range(first, last), key=lambda n: (ends[n - 1], abs(at[n] - target))))
    return ["".join(stretches[start:stop]) for start, stop in zip(cuts, [*cuts[1:], len(stretches)], strict=True)]


def _stretches(text: str, longest: int) -> Iterator[tuple[str, int]]:
    """Lines, or the words of those that are longer than `longest` characters, and what ends behind each."""
    lines = _LINES.findall(text)
    for line, following in zip(lines, [*lines[1:], ""], strict=False):
        line_end = _PARAGRAPH if following.strip() and not line.strip() else _LINE
        words = [line] if len(line) <= longest else _WORDS.findall(line)
        for number, word in enumerate(words, start=1):
            inside = _SENTENCE if _SENTENCE_END.search(word) else _WORD
            word_end = line_end if number == len(words) else inside
            for start in range(0, len(word), longest):
                yield word[start : start + longest], word_end if start + longest >= len(word) else _CHARACTER
