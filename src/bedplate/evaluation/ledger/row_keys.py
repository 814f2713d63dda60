"""Keys that recognise a row of data again after its columns are renamed, its text is edited or it is moved.

Exact keys: of its texts in their order, by letters, digits and symbols only, numbers by their value; of all together in
any order and run together, where no two rows of the opening differ in that alone; of each long one alone, also with
look-alike letters taken for one (`as_seen`), and without the words that every row of the opening begins or ends with.
One of them that agrees is enough. Weak keys: of short texts alone, of texts without one word (as spelling correction by
deletion has it, Garbe 2012), of a text's words in any order, of MinHash bands (Broder 1997) of longer texts, of their
least shingles, which a part of the text has as well (containment), of the row's id with two of its words, of rows of
several numbers by the first digits of these. Chance can make one of these agree, so they count where a tenth of the
rows has one, and more rows than chance explains: as many as agree by chance with another row of the same opening, as
short messages of one domain do. A key that several rows of one opening share tells none of them from the others and is
no key; of numbers, and of texts in any order, none is where many rows share theirs.
"""

from __future__ import annotations

import hashlib
import html
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import cache
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from bedplate.core.files import sha256_json
from bedplate.core.values import Values, as_text
from bedplate.data.splits import normalise, row_hash

if TYPE_CHECKING:
    from bedplate.data.corpus.repeated import MinHash


LONG = 24
"""Letters, digits and symbols from which on a text alone is an exact key: shorter ones recur by chance."""
LIKE_FROM = 16
"""Words from which on MinHash tells near-duplicates; below, one word left out does."""
CUT_FROM, _SHINGLE, _SKETCH = 12, 6, 4
"""Words from which on a half of a text is known: by the least of its runs of so many words, so many of them."""
_DIGITS_TOLD = 7
"""First digits, two or three of each number, from which on a row of numbers is known whatever their units."""
_MAX_CHANCE_SHARE = 0.05
"""Where a larger share of an opening's rows have such keys in common, these tell nothing."""
FEWEST = 4
"""Words below which a text without one of them says too little."""
_OF_ID, _WORDS_OF_ID = 4, 64
_JOINED = 3
"""Texts of a row that are run together in any order; more are in the order of the task's inputs alone."""
_OF_A_TEMPLATE = 8
"""Rows from which on words that all of them begin or end with are a template's."""
_BY_LINE = re.compile(r"(?:.*/)?(?:line|row) \d+")
_DROPPED = frozenset("\u115f\u1160\u3164\uffa0")  # letters by their category that show nothing
_AS_LETTERS = str.maketrans("0123456789", "qxzjkvwyfh")


class _Marks(dict[int, int | str | None]):
    """For `str.translate`: nothing of what does not show, a space for what parts words, the rest as it is."""

    def __missing__(self, code: int) -> int | str | None:
        category = unicodedata.category(chr(code))
        replacement: int | str | None = code
        if category in ("Cf", "Mn", "Me", "Cs", "Co", "Cn") or chr(code) in _DROPPED:
            replacement = None
        elif category[0] in "ZPC":
            replacement = " "
        self[code] = replacement
        return replacement


_marks = _Marks()


@dataclass(frozen=True)
class Keys:
    """Keys of each row of one opening. old: what ledgers knew a row by before (`row_hash`). alike: the share of rows
    that have a weak key in common with another row of this opening."""

    old: tuple[str, ...]
    exact: tuple[frozenset[str], ...]
    weak: tuple[frozenset[str], ...]
    alike: float = 0.0

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
    return _folded(text).translate(_marks).split()


@dataclass(frozen=True)
class _RowKeys:
    """The keys of one row before they are held against those of the others. cells: its texts, with numbers by their
    value; alone: of long texts; weak: of short and of edited ones; in_any_order: of all its texts together; by_chance:
    of what rows of another opening may have as well, by what that is."""

    words: dict[str, list[str]]
    cells: tuple[str, ...]
    alone: set[str]
    weak: set[str]
    in_any_order: set[str]
    by_chance: dict[str, set[str]]


