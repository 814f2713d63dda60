"""The recipe of a corpus, a strict YAML file: sources, curation, deduplication, tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import pydantic
from pydantic_core import PydanticKnownError

from bedplate.core.config import Strict, load_config
from bedplate.data.corpus.readers import READERS
from bedplate.data.corpus.readers.parts import Name, Preset, SourceSettings


def _by_kind(values: Any) -> SourceSettings:
    """A source's settings, as the row of its kind in READERS reads them."""
    if isinstance(values, SourceSettings):
        return values
    if not isinstance(values, Mapping):
        raise PydanticKnownError("model_attributes_type")
    about, settings = {"discriminator": "'kind'"}, cast("Mapping[str, Any]", values)
    if "kind" not in settings:
        raise PydanticKnownError("union_tag_not_found", about)
    kind = str(settings["kind"])
    if kind not in READERS:
        expected = ", ".join(map(repr, READERS))
        raise PydanticKnownError("union_tag_invalid", {**about, "tag": kind, "expected_tags": expected})
    return READERS[kind].settings.model_validate(settings)


Source = Annotated[pydantic.SerializeAsAny[SourceSettings], pydantic.PlainValidator(_by_kind)]


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


class CutSettings(Strict):
    """Texts that are longer than one and a half of this length become several documents, each of between a half and one
    and a half of it, cut at the nearest end of a paragraph, or else of a line. The upper limits of length and words do
    not hold for such texts."""

    tokens: Annotated[int, pydantic.Field(ge=16)] | None = None
    characters: Annotated[int, pydantic.Field(ge=64)] | None = None

    @pydantic.model_validator(mode="after")
    def _check_unit(self) -> CutSettings:
        if (self.tokens is None) == (self.characters is None):
            raise ValueError("give either tokens or characters")
        return self

    def __str__(self) -> str:
        return f"{self.characters:,} characters" if self.tokens is None else f"{self.tokens:,} tokens"


class CorpusRecipe(Strict):
    """The whole file. rules: settings over the preset's, by rule and then by setting; null turns a rule off. cut: long
    texts into documents. part_mb: a unit of work has about so much raw text. shard_tokens: a shard has at most about so
    many."""

    corpus: Name
    preset: Preset = "prose"
    language: str = "en"
    sources: tuple[Source, ...] = pydantic.Field(min_length=1)
    tokenizer: TokenizerChoice = TokenizerChoice(train=TrainTokenizer())
    rules: dict[str, dict[str, Any] | None] = pydantic.Field(default_factory=dict)
    dedup: Dedup = Dedup()
    decontaminate: Decontaminate = Decontaminate()
    split: Split = Split()
    cut: CutSettings | None = None
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
