"""Contamination: documents that share so many words in a row with an evaluation (13 in GPT-3's appendix C,
https://arxiv.org/abs/2005.14165)."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import DataError
from bedplate.core.files import sha256_file, sha256_json
from bedplate.core.json import load_json
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.data.corpus.repeated.words import n_grams, word_hashes
from bedplate.data.corpus.shards import save_arrays

_ENDS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".txt", ".md")


class Contamination:
    """N-grams of evaluations: sorted hashes, and of each the evaluation that it is of."""

    def __init__(
        self, words: int, grams: NDArray[np.uint64], owners: NDArray[np.int32], names: tuple[str, ...]
    ) -> None:
        self.words, self.grams, self.owners, self.names = words, grams, owners, names

    @classmethod
    def of(cls, against: Sequence[str], directory: Path, words: int) -> Contamination:
        """Read every text of the evaluations. A text of fewer words than `words` cannot be told and is not looked for.
        DataError for what is not a file, folder or suite, or holds no text of such a length."""
        grams: list[NDArray[np.uint64]] = []
        owners: list[NDArray[np.int32]] = []
        for number, name in enumerate(against):
            gram_arrays = [
                n_grams(word_hashes(text), words) for path in files(name, directory) for text in _texts(path)
            ]
            unique_grams = np.unique(np.concatenate(gram_arrays)) if gram_arrays else np.empty(0, np.uint64)
            if not len(unique_grams):
                raise DataError(f"decontaminate: {name} holds no text of {words} words, so nothing could be told by it")
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
        grams = n_grams(word_hashes(text), self.words)
        at = np.minimum(np.searchsorted(self.grams, grams), len(self.grams) - 1)
        hit = np.flatnonzero(self.grams[at] == grams)
        if not len(hit):
            return None
        name = self.names[self.owners[at[hit[0]]]]
        return f"{name}: {len(hit)} runs of {self.words} words, the first from word {int(hit[0])}"


def files(name: str, directory: Path) -> list[Path]:
    """Files of an evaluation, by name (a suite or data set of the catalogue, pulled) or by path."""
    from bedplate.hub.catalog import CATALOG

    place = directory / Path(name).expanduser()
    if name in CATALOG and CATALOG[name].artifact_type in {"suite", "dataset"}:
        from bedplate.hub.pull import pull

        place = Path(pull(name, quiet=True).path)
    elif not place.exists():
        choices = [
            catalog_name for catalog_name, artifact in CATALOG.items() if artifact.artifact_type in {"suite", "dataset"}
        ]
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
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    while True:
        start = reader.line_num + 1
        try:
            yield from next(reader)
        except StopIteration:
            return
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
