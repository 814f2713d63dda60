"""corpus.json: the contents of a corpus directory, each file with its sha256."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import pydantic

from bedplate.core.config import Strict
from bedplate.core.errors import DataError
from bedplate.core.files import read_text, sha256_json
from bedplate.core.json import load_json

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


class SourceEntry(Strict):
    """A source's share of the corpus. weight: as the recipe gives it; a run's mixture may say otherwise."""

    name: str
    weight: float | None = None
    licence: str | None = None
    documents: Count
    tokens: Count
    bytes: Count
    splits: dict[Split, tuple[ShardEntry, ...]]

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
        raise DataError(f"{directory} {problem}; `bedplate data build RECIPE.yaml` makes one")
    try:
        return CorpusManifest.model_validate(load_json(read_text(path)))
    except pydantic.ValidationError as error:
        _refuse(path, error.errors(include_url=False))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}; build the corpus again") from error


def _refuse(path: Path, errors: list[Any]) -> NoReturn:
    location = ".".join(map(str, errors[0]["loc"]))
    message = str(errors[0]["msg"]).removeprefix("Value error, ")
    raise DataError(f"{path}: {location + ': ' if location else ''}{message}; build the corpus again")