def _keys_of_row(inputs: Values) -> _RowKeys:
    words = {field: split_words for field, value in inputs.items() if (split_words := _words(as_text(value)))}
    letters = ["".join(field_words) for field_words in words.values()]
    visible = ["".join(_words(as_seen(as_text(inputs[field])))) for field in words]
    texts = [folded for value in inputs.values() if (folded := _folded(as_text(value)))]
    cells = tuple("".join(_words(_NUMBER.sub(_by_value, text))) for text in texts)
    in_any_order = {_key("row", *sorted(letters)), *_joined(letters)}
    if any(_NUMBER.search(text) for text in texts):
        in_any_order |= {_key("row", *sorted(cells)), *_joined(cells)}
    # what is only nearly the same letters is a key where it is long
    forms = [("row", text, text) for text in letters]
    forms += [("seen", text, plain) for text, plain in zip(visible, letters, strict=True)]
    alone = {_key(form, text) for form, text, _ in forms if len(text) >= LONG}
    short = {False: set[str](), True: set[str]()}  # by whether it is a number
    for form, text, plain in forms:
        if len(text) < LONG:
            short[any(map(str.isdigit, plain)) and not any(map(str.isalpha, plain))].add(_key(form, text))
    by_chance = {"cells": short[True], "seen": set[str]()}
    by_chance |= {f"{count} digits": _first_digits(texts, count) for count in (3, 2)}
    ordered = "".join(sorted(visible))
    (in_any_order if len(ordered) >= LONG else by_chance["seen"]).add(_key("seen", ordered))
    weak = short[False].union(*map(_fuzzy_keys, words.values()))
    return _RowKeys(words, cells, alone, weak, in_any_order, by_chance)


def keys_of(rows: Iterable[tuple[str, Values]]) -> Keys:
    """The keys of rows, each given by its id and its inputs. RequestError for an input that is no text."""
    rows = list(rows)
    parsed = [_keys_of_row(inputs) for _, inputs in rows]
    for row, remainder in zip(parsed, _without_template([row.words for row in parsed]), strict=True):
        (row.alone if len(remainder) >= LONG else row.weak).update({_key("row", remainder)} if remainder else ())
    cells, in_any_order = [row.cells for row in parsed], [row.in_any_order for row in parsed]
    exact, weak = [{_key("cells", *row_cells)} for row_cells in cells], [row.weak for row in parsed]
    by_chance = [[row.by_chance[name] for row in parsed] for name in ("cells", "3 digits", "2 digits", "seen")]
    if _chance(in_any_order, cells):
        by_chance.append(in_any_order)
    else:
        exact = _united(exact, in_any_order)
    for keys in by_chance:
        if _chance(keys, cells) <= _MAX_CHANCE_SHARE:
            weak = _united(weak, keys)
    exact = _united(exact, _telling([row.alone for row in parsed]))
    all_words = [[word for field_words in row.words.values() for word in field_words] for row in parsed]
    named = [(name, row_words) for (name, _), row_words in zip(rows, all_words, strict=True)]
    alike = _alike(weak, cells)
    weak = _united(_telling(weak), _of_ids(named))
    only_weak = (frozenset(w - e) for w, e in zip(weak, exact, strict=True))
    return Keys(tuple(row_hash(inputs) for _, inputs in rows), tuple(map(frozenset, exact)), tuple(only_weak), alike)


def _united(some: Sequence[set[str]], more: Sequence[set[str]]) -> list[set[str]]:
    """The keys of each row from both."""
    return [a | b for a, b in zip(some, more, strict=True)]


def _chance(keys: Sequence[set[str]], cells: Sequence[tuple[str, ...]]) -> float:
    """The share of rows that have a key in common with a row of other cells: about as many agree by chance with rows of
    another opening."""
    rows_of: dict[str, set[tuple[str, ...]]] = {}
    for row_keys, row_cells in zip(keys, cells, strict=True):
        for key in row_keys:
            rows_of.setdefault(key, set()).add(row_cells)
    return sum(any(len(rows_of[key]) > 1 for key in row_keys) for row_keys in keys) / max(1, len(keys))


def _alike(keys: Sequence[set[str]], cells: Sequence[tuple[str, ...]]) -> float:
    """The share of rows that have a key in common with just one row, of other cells: were that row in another opening,
    the key would tell each from the rest of its own, and agree by chance."""
    rows_of: dict[str, list[int]] = {}
    for row, row_keys in enumerate(keys):
        for key in row_keys:
            rows_of.setdefault(key, []).append(row)
    pairs = (rows for rows in rows_of.values() if len(rows) == 2 and cells[rows[0]] != cells[rows[1]])
    return len({row for pair in pairs for row in pair}) / max(1, len(keys))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())


