"""Shards of token ids in datatrove's format, and the corpus directory that they stand in.

A shard is `NAME.ds`, the ids little-endian (uint16 or uint32), each document followed by the end token, and
`NAME.ds.index`, where each document ends (uint64, in tokens). Both are memory-mapped: nothing is read that is not asked
for.
"""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, BinaryIO, Literal, NoReturn, Self

import numpy as np
import pydantic
from numpy.typing import NDArray

from bedplate.core.config import Strict
from bedplate.core.errors import DataError, TokenizerError
from bedplate.core.files import atomic_write, read_text, safe_join, sha256_file, sha256_json, writable
from bedplate.core.json import load_json
from bedplate.core.suggestions import path_hint
from bedplate.data.corpus.readers.parts import SourceSettings
from bedplate.text.tokenizer import Tokenizer

MANIFEST = "corpus.json"
SPLITS = ("train", "valid")
Split = Literal["train", "valid"]
Count = Annotated[int, pydantic.Field(ge=0, strict=True)]
Hash = Annotated[str, pydantic.Field(pattern="^[0-9a-f]{64}$")]


class ShardEntry(Strict):
    """A file of token ids, relative to the corpus, with its index of documents. bytes: of the text, in UTF-8."""

    file: str
    sha256: Hash
    index_sha256: Hash
    documents: Count
    tokens: Count
    bytes: Count


ShardGroups = Sequence[Mapping[str, ShardEntry]]
"""A source's shards by split, a mapping for each group of parts."""


class SourceEntry(Strict):
    """A source's share of the corpus. weight: as the recipe gives it; a run's mixture may say otherwise."""

    name: str
    weight: float | None = None
    licence: str | None = None
    documents: Count
    tokens: Count
    bytes: Count
    splits: dict[Split, tuple[ShardEntry, ...]]

    @classmethod
    def of(cls, source: SourceSettings, groups: ShardGroups) -> SourceEntry:
        """groups: each its shards by split."""
        splits = {split: tuple(group[split] for group in groups if split in group) for split in SPLITS}
        shards = [shard for split_shards in splits.values() for shard in split_shards]
        names = ("documents", "tokens", "bytes")
        sums: dict[str, Any] = {name: sum(getattr(shard, name) for shard in shards) for name in names}
        about: dict[str, Any] = {"weight": source.weight, "licence": source.licence, "splits": splits}
        return cls(name=source.name, **sums, **about)

    @pydantic.model_validator(mode="after")
    def _sums(self) -> SourceEntry:
        for name in ("documents", "tokens", "bytes"):
            total = sum(getattr(shard, name) for shards in self.splits.values() for shard in shards)
            if getattr(self, name) != total:
                raise ValueError(f"source {self.name!r}: {name} is {getattr(self, name)}, but its shards have {total}")
        return self


class TokenizerEntry(Strict):
    """The tokenizer that made the ids. tokenizer_id: as `Tokenizer.identity`."""

    file: str = "tokenizer.json"
    tokenizer_id: Hash
    vocab_size: Annotated[int, pydantic.Field(ge=1, strict=True)]
    eos_id: Count

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TokenizerEntry:
        """TokenizerError for one without an end."""
        if tokenizer.eos_id is None:
            raise TokenizerError("the tokenizer has no end token")
        return cls(tokenizer_id=tokenizer.identity, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)

    @property
    def dtype(self) -> Literal["uint16", "uint32"]:
        """The smallest type that holds every id."""
        return "uint16" if self.vocab_size <= 1 << 16 else "uint32"

    @pydantic.model_validator(mode="after")
    def _end_is_a_token(self) -> TokenizerEntry:
        if self.eos_id >= self.vocab_size:
            raise ValueError(f"eos_id is {self.eos_id}, but the vocabulary has {self.vocab_size} ids")
        return self


