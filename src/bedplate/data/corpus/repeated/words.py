"""Words of a text as 64-bit hashes: lower case, all numbers alike, without punctuation and accents. They are the words
of `datatrove.utils.text.simplify_text`.
"""

from __future__ import annotations

import hashlib
import unicodedata

import numpy as np
from numpy.typing import NDArray

_BASE = np.uint64(0x9E3779B97F4A7C15)
_CACHE_SIZE, _LONGEST = 1 << 20, 64
"""Stretches that are remembered, and the characters that one may have."""
PUNCTUATION = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»" + "".join(
    map(chr, (x for a, b in ((0, 9), (11, 13), (13, 32), (127, 160)) for x in range(a, b)))
)
_SPACES = str.maketrans(PUNCTUATION, " " * len(PUNCTUATION))
_SEPARATORS = frozenset(".,،٫⎖⎗⎘")


class _Remembered(dict[str, bytes]):
    """Stretch between white space → hashes of its words, of eight bytes each."""

    def __missing__(self, stretch: str) -> bytes:
        hashes = b"".join(map(_hash, simplified(stretch).split()))
        if len(stretch) <= _LONGEST:
            if len(self) >= _CACHE_SIZE:
                self.clear()
            self[stretch] = hashes
        return hashes


_remembered = _Remembered()


def word_hashes(text: str) -> NDArray[np.uint64]:
    """[W], in order."""
    return np.frombuffer(b"".join(map(_remembered.__getitem__, text.split())), "<u8").astype(np.uint64, copy=False)


def simplified(text: str) -> str:
    """The words of a text between single spaces."""
    text = _one_number(text.lower()).translate(_SPACES)
    if not text.isascii():
        text = "".join(
            c for c in unicodedata.normalize("NFD", " ".join(text.split())) if unicodedata.category(c) != "Mn"
        )
    return " ".join(text.split())


def _one_number(text: str) -> str:
    """Each run of decimal digits, with one separator and further digits behind it, becomes 0."""
    if not any(c.isdecimal() for c in text):
        return text
    chars: list[str] = []
    at, size = 0, len(text)
    while at < size:
        if not text[at].isdecimal():
            chars.append(text[at])
            at += 1
            continue
        at = _digits(text, at)
        if at + 1 < size and text[at] in _SEPARATORS and text[at + 1].isdecimal():
            at = _digits(text, at + 1)
        chars.append("0")
    return "".join(chars)


def _digits(text: str, at: int) -> int:
    while at < len(text) and text[at].isdecimal():
        at += 1
    return at


def n_grams(hashes: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """A hash of each n-gram [W − n + 1], polynomial modulo 2⁶⁴."""
    grams = hashes
    for size in range(1, n):
        grams = longer(grams, hashes, size)
    return grams


def longer(grams: NDArray[np.uint64], hashes: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """From all n-grams of `size` those of one word more."""
    return grams[:-1] * _BASE + hashes[size:]


def _hash(word: str) -> bytes:
    return hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
