"""Text that occurs more than once, in the corpus itself or in what a model will be evaluated on.

Copies are found by hash, near-duplicates by MinHash (Broder, 1997) with locality-sensitive bands; of each cluster the
first document stays. Documents that agree in all hashes of a band are one cluster. Hash functions are multiply-shift
(Dietzfelbinger et al., 1997) over hashes of n-grams of words: lower case, all numbers alike, without punctuation and
accents, as `datatrove.utils.text.simplify_text` has them. Tables of figures are not alike: numbers in a row are told by
their values, and n-grams of numbers alone are left out.

Contaminated documents share so many words in a row with an evaluation (13 in GPT-3's appendix C,
https://arxiv.org/abs/2005.14165), of which at least half are no numbers.

Shapes: D documents, S shingles of one, H = bands × rows hashes, B bands.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import DataError
from bedplate.core.files import sha256_file, sha256_json
from bedplate.core.json import load_json
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.data.corpus.recipe import Dedup, MinHashSettings
from bedplate.data.corpus.shards import save_arrays

_BASE = np.uint64(0x9E3779B97F4A7C15)
_LONGEST = 64
"""Characters of a stretch that is remembered."""
PUNCTUATION = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»" + "".join(
    map(chr, (x for a, b in ((0, 9), (11, 13), (13, 32), (127, 160)) for x in range(a, b)))
)
_SPACES = str.maketrans(PUNCTUATION, " " * len(PUNCTUATION))
_NUMBER = re.compile(r"\d+(?:[.,،٫⎖⎗⎘]\d+)?")


class Remembered(dict[str, bytes]):
    """Stretch between white space → numbers of its words, of eight bytes each, made on first sight. most: stretches
    that are remembered before all are forgotten."""

    def __init__(self, encode: Callable[[str], bytes], most: float) -> None:
        super().__init__()
        self.encode, self.most = encode, most

    def __missing__(self, stretch: str) -> bytes:
        encoding = self.encode(stretch)
        if len(stretch) <= _LONGEST:
            if len(self) >= self.most:
                self.clear()
            self[stretch] = encoding
        return encoding


_remembered = Remembered(lambda stretch: b"".join(map(_hash, simplified(stretch).split())), 1 << 20)


def word_hashes(text: str) -> NDArray[np.uint64]:
    """[W], in order. Numbers are alike, but for those of a table: FIGURES or more in a row."""
    return _words(text)[0]


def _words(text: str) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Their hashes [W], and which are numbers."""
    stretches = text.split()
    hashes = _joined(map(_remembered.__getitem__, stretches))
    numbers = hashes == _ANY_NUMBER
    if np.count_nonzero(numbers) >= FIGURES:
        window = np.ones(FIGURES, np.int8)
        figures = np.convolve(np.convolve(numbers, window, "valid") == FIGURES, window) > 0
        if figures.any():
            by_value = (simplified(stretch, lambda number: _hash(number[0]).hex()) for stretch in stretches)
            hashes = np.where(figures, _joined(_hash(word) for words in by_value for word in words.split()), hashes)
    return hashes, numbers