class CorpusManifest(Strict):
    """The whole of corpus.json. recipe: sha256 of the resolved recipe and of what it read."""

    version: Literal[1] = 1
    recipe: Hash
    tokenizer: TokenizerEntry
    dtype: Literal["uint16", "uint32"]
    sources: tuple[SourceEntry, ...]

    @classmethod
    def of(
        cls, recipe: str, tokenizer: Tokenizer, sources: Sequence[SourceSettings], groups: Mapping[str, ShardGroups]
    ) -> CorpusManifest:
        """groups: by source, each its shards by split."""
        entry = TokenizerEntry.of(tokenizer)
        entries = tuple(SourceEntry.of(source, groups.get(source.name, ())) for source in sources)
        return cls(recipe=recipe, tokenizer=entry, dtype=entry.dtype, sources=entries)

    @pydantic.model_validator(mode="after")
    def _ids_fit(self) -> CorpusManifest:
        if self.dtype == "uint16" and self.tokenizer.vocab_size > 1 << 16:
            raise ValueError(f"ids of a vocabulary of {self.tokenizer.vocab_size} do not fit into uint16")
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError("two sources have one name")
        if len({source.weight is None for source in self.sources}) > 1:
            raise ValueError("some sources have a weight and some have none")
        return self

    @property
    def sha256(self) -> str:
        """Names the content: every shard's hash is in it."""
        return sha256_json(self.model_dump(mode="json"))

    def shards(self) -> Iterator[tuple[str, str, ShardEntry]]:
        """Source, split and shard, in order."""
        for source in self.sources:
            for split, shards in source.splits.items():
                for shard in shards:
                    yield source.name, split, shard


def read_manifest(directory: Path) -> CorpusManifest:
    """DataError for a directory that is no corpus, or a corpus.json that cannot be used."""
    path = directory / MANIFEST
    if not path.is_file():
        problem = "is not a corpus directory: it has no corpus.json" if directory.is_dir() else "does not exist"
        hint = path_hint(directory, "`bedplate data build RECIPE.yaml` makes one")
        raise DataError(f"{directory} {problem}; {hint}")
    try:
        return CorpusManifest.model_validate(load_json(read_text(path)))
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        location = ".".join(map(str, problem["loc"]))
        message = f"{location + ': ' if location else ''}{problem['msg'].removeprefix('Value error, ')}"
        raise DataError(f"{path}: {message}; build the corpus again") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}; build the corpus again") from error


def save_array(path: Path, array: NDArray[Any]) -> None:
    """A .npy file. UsageError where it cannot be written."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    atomic_write(path, content.getvalue())


def save_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """A .npz file. UsageError where it cannot be written."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType] (its stubs take `allow_pickle` for one of them)
    atomic_write(path, content.getvalue())


INDEX = ".index"
Verify = Literal["sizes", "hashes"]