_NUMBER = re.compile(
    r"(?<![\w.])(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,40})(?:\.[0-9]{1,40})?(?:e[+-]?[0-9]{1,2})?(?!\w|[.,][0-9])"
)


_EVERY_DIGIT = Context(prec=100)


def _decimal(number: re.Match[str]) -> Decimal:
    return Decimal(number[0].replace(",", "")).normalize(_EVERY_DIGIT)


def _by_value(number: re.Match[str]) -> str:
    """Such as 1200 for 1,200, 1200.0 and 1.2e3; the point is a sign that stays."""
    return f"{_decimal(number):f}".replace(".", "¤")


def _first_digits(texts: Sequence[str], count: int) -> set[str]:
    """The key of a row's texts with each number by so many first digits, whatever its unit and rounding; of rows that
    have several of them."""
    digits = list[str]()

    def first(number: re.Match[str]) -> str:
        value = _decimal(number)
        digits.append(f"{value:.{count - 1}e}".partition("e")[0].replace(".", "").rstrip("0") if value else "")
        return f" ¤{digits[-1]}¤ "

    scaled = sorted("".join(words_of(_NUMBER.sub(first, text))) for text in texts)
    return {_key("digits", str(count), *scaled)} if sum(map(len, digits)) >= _DIGITS_TOLD else set()


def _words(text: str) -> list[str]:
    """The words of a text; of one that is punctuation alone, that."""
    return words_of(text) or normalise("".join(c for c in text if unicodedata.category(c) not in ("Cf", "Mn"))).split()


def _joined(letters: Sequence[str]) -> set[str]:
    """Keys of a row's texts run together, which a row that has them in one column, or cut elsewhere, has as well."""
    orders = permutations(letters) if len(letters) <= _JOINED else [letters]
    return {_key("row", "".join(order)) for order in orders}


def _without_template(rows: Sequence[Mapping[str, list[str]]]) -> list[str]:
    """The letters of each row without the words that every row's text begins or ends with; "" where that is nothing."""
    if len(rows) < _OF_A_TEMPLATE:
        return [""] * len(rows)
    fields = dict.fromkeys(field for row in rows for field in row)
    cuts = {field: _common([row.get(field, []) for row in rows]) for field in fields}
    if not any(head or tail for head, tail in cuts.values()):
        return [""] * len(rows)
    return ["".join("".join(words[cuts[f][0] : len(words) - cuts[f][1]]) for f, words in row.items()) for row in rows]


def _common(texts: Sequence[list[str]]) -> tuple[int, int]:
    """How many words all of these begin with and, of what is left, end with."""
    shortest = min(map(len, texts))
    head = _agreeing(texts, range(shortest))
    return head, _agreeing(texts, range(-1, head - shortest - 1, -1))


def _agreeing(texts: Sequence[list[str]], places: range) -> int:
    first = texts[0]
    return next((i for i, at in enumerate(places) if any(words[at] != first[at] for words in texts)), len(places))


def _key(*parts: str) -> str:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def _fuzzy_keys(words: Sequence[str]) -> set[str]:
    """What a text keeps when a word of it is changed, or all of them stand in another order."""
    if len(words) < FEWEST:
        return set()
    ordered = _key("bag", *sorted(words))
    sketch = _sketch(words)
    if len(words) >= LIKE_FROM:
        # digits tell rows apart, which word hashes take for one number: they are spelled as letters
        bands = _minhash().bands(" ".join(words).translate(_AS_LETTERS))
        signature = [] if bands is None else bands.tolist()  # of digits of another script there is none
        return {ordered, *sketch, *(_key("band", str(place), str(band)) for place, band in enumerate(signature))}
    without = (" ".join([*words[:place], *words[place + 1 :]]) for place in range(len(words)))
    return {ordered, *sketch, *(_key("words", phrase) for phrase in (" ".join(words), *without))}