def _joined(hashes: Iterable[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64, copy=False)


def simplified(text: str, number: str | Callable[[re.Match[str]], str] = "0") -> str:
    """The words of a text between single spaces. number: what stands for each number, of letters and digits."""
    text = _NUMBER.sub(number, text.lower()).translate(_SPACES)
    if not text.isascii():
        text = unicodedata.normalize("NFD", " ".join(text.split()))
        text = "".join(c for c in text if unicodedata.category(c) != "Mn")
    return " ".join(text.split())


def n_grams(hashes: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """A hash of each n-gram [W − n + 1], polynomial modulo 2⁶⁴."""
    grams = hashes
    for size in range(1, n):
        grams = longer(grams, hashes, size)
    return grams


def longer(grams: NDArray[np.uint64], hashes: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """From all n-grams of `size` those of one word more."""
    return grams[:-1] * _BASE + hashes[size:]


def shingles(text: str, size: int, least: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of the n-grams of `size` words of which at least `least` are no numbers, and where each begins."""
    hashes, numbers = _words(text)
    before = np.concatenate([[0], np.cumsum(~numbers)])
    starts = np.flatnonzero(before[size:] - before[:-size] >= least)
    return n_grams(hashes, size)[starts], starts


def _hash(word: str) -> bytes:
    return hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()


_ANY_NUMBER = np.frombuffer(_hash("0"), "<u8")[0]
FIGURES = 4
"""Numbers in a row that are told by their values: a date has three."""

_TOGETHER = 2048
"""Shingles whose hashes are computed at once."""
_MIX = np.uint64(0xBF58476D1CE4E5B9)


class MinHash:
    """Signatures under one choice of hash functions."""

    def __init__(self, settings: MinHashSettings) -> None:
        self.settings = settings
        generator = np.random.Generator(np.random.PCG64(settings.seed))
        count = settings.bands * settings.rows
        top = np.iinfo(np.uint64).max
        self._a = generator.integers(0, top, count, np.uint64, endpoint=True) | np.uint64(1)
        self._b = generator.integers(0, top, count, np.uint64, endpoint=True)

    def bands(self, text: str) -> NDArray[np.uint64] | None:
        """One number for each band [B]; None for a text shorter than a shingle or of numbers alone, which is like no
        other."""
        grams, _ = shingles(text, self.settings.words, least=1)
        if not len(grams):
            return None
        signature = np.full(len(self._a), np.iinfo(np.uint64).max, np.uint64)
        for start in range(0, len(grams), _TOGETHER):
            some_SH = grams[start : start + _TOGETHER, None] * self._a
            some_SH += self._b
            some_SH >>= np.uint64(24)  # the high bits are the good ones
            np.minimum(signature, some_SH.min(axis=0), out=signature)
        least_BR = signature.reshape(self.settings.bands, self.settings.rows)
        band_hashes = least_BR[:, 0].copy()
        for row in range(1, self.settings.rows):
            band_hashes = (band_hashes ^ (band_hashes >> np.uint64(29))) * _MIX + least_BR[:, row]
        return band_hashes


def clusters(bands_DB: NDArray[np.uint64], has_D: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The first document of each document's cluster [D]: itself where it is like none before it, or has no
    signature."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(has_D)
    places = np.flatnonzero(has_D)
    left: list[NDArray[np.int64]] = []
    right: list[NDArray[np.int64]] = []
    for band in range(bands_DB.shape[1] if len(places) else 0):
        values = bands_DB[places, band]
        order = np.argsort(values, kind="stable")
        matches = np.flatnonzero(values[order][1:] == values[order][:-1])
        left.append(places[order[matches]])
        right.append(places[order[matches + 1]])
    if not left:
        return np.arange(count)
    rows, columns = np.concatenate(left), np.concatenate(right)
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    firsts = np.full(int(labels.max()) + 1, count, np.int64)
    np.minimum.at(firsts, labels, np.arange(count))
    return firsts[labels]


UNIQUE, EXACT, NEAR = 0, 1, 2


def text_hash(text: str) -> tuple[int, int]:
    """128 bits of a text, the same for other white space and for accents written as characters of their own (NFD)."""
    normal = " ".join(unicodedata.normalize("NFC", text).split())
    digest = hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def copies(
    settings: Dedup, hashes_D2: NDArray[np.uint64], bands_DB: NDArray[np.uint64], has_D: NDArray[np.bool_]
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """KEPT, EXACT or NEAR for each document [D], and the document that it copies (itself where it is kept)."""
    count = len(hashes_D2)
    fate, of = np.zeros(count, np.int8), np.arange(count)
    if settings.exact and count:
        order = np.lexsort((np.arange(count), hashes_D2[:, 1], hashes_D2[:, 0]))
        ordered = hashes_D2[order]
        new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
        of[order] = order[np.flatnonzero(new)[np.cumsum(new) - 1]]
        fate[of != np.arange(count)] = EXACT
    if settings.minhash is not None and count:
        first_of_cluster = clusters(bands_DB, has_D & (fate == UNIQUE))
        copied = (fate == UNIQUE) & (first_of_cluster != np.arange(count))
        fate[copied], of[copied] = NEAR, first_of_cluster[copied]
        of = of[of]  # an exact copy of a near copy is a copy of the one that stays
    return fate, of


_ENDS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".txt", ".md")


class Contamination:
    """N-grams of evaluations: sorted hashes, and of each the evaluation that it is of."""

    def __init__(
        self, words: int, grams: NDArray[np.uint64], owners: NDArray[np.int32], names: tuple[str, ...]
    ) -> None:
        self.words, self.grams, self.owners, self.names = words, grams, owners, names

    @classmethod
    def of(cls, against: Sequence[str], directory: Path, words: int) -> Contamination:
        """Read every text of the evaluations. A text of fewer words than `words`, or mostly of numbers, cannot be told
        and is not looked for.
        DataError for what is not a file, folder or suite, or holds no text of such a length."""
        grams: list[NDArray[np.uint64]] = []
        owners: list[NDArray[np.int32]] = []
        for number, name in enumerate(against):
            texts = (text for path in files(name, directory) for text in _texts(path))
            gram_arrays = [np.empty(0, np.uint64), *(_telling_grams(text, words)[0] for text in texts)]
            unique_grams = np.unique(np.concatenate(gram_arrays))
            if not len(unique_grams):
                raise DataError(
                    f"decontaminate: {name} holds no text of {words} words (not mostly numbers), so nothing could be "
                    "told by it"
                )
            grams.append(unique_grams)
            owners.append(np.full(len(unique_grams), number, np.int32))
        if not grams:
            return cls(words, np.empty(0, np.uint64), np.empty(0, np.int32), ())
        together, first = np.unique(np.concatenate(grams), return_index=True)
        return cls(words, together, np.concatenate(owners)[first], tuple(against))

    def save(self, path: Path) -> None:
        """UsageError where it cannot be written."""
        names = np.array(self.names, np.str_)
        save_arrays(path, words=np.array(self.words), grams=self.grams, owners=self.owners, names=names)

    @classmethod
    def load(cls, path: Path) -> Contamination:
        with np.load(path, allow_pickle=False) as archive:
            names = tuple(map(str, archive["names"].tolist()))
            return cls(int(archive["words"]), archive["grams"], archive["owners"], names)

    def found_in(self, text: str) -> str | None:
        """The evaluation that a text has words of, and which."""
        if not len(self.grams):
            return None
        grams, starts = _telling_grams(text, self.words)
        at = np.minimum(np.searchsorted(self.grams, grams), len(self.grams) - 1)
        hit = np.flatnonzero(self.grams[at] == grams)
        if not len(hit):
            return None
        name = self.names[self.owners[at[hit[0]]]]
        return f"{name}: {len(hit)} runs of {self.words} words, the first from word {int(starts[hit[0]])}"


def _telling_grams(text: str, words: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    return shingles(text, words, least=(words + 1) // 2)


def files(name: str, directory: Path) -> list[Path]:
    """Files of an evaluation, by name (a suite or data set of the catalogue, pulled) or by path."""
    from bedplate.hub.catalog import CATALOG

    place = directory / Path(name).expanduser()
    if name in CATALOG and CATALOG[name].artifact_type in {"suite", "dataset"}:
        from bedplate.hub.pull import pull

        place = Path(pull(name, quiet=True).path)
    elif not place.exists():
        choices = [choice for choice, item in CATALOG.items() if item.artifact_type in {"suite", "dataset"}]
        hint = did_you_mean(nearest(name, choices)) or f"the catalogue has {', '.join(choices)}"
        raise DataError(f"decontaminate: {name!r} is not a file, folder, suite or data set; {hint}")
    paths = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.name.endswith(_ENDS))
    if not paths:
        raise DataError(f"decontaminate: {place} holds no file that ends in {', '.join(_ENDS)}")
    return paths


def fingerprint(against: Sequence[str], directory: Path) -> str:
    """What changes when an evaluation does."""
    return sha256_json([[name, [sha256_file(path) for path in files(name, directory)]] for name in against])


def _texts(path: Path) -> Iterator[str]:
    """Every text of a file: of rows, each field on its own."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8", "replace")
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"decontaminate: {path} is damaged: {error}; fetch the file again") from error
    name = path.name.removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        yield from _cells(text, "\t" if name.endswith(".tsv") else ",", path)
    elif name.endswith(".jsonl"):
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield from _strings(_json(line, f"{path}, line {number}"))
    elif name.endswith(".json"):
        yield from _strings(_json(text, str(path)))
    else:
        yield text


def _cells(text: str, delimiter: str, path: Path) -> Iterator[str]:
    reader, start = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), 1
    try:
        for cells in reader:
            yield from cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"decontaminate: {path}, line {start}: malformed row: {error}") from error


def _json(text: str, source: str) -> Any:
    try:
        return load_json(text)
    except ValueError as error:
        raise DataError(f"decontaminate: {source}: not valid JSON: {error}") from error


def _strings(value: Any) -> Iterator[str]:
    """However deep they lie, in order."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict | list):
            waiting += reversed(list(node.values() if isinstance(node, dict) else node))
