"""The recipe of a corpus, a strict YAML file: sources, curation, deduplication, tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from bedplate.core.config import Strict, load_config

Name = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Preset = Literal["prose", "code", "mixed", "none"]


class _Source(Strict):
    """What every source may say. preset: the curation of this source, by default the recipe's. limit: only the first so
    many documents."""

    name: Name
    weight: float | None = pydantic.Field(default=None, ge=0)
    licence: str | None = None
    preset: Preset | None = None
    limit: int | None = pydantic.Field(default=None, ge=1)


class Files(_Source):
    """Text files: each a document. path: a file or a folder, read below for `pattern`."""

    kind: Literal["files"]
    path: str
    pattern: str | None = None


class Code(_Source):
    """A tree of source code: each file a document, without what is generated, vendored or no code. languages: by
    default all that are known."""

    kind: Literal["code"]
    path: str
    languages: tuple[str, ...] | None = None


class Rows(_Source):
    """Rows with a text in `text`: JSON lines, plain or compressed (.gz, .zst), or Parquet. path: a file, or a folder of
    such."""

    kind: Literal["jsonl", "parquet"]
    path: str
    text: str = "text"
    id: str | None = None


class Pages(_Source):
    """Pages, from which the article is extracted: HTML, or web archives (.warc, .warc.gz; .wet holds text already)."""

    kind: Literal["html", "warc"]
    path: str


class PyPI(_Source):
    """Source code of packages of the package index that pip is configured with; nothing of them is run. packages:
    `name==version` each."""

    kind: Literal["pypi"]
    packages: tuple[Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+$")], ...]
    languages: tuple[str, ...] | None = None

    @pydantic.model_validator(mode="after")
    def _no_limit(self) -> PyPI:
        if self.limit is not None:
            raise ValueError("limit does not go with kind pypi: name fewer packages")
        return self


class Hub(_Source):
    """A data set of the Hugging Face Hub, `hf:owner/name[@revision]`, read as a stream from its Parquet or JSON-lines
    files that `pattern` selects."""

    kind: Literal["hub"]
    data: Annotated[str, pydantic.Field(pattern=r"^hf:[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?$")]
    pattern: str = "**"
    text: str = "text"
    id: str | None = None


class StandardLibrary(_Source):
    """The running interpreter's own standard library: each module a document. everything: its tests, tables and what
    programs wrote as well, as the tree lies there; without packages that were installed beside it."""

    kind: Literal["stdlib"]
    everything: bool = False
    licence: str | None = "PSF-2.0"


Source = Annotated[Files | Code | Rows | Pages | PyPI | Hub | StandardLibrary, pydantic.Field(discriminator="kind")]


class TrainTokenizer(Strict):
    """Byte-level BPE of the corpus itself. sample_mb: of so much text, drawn evenly from what is kept. special: control
    tokens beside the end of a document."""

    vocab_size: int = pydantic.Field(default=16_384, ge=260, le=1 << 20)
    sample_mb: float = pydantic.Field(default=64.0, gt=0)
    special: tuple[str, ...] = ()

    @pydantic.model_validator(mode="after")
    def _there_is_room(self) -> TrainTokenizer:
        from bedplate.text.bpe import END, LEAST_IDS

        controls = (END, *self.special)
        duplicate = next((control for control in controls if controls.count(control) > 1), None)
        if duplicate is not None:
            raise ValueError(f"special: the control token {duplicate!r} is there twice; {END} ends a document already")
        if not all(control.strip() for control in self.special):
            raise ValueError("special: a control token is of white space alone")
        if self.vocab_size < LEAST_IDS + len(self.special):
            raise ValueError(
                f"vocab_size is {self.vocab_size}, but all bytes and the control tokens are "
                f"{LEAST_IDS + len(self.special)} ids already"
            )
        return self


class TokenizerChoice(Strict):
    """Either a tokenizer to train, or one that exists: a directory with tokenizer.json, or a base's name."""

    train: TrainTokenizer | None = None
    use: str | None = None

    @pydantic.model_validator(mode="after")
    def _check_choice(self) -> TokenizerChoice:
        if (self.train is None) == (self.use is None):
            raise ValueError("give either train or use")
        return self


class MinHashSettings(Strict):
    """Near-duplicates, as FineWeb has it (https://arxiv.org/abs/2406.17557): shingles of so many words; two documents
    are one where any of `bands` bands of `rows` hashes is equal."""

    words: int = pydantic.Field(default=5, ge=1)
    bands: int = pydantic.Field(default=14, ge=1)
    rows: int = pydantic.Field(default=8, ge=1)
    seed: int = 1


class Dedup(Strict):
    """exact: texts that are equal but for white space and Unicode's normal form; minhash: near-duplicates, or null for
    none."""

    exact: bool = True
    minhash: MinHashSettings | None = MinHashSettings()


class Decontaminate(Strict):
    """Documents that share so many words in a row with an evaluation are dropped. against: text, JSON-lines, .csv or
    .tsv files, folders of such, or suites of the catalogue."""

    against: tuple[str, ...] = ()
    words: int = pydantic.Field(default=13, ge=4)


class Split(Strict):
    """valid: this share of each source's documents is held out, chosen by the hash of each text."""

    valid: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.01


class CorpusRecipe(Strict):
    """The whole file. rules: settings over the preset's, by rule and then by setting; null turns a rule off. part_mb: a
    unit of work has about so much raw text. shard_tokens: a shard has at most about so many."""

    corpus: Name
    preset: Preset = "prose"
    language: str = "en"
    sources: tuple[Source, ...] = pydantic.Field(min_length=1)
    tokenizer: TokenizerChoice = TokenizerChoice(train=TrainTokenizer())
    rules: dict[str, dict[str, Any] | None] = pydantic.Field(default_factory=dict)
    dedup: Dedup = Dedup()
    decontaminate: Decontaminate = Decontaminate()
    split: Split = Split()
    part_mb: float = pydantic.Field(default=32.0, gt=0)
    shard_tokens: int = pydantic.Field(default=100_000_000, ge=1)

    @pydantic.model_validator(mode="after")
    def _names_differ(self) -> CorpusRecipe:
        names = [source.name for source in self.sources]
        duplicate = next((name for name in names if names.count(name) > 1), None)
        if duplicate is not None:
            raise ValueError(f"two sources are named {duplicate!r}")
        if len({source.weight is None for source in self.sources}) > 1:
            raise ValueError("some sources have a weight and some have none: give all or none")
        if all(source.weight == 0 for source in self.sources):
            raise ValueError("no source has a weight above 0, so nothing would be trained on")
        return self


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> CorpusRecipe:
    """Paths in it are taken from where it lies. Raises ConfigError."""
    return load_config(path, CorpusRecipe, overrides)