class ShardWriter:
    """Writes one shard, as a context; `shard` says what it holds afterwards. Both files appear whole or not at all.

    UsageError where the disk is full, DataError for an id that the vocabulary does not have."""

    shard: ShardEntry

    def __init__(self, directory: Path, file: str, tokenizer: TokenizerEntry, dtype: str) -> None:
        self._directory, self._file, self._tokenizer = directory, file, tokenizer
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._path = safe_join(directory, file)
        self._ends: list[int] = []
        self.tokens = self._bytes = 0
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        with writable(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._out: BinaryIO = self._part(self._path).open("wb")
        return self

    def write(self, ids: Sequence[int] | NDArray[Any], size_bytes: int) -> None:
        """One document's ids, without the end token. size_bytes: of its text."""
        id_array = np.asarray(ids, dtype=np.int64)
        if id_array.size and not 0 <= int(id_array.min()) <= int(id_array.max()) < self._tokenizer.vocab_size:
            wrong = int(id_array.max()) if id_array.max() >= self._tokenizer.vocab_size else int(id_array.min())
            raise DataError(f"the id {wrong} is not in the vocabulary of {self._tokenizer.vocab_size}")
        raw = np.append(id_array, self._tokenizer.eos_id).astype(self._dtype).tobytes()
        with writable(self._path):
            self._out.write(raw)
        self._digest.update(raw)
        self.tokens += len(id_array) + 1
        self._bytes += size_bytes
        self._ends.append(self.tokens)

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        index = self._path.with_name(self._path.name + INDEX)
        try:
            with writable(self._path):
                self._out.close()
                if error is None:
                    ends = np.asarray(self._ends, dtype="<u8").tobytes()
                    self._part(index).write_bytes(ends)
                    self._part(index).replace(index)
                    self._part(self._path).replace(self._path)
                    self.shard = ShardEntry(
                        file=self._file,
                        sha256=self._digest.hexdigest(),
                        index_sha256=hashlib.sha256(ends).hexdigest(),
                        documents=len(self._ends),
                        tokens=self.tokens,
                        bytes=self._bytes,
                    )
        finally:
            for path in (self._path, index):
                self._part(path).unlink(missing_ok=True)

    @staticmethod
    def _part(path: Path) -> Path:
        return path.with_name(path.name + ".part")


class ShardDocuments:
    """The documents of a source's split, in order: each its ids with the end token, a view of the mapped file."""

    def __init__(self, corpus: Corpus, shards: Sequence[ShardEntry]) -> None:
        self._corpus, self._shards = corpus, shards
        self._firsts = [0]
        for shard in shards:
            self._firsts.append(self._firsts[-1] + shard.documents)

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, index: int) -> NDArray[Any]:
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"there is no document {index} among {len(self)}")
        shard, position = self.place(number)
        ids, ends = self._corpus.mapped(shard)
        start, stop = int(ends[position - 1]) if position else 0, int(ends[position])
        if not start < stop <= len(ids):
            self._refuse_index(shard)
        return ids[start:stop]

    def place(self, number: int) -> tuple[ShardEntry, int]:
        """The shard that a document stands in, and its number there."""
        at = bisect_right(self._firsts, number) - 1
        return self._shards[at], number - self._firsts[at]

    def refuse(self, number: int, wrong: int) -> NoReturn:
        """DataError for an id of a document that the vocabulary does not have."""
        shard, position = self.place(number)
        raise DataError(
            f"{self._corpus.directory / shard.file}: document {position} holds the id {wrong}, but the vocabulary has "
            f"{self._corpus.vocab_size}; the file was changed or is of another tokenizer: build the corpus again"
        )

    def _refuse_index(self, shard: ShardEntry) -> NoReturn:
        raise DataError(
            f"{self._corpus.directory / shard.file}{INDEX}: the ends of its documents are not in increasing order; "
            "the file was changed: restore it or build the corpus again"
        )

    def lengths(self, numbers: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Tokens of the documents of these numbers, or of all, end tokens included."""
        numbers = np.arange(len(self)) if numbers is None else numbers
        token_counts = np.empty(len(numbers), np.int64)
        shards = np.searchsorted(np.asarray(self._firsts), numbers, side="right") - 1
        for at in np.unique(shards):
            in_shard = shards == at
            positions = numbers[in_shard] - self._firsts[at]
            ends = self._corpus.mapped(self._shards[at])[1]
            starts = np.where(positions > 0, ends[np.maximum(positions - 1, 0)], 0)
            token_counts[in_shard] = ends[positions].astype(np.int64) - starts.astype(np.int64)
            if (token_counts[in_shard] < 1).any():
                self._refuse_index(self._shards[at])
        return token_counts


class Corpus:
    """A corpus directory. Nothing of it is held in memory but its manifest and, of each shard that was asked for, two
    mappings."""

    def __init__(self, directory: Path, manifest: CorpusManifest) -> None:
        self.directory, self.manifest = directory, manifest
        self._mapped: dict[str, tuple[NDArray[Any], NDArray[np.uint64]]] = {}

    @classmethod
    def open(cls, path: Path | str, verify: Verify = "sizes") -> Corpus:
        """verify: what is held against corpus.json, the files' sizes or, reading all, their hashes. DataError names the
        shard that is missing, short, or not what was written; TokenizerError a tokenizer that is another."""
        directory = Path(path)
        corpus = cls(directory, read_manifest(directory))
        for _, _, shard in corpus.manifest.shards():
            corpus._check(shard, verify)
        corpus.check_tokenizer()
        return corpus

    @cached_property
    def sources(self) -> Mapping[str, SourceEntry]:
        return {source.name: source for source in self.manifest.sources}

    @property
    def sha256(self) -> str:
        """The content's name: of every shard and the tokenizer."""
        return self.manifest.sha256

    @property
    def stored_bytes(self) -> int:
        """Bytes of all shards, without their indices."""
        return sum(shard.tokens for _, _, shard in self.manifest.shards()) * np.dtype(self.manifest.dtype).itemsize

    def check_hashes(self) -> None:
        """Reads all of it: DataError names the shard that is not what was written."""
        for _, _, shard in self.manifest.shards():
            self._check(shard, "hashes")

    @property
    def eos_id(self) -> int:
        return self.manifest.tokenizer.eos_id

    @property
    def vocab_size(self) -> int:
        return self.manifest.tokenizer.vocab_size

    def shards(self, source: str, split: Split) -> tuple[ShardEntry, ...]:
        if source not in self.sources:
            raise DataError(f"{self.directory} has no source {source!r}; it has {', '.join(self.sources)}")
        return self.sources[source].splits.get(split, ())

    def tokens(self, source: str, split: Split) -> int:
        """How many, end tokens included."""
        return sum(shard.tokens for shard in self.shards(source, split))

    def documents(self, source: str, split: Split) -> ShardDocuments:
        return ShardDocuments(self, self.shards(source, split))

    def mapped(self, shard: ShardEntry) -> tuple[NDArray[Any], NDArray[np.uint64]]:
        """A shard's ids and the ends of its documents, as they lie on disk."""
        arrays = self._mapped.get(shard.file)
        if arrays is None:
            path = safe_join(self.directory, shard.file)
            dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
            index = path.with_name(path.name + INDEX)
            arrays = _map(path, dtype, shard.tokens), _map(index, np.dtype("<u8"), shard.documents)
            self._mapped[shard.file] = arrays
        return arrays

    def check_tokenizer(self) -> None:
        """TokenizerError where tokenizer.json is not the one that the ids are of."""
        expected = self.manifest.tokenizer
        tokenizer = Tokenizer.from_directory(self.directory)
        if tokenizer.identity != expected.tokenizer_id or tokenizer.vocab_size != expected.vocab_size:
            raise TokenizerError(
                f"{self.directory / expected.file} is not the tokenizer that the ids were made with: its identity is "
                f"{tokenizer.identity} with {tokenizer.vocab_size} ids, corpus.json says {expected.tokenizer_id} with "
                f"{expected.vocab_size}; restore the file or build the corpus again"
            )

    def _check(self, shard: ShardEntry, verify: Verify) -> None:
        path = safe_join(self.directory, shard.file)
        itemsize = np.dtype(self.manifest.dtype).itemsize
        index = path.with_name(path.name + INDEX)
        for file, size, digest in (
            (path, shard.tokens * itemsize, shard.sha256),
            (index, shard.documents * 8, shard.index_sha256),
        ):
            if not file.is_file():
                raise DataError(f"{file} is missing; corpus.json lists it with the sha256 {digest}. Restore the file")
            actual_size = file.stat().st_size
            if actual_size != size:
                problem = "is short" if actual_size < size else "has grown"
                raise DataError(
                    f"{file} {problem}: {actual_size} bytes, not {size}; its sha256 is {sha256_file(file)}, "
                    f"corpus.json says {digest}. Restore the file or build the corpus again"
                )
            if verify == "hashes" and (actual_digest := sha256_file(file)) != digest:
                raise DataError(
                    f"{file} is not what was written: its sha256 is {actual_digest}, corpus.json says {digest}. "
                    "Restore the file or build the corpus again"
                )
        ends = self.mapped(shard)[1]
        if shard.documents and int(ends[-1]) != shard.tokens:
            raise DataError(f"{index} ends at {int(ends[-1])} tokens, but {path.name} has {shard.tokens}; restore it")


def _map(path: Path, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """As a plain array over the mapping, whose slices are faster; an empty file cannot be mapped."""
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(count,))) if count else np.empty(0, dtype)
