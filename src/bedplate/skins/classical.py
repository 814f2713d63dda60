"""A classical model as a part of a skin: TF-IDF of words and word pairs, and a linear head on it. No base is asked.

It computes what scikit-learn's `TfidfVectorizer` and `LogisticRegression` compute (Salton & Buckley, Term-weighting
approaches in automatic text retrieval, 1988). What counts as a word is fixed here: no file of a skin holds a pattern
that would be run.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bedplate.adapters.head import check_head
from bedplate.adapters.tensor_files import array_bytes, read_arrays, read_json_object
from bedplate.core.errors import SkinError

CLASSICAL_FILE = "classical.safetensors"
VOCABULARY_FILE = "vocabulary.json"
WORD = r"\w+|[^\w\s]"
"""Letters, digits and underscores, or any other single character that is no white space: no text is without."""
MAX_TERM_WORDS = 3
"""At most so many words stand in one term."""
MAX_TERMS = 1_000_000
MAX_WEIGHTS = 2**28
"""Terms, and terms times labels, of the largest model that is read or fitted: a gibibyte of weights."""
MAX_VOCABULARY_BYTES = 64 * 1024**2
MAX_CLASSICAL_BYTES = 4 * (MAX_WEIGHTS + 2 * MAX_TERMS)
_HEADER_BYTES = 2**16
_NAMES = {"idf", "weight", "bias"}
_WORD = re.compile(WORD)


@dataclass(frozen=True, eq=False)
class Classical:
    """terms: V different ones, each of one or several words of lower-case text with a space between them. idf: float32
    [V], above 0. weight: float32 [C, V], and bias: float32 [C], on the features, one row for each of the C labels.

    words: of how many words a term has, the fewest and the most. sublinear: a term's count n weighs 1 + log n, instead
    of n. SkinError for shapes that do not fit, NaN, an idf that is not above 0, and for terms that no text can have.
    """

    terms: tuple[str, ...]
    idf: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    labels: tuple[str, ...]
    words: tuple[int, int] = (1, 2)
    sublinear: bool = True

    def __post_init__(self) -> None:
        low, high = self.words
        if not 1 <= low <= high <= MAX_TERM_WORDS:
            raise SkinError(f"a classical model's terms have 1 to {MAX_TERM_WORDS} words, not {low} to {high}")
        finite = bool(np.isfinite(self.weight).all() and np.isfinite(self.bias).all())
        check_head(self.labels, self.weight.shape, self.bias.shape, finite)
        count, labels = len(self.terms), len(self.labels)
        check_size(count, labels)
        if self.idf.shape != (count,) or self.weight.shape[1] != count:
            message = f"a classical model of {count:,} terms needs an idf [{count}] and a weight [{labels}, {count}],"
            raise SkinError(f"{message} got {list(self.idf.shape)} and {list(self.weight.shape)}")
        if self.idf.dtype != np.float32 or not bool((np.isfinite(self.idf) & (self.idf > 0)).all()):
            raise SkinError("a classical model's idf are finite float32 numbers above 0")
        if len(set(self.terms)) != count:
            raise SkinError("a classical model's vocabulary has a term twice")
        possible = re.compile(rf"(?:{WORD})(?: (?:{WORD})){{{low - 1},{high - 1}}}")
        odd = next((term for term in self.terms if possible.fullmatch(term) is None), None)
        if odd is not None:
            raise SkinError(f"{odd[:60]!r} in a classical model's vocabulary is not {low} to {high} words of a text")

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The head's number for each text and label, [N, C]. A text without a known term gets the biases."""
        return np.stack([self.logits_of(words_of(text)) for text in texts])

    def logits_of(self, words: Sequence[str]) -> NDArray[np.float64]:
        """The same of one text's words, [C]."""
        columns, values = self.features(words)
        return self.bias.astype(np.float64) + values @ self._weight_VC[columns]

    def features(self, words: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The terms of a text's words by number, ascending, and their weights, together of unit length."""
        counts = Counter(self._term_columns(words))
        columns = np.fromiter(sorted(counts), np.intp, len(counts))
        values = np.fromiter((counts[column] for column in columns.tolist()), np.float64, len(counts))
        values = (1.0 + np.log(values) if self.sublinear else values) * self.idf[columns]
        length = float(np.sqrt(values @ values))
        return columns, values / length if length > 0 else values

    def _term_columns(self, words: Sequence[str]) -> list[int]:
        low, high = self.words
        place, columns = self._place, list[int]()
        for size in range(low, high + 1):
            terms = words if size == 1 else map(" ".join, zip(*(words[i:] for i in range(size)), strict=False))
            columns += [place[term] for term in terms if term in place]
        return columns

    @cached_property
    def _place(self) -> dict[str, int]:
        return {term: number for number, term in enumerate(self.terms)}

    @cached_property
    def _weight_VC(self) -> NDArray[np.float32]:
        """A text has few of many terms: their rows then lie together."""
        return np.ascontiguousarray(self.weight.T)

    def files(self) -> dict[str, bytes]:
        """File name → content: idf, weight and bias; and the terms in their order."""
        arrays = {"idf": self.idf, "weight": self.weight, "bias": self.bias}
        # half a surrogate pair, which is no UTF-8, is a word too: JSON has an escape for it
        terms = json.dumps({"terms": self.terms}, ensure_ascii=False).encode("utf-8", "backslashreplace")
        return {CLASSICAL_FILE: array_bytes(arrays), VOCABULARY_FILE: terms + b"\n"}


def words_of(text: str) -> list[str]:
    """The words and marks of a text in lower case."""
    return _WORD.findall(text.lower())


def most_terms(labels: int) -> int:
    """How many terms a model that tells so many labels apart may have."""
    return min(MAX_TERMS, MAX_WEIGHTS // labels)


def check_size(terms: int, labels: int) -> None:
    """SkinError for a model without terms, or with more than are taken."""
    if not 1 <= terms <= most_terms(labels):
        most = most_terms(labels)
        raise SkinError(f"a classical model has 1 to {most:,} terms for {labels} labels, this one has {terms:,}")


def read_classical(
    directory: Path, contents: Mapping[str, bytes], labels: tuple[str, ...], words: tuple[int, int], sublinear: bool
) -> Classical:
    """A classical model from the bytes of its files. SkinError where they are corrupt or do not fit the labels."""
    weights, vocabulary = directory / CLASSICAL_FILE, directory / VOCABULARY_FILE
    terms = read_json_object(vocabulary, contents[VOCABULARY_FILE])
    listed = terms.get("terms")
    if isinstance(listed, list):
        check_size(len(listed), max(len(labels), 1))
    if terms.keys() != {"terms"} or not isinstance(listed, list) or not all(type(term) is str for term in listed):
        raise SkinError(f"{vocabulary} must hold 'terms', a list of texts, and nothing else")
    max_bytes = 4 * (len(listed) * (len(labels) + 1) + len(labels)) + _HEADER_BYTES
    size = len(contents[CLASSICAL_FILE])
    if size > max_bytes:  # before anything of it takes memory
        need = f"{len(listed):,} terms and {len(labels)} labels need"
        raise SkinError(f"{weights} has {size:,} bytes, more than the {max_bytes:,} that {need}")
    arrays = read_arrays(weights, contents[CLASSICAL_FILE])
    if arrays.keys() != _NAMES:
        raise SkinError(f"{weights} must hold exactly {', '.join(sorted(_NAMES))}, not {sorted(arrays)}")
    return Classical(tuple(listed), arrays["idf"], arrays["weight"], arrays["bias"], labels, words, sublinear)