def _sketch(words: Sequence[str]) -> set[str]:
    """The least of a text's runs of words by their hashes; those in a part of it are the least of that part, too."""
    from bedplate.data.corpus.repeated import n_grams, word_hashes

    if len(words) < CUT_FROM // 2:
        return set()
    hashes = n_grams(word_hashes(" ".join(words).translate(_AS_LETTERS)), _SHINGLE)
    mixed = np.unique((hashes ^ (hashes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9))
    return {_key("run", str(least)) for least in mixed[:_SKETCH].tolist()}


@cache
def _minhash() -> MinHash:
    """Pairs of words, six agreeing minima a band: one word of sixteen changed is found in most rows, texts that share a
    tenth of their pairs in one of ten thousand."""
    from bedplate.data.corpus.recipe import MinHashSettings
    from bedplate.data.corpus.repeated import MinHash

    return MinHash(MinHashSettings(words=2, bands=12, rows=6))


def _telling(keys: Sequence[set[str]]) -> list[set[str]]:
    """Without those that several rows share."""
    counts = Counter(key for row_keys in keys for key in row_keys)
    return [{key for key in row_keys if counts[key] == 1} for row_keys in keys]


def _of_ids(rows: Sequence[tuple[str, list[str]]]) -> list[set[str]]:
    """Keys of a row's id, with the two least of its words in each of some orders: an id that another file uses again is
    no key to a row that says something else. Words that many rows have say nothing, and a line's number is no id."""
    counts = Counter(word for _, words in rows for word in set(words))
    max_rows = max(2, len(rows) // 10)
    id_keys: list[set[str]] = []
    for name, words in rows:
        rare_words = [word for word in dict.fromkeys(words) if counts[word] <= max_rows][:_WORDS_OF_ID]
        keys = set[str]()
        for order in range(0 if _BY_LINE.fullmatch(name) else _OF_ID):
            keys.add(_key("id", name, *sorted(rare_words, key=lambda word, o=str(order): _key(o, word))[:2]))
        id_keys.append(keys if rare_words else set())
    return id_keys


def matching_rows(keys: Keys, record: Mapping[str, Any]) -> set[int]:
    """The numbers of the rows that an entry of the ledger has: by an exact key, or by any key where that is a tenth of
    the rows, three, and three standard deviations more than agree by chance (`Keys.alike`, binomial)."""
    exact, weak = frozenset(record.get("exact", ())), frozenset(record.get("like", ()))
    all_keys, old = exact | weak, frozenset(record.get("rows", ()))
    surely = {
        i for i, (mine, before) in enumerate(zip(keys.exact, keys.old, strict=True)) if mine & exact or before in old
    }
    perhaps = {i for i, mine in enumerate(keys.exact) if (mine | keys.weak[i]) & all_keys} | surely
    count = len(keys.old)
    alike = max(record.get("alike", 0.0), 1 - (1 - keys.alike) ** (len(old) / max(1, count - 1)))
    by_chance = alike * count + 3 * math.sqrt(alike * (1 - alike) * count)
    return perhaps if len(perhaps) >= min(count, max(3, count // 10)) and len(perhaps) > by_chance else surely


# Letters that a reader takes for others, by their look in common typefaces, as Unicode's confusables have it (Unicode
# Technical Standard 39, section 4); in lower case alone, since what is compared has no case any more.
_LOOKS = (
    # Latin: i and l are one where capitals were; letters of other alphabets, and small capitals
    ("lol", "i01"),
    ("aeoldhtgln", "ɑəøłđħŧɡıŋ"),
    ("abcdefghljklmnoprstuvwyz", "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ"),
    ("abekmhopctyxsljdhqwl", "авекмнорстухѕіјԁһԛԝӏ"),  # Cyrillic
    ("abezhlkmvoptuxywcj", "αβεζηικμνορτυχγωϲϳ"),  # Greek
    ("ouhngqq", "օսհոցզգ"),  # Armenian
)
_LOOKALIKES = str.maketrans(
    {theirs: ours for standard, lookalikes in _LOOKS for ours, theirs in zip(standard, lookalikes, strict=True)}
)


def as_seen(text: str) -> str:
    """The text as a reader sees it: entities of HTML resolved, without case and accents, letters that look alike one.
    No text to be read, but one to be compared."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", html.unescape(text)).casefold())
    return plain.translate(_LOOKALIKES)
