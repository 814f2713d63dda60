"""What a row of data is known by again when its columns are renamed, its text is touched up, or it lies elsewhere.

Exact keys: of all its texts together, and of each long one alone, by letters, digits and symbols only. One of them that
agrees is enough. Weak keys: of short texts alone, of texts without one word (as spelling correction by deletion has it,
Garbe 2012), of MinHash bands (Broder 1997) of longer texts, of the row's id with two of its words. Chance can make one
of these agree, so they count where a tenth of the rows has one. A key that several rows of one opening share tells none
of them from the others and is no key.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from bedplate.core.files import sha256_json
from bedplate.core.values import Values, as_text
from bedplate.data.splits import normalise, row_hash

if TYPE_CHECKING:
    from bedplate.data.corpus.repeated.minhash import MinHash

LONG = 24
"""Letters, digits and symbols from which on a text alone is an exact key: shorter ones recur by chance."""
LIKE_FROM = 16
"""Words from which on MinHash tells near-duplicates; below, one word left out does."""
FEWEST = 4
"""Words below which a text without one of them says too little."""
_OF_ID, _WORDS_OF_ID = 4, 64
_BY_LINE = re.compile(r"(?:.*/)?(?:line|row) \d+")
_DROPPED = frozenset("\u115f\u1160\u3164\uffa0")  # letters by their category that show nothing
_AS_LETTERS = str.maketrans("0123456789", "qxzjkvwyfh")


class _Marks(dict[int, int | str | None]):
    """For `str.translate`: nothing of what does not show, a space for what parts words, the rest as it is."""

    def __missing__(self, code: int) -> int | str | None:
        kind = unicodedata.category(chr(code))
        found: int | str | None = code
        if kind in ("Cf", "Mn", "Me", "Cs", "Co", "Cn") or chr(code) in _DROPPED:
            found = None
        elif kind[0] in "ZPC":
            found = " "
        self[code] = found
        return found


_marks = _Marks()


@dataclass(frozen=True)
class Keys:
    """Of the rows of one opening, each with its own. old: what ledgers knew a row by before (`row_hash`)."""

    old: tuple[str, ...]
    exact: tuple[frozenset[str], ...]
    weak: tuple[frozenset[str], ...]

    @property
    def digest(self) -> str:
        """sha256 (hex) of all of them, whatever the order of the rows."""
        return sha256_json([self.all_exact, self.all_weak])

    @property
    def all_exact(self) -> list[str]:
        return sorted(frozenset[str]().union(*self.exact))

    @property
    def all_weak(self) -> list[str]:
        return sorted(frozenset[str]().union(*self.weak))


def words_of(text: str) -> list[str]:
    """The words of a text: compatibility forms, accents, case, punctuation and what does not show left aside."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return folded.translate(_marks).split()


def keys_of(rows: Iterable[tuple[str, Values]]) -> Keys:
    """The keys of rows, each given by its id and its inputs. RequestError for an input that is no text."""
    old: list[str] = []
    exact: list[set[str]] = []
    alone: list[set[str]] = []
    weak: list[set[str]] = []
    named: list[tuple[str, list[str]]] = []
    for name, inputs in rows:
        words = [found for value in inputs.values() if (found := words_of(as_text(value)) or _bare(as_text(value)))]
        letters = sorted("".join(one) for one in words)
        old.append(row_hash(inputs))
        exact.append({_key("row", *letters)})
        alone.append({_key("row", one) for one in letters if len(one) >= LONG})
        weak.append({_key("row", one) for one in letters if len(one) < LONG})
        for one in words:
            weak[-1] |= _like(one)
        named.append((name, [word for one in words for word in one]))
    both = [a | b for a, b in zip(exact, _telling(alone), strict=True)]
    weak = [a | b for a, b in zip(_telling(weak), _of_ids(named), strict=True)]
    return Keys(
        tuple(old), tuple(map(frozenset, both)), tuple(frozenset(w - e) for w, e in zip(weak, both, strict=True))
    )


def _bare(text: str) -> list[str]:
    """Of a text that is punctuation alone, that."""
    return normalise("".join(c for c in text if unicodedata.category(c) not in ("Cf", "Mn"))).split()


def _key(*parts: str) -> str:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def _like(words: Sequence[str]) -> set[str]:
    """What a text keeps when a word of it is changed."""
    if len(words) >= LIKE_FROM:
        # digits tell rows apart, which word hashes take for one number: they are spelled as letters
        bands = _minhash().bands(" ".join(words).translate(_AS_LETTERS))
        assert bands is not None
        return {_key("band", str(place), str(band)) for place, band in enumerate(bands.tolist())}
    if len(words) < FEWEST:
        return set()
    without = (" ".join([*words[:place], *words[place + 1 :]]) for place in range(len(words)))
    return {_key("words", one) for one in (" ".join(words), *without)}


@cache
def _minhash() -> MinHash:
    """Pairs of words, six agreeing minima a band: one word of sixteen changed is found in most rows, texts that share a
    tenth of their pairs in one of ten thousand."""
    from bedplate.data.corpus.recipe import MinHashSettings
    from bedplate.data.corpus.repeated.minhash import MinHash

    return MinHash(MinHashSettings(words=2, bands=12, rows=6))


def _telling(keys: Sequence[set[str]]) -> list[set[str]]:
    """Without those that several rows share."""
    counts = Counter(key for one in keys for key in one)
    return [{key for key in one if counts[key] == 1} for one in keys]


def _of_ids(rows: Sequence[tuple[str, list[str]]]) -> list[set[str]]:
    """Keys of a row's id, with the two least of its words in each of some orders: an id that another file uses again is
    no key to a row that says something else. Words that many rows have say nothing, and a line's number is no id."""
    counts = Counter(word for _, words in rows for word in set(words))
    most = max(2, len(rows) // 10)
    found: list[set[str]] = []
    for name, words in rows:
        told = [word for word in dict.fromkeys(words) if counts[word] <= most][:_WORDS_OF_ID]
        keys = set[str]()
        for order in range(0 if _BY_LINE.fullmatch(name) else _OF_ID):
            keys.add(_key("id", name, *sorted(told, key=lambda word, o=str(order): _key(o, word))[:2]))
        found.append(keys if told else set())
    return found


def known(keys: Keys, entry: Mapping[str, Sequence[str]]) -> set[int]:
    """The numbers of the rows that an entry of the ledger has: by an exact key, or by any key where that is a tenth of
    the rows, and three."""
    exact, weak = frozenset(entry.get("exact", ())), frozenset(entry.get("like", ()))
    both, old = exact | weak, frozenset(entry.get("rows", ()))
    surely = {
        i for i, (mine, before) in enumerate(zip(keys.exact, keys.old, strict=True)) if mine & exact or before in old
    }
    perhaps = {i for i, mine in enumerate(keys.exact) if (mine | keys.weak[i]) & both} | surely
    return perhaps if len(perhaps) >= min(len(keys.old), max(3, len(keys.old) // 10)) else surely
