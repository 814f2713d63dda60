"""Parts of a task file's `adapt` section: guards of child bases, raw text, proposers, hosted models, quantised formats,
documents."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import AfterValidator, Field, field_validator, model_validator

from bedplate.core.config import Strict
from bedplate.core.endpoint_spec import ApiUrl, EndpointSpec, KeyVariable, ModelName, Retries, Silence
from bedplate.core.progress import progress
from bedplate.data.documents import Document, Documents, read_documents
from bedplate.evaluation.examples import Example
from bedplate.text.chunks import pieces

if TYPE_CHECKING:
    from bedplate.inference.remote.account import TokenPrices
    from bedplate.skins.lookup_index import Chunk
    from bedplate.skins.skin import EndpointReference

CORE = ("piqa", "openbookqa", "commonsenseqa", "boolq")
"""The core sets' names (`evaluation.suites.items`), here so that a task file is read without torch."""
GENERAL_TEXT = ("vader-news", "vader-movies")
"""Edited prose first; the second for tasks that train on it."""

Margin = Annotated[float, Field(gt=0, lt=1)]


def distinct(noun: str) -> AfterValidator:
    """Refuses a list in which `noun` is named twice."""

    def check(values: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if values != "auto" and len(set(values)) < len(values):
            raise ValueError(f"{noun} is named twice")
        return values

    return AfterValidator(check)


class RetentionGuard(Strict):
    """Multiple choice: accuracy (per character) may drop by less than `max_drop`.

    sets, per_set: of the core sets, so many items each. source: a team's own .jsonl file instead (`context`, `choices`,
    `gold`).
    """

    max_drop: Margin = 0.02
    sets: Annotated[tuple[str, ...], Field(min_length=1), distinct("a set")] = CORE
    per_set: Annotated[int, Field(ge=1)] = 300
    source: str | None = None

    @field_validator("sets")
    @classmethod
    def _check_sets(cls, sets: tuple[str, ...]) -> tuple[str, ...]:
        for name in sets:
            if name not in CORE:
                raise ValueError(f"there is no core set {name!r}; there are {', '.join(CORE)}")
        return sets


class LossGuard(Strict):
    """General text: the loss may rise by less than `max_increase` (nats per token). source: a data set or a file with a
    column `text`, which the task does not train on (None: the first of `GENERAL_TEXT` of which that is so); documents:
    how many of its documents are read at most."""

    max_increase: Margin = 0.02
    source: str | None = None
    documents: Annotated[int, Field(ge=1)] = 150


class RefusalGuard(Strict):
    """Requests that should be refused: the share refused may drop by less than `max_drop`."""

    max_drop: Margin


class GuardsSpec(Strict):
    """For rungs that make a child base (`full`, `continued_pretrain`): retention and loss unless they are null, refusal
    where it is asked for."""

    retention: RetentionGuard | None = RetentionGuard()
    loss: LossGuard | None = LossGuard()
    refusal: RefusalGuard | None = None


class RawText(Strict):
    """source: a data set or a .jsonl, .csv, .tsv or .parquet file with a column `text` (rows with one `document` belong
    together), a .txt or .md file, or a directory of such files, each of which is a document. tokens: at most so
    many are trained on."""

    source: Annotated[str, Field(min_length=1)]
    tokens: Annotated[int, Field(ge=1)] | None = None


def inputs_in(text: Documents, examples: Sequence[Example]) -> int:
    """How many examples have an input that stands in the text word for word, white space apart: a child that has read
    what it is judged on knows more than it will of new rows."""
    whole = "\n".join(" ".join(document.text.split()) for document in text.documents)
    return sum(any(" ".join(i.split()) in whole for i in e.texts.values() if i.strip()) for e in examples)


class ProposerSpec(Strict):
    """A model behind an OpenAI-compatible API (`url`, `model`, and `api_key_env`, the environment variable that holds
    the key), or a base that runs here (`base`). number: how many instructions it is asked for."""

    url: ApiUrl | None = None
    model: ModelName | None = None
    api_key_env: KeyVariable | None = None
    base: str | None = None
    number: Annotated[int, Field(ge=1, le=64)] = 8
    timeout_s: Silence = 60.0
    retries: Retries = 4

    @model_validator(mode="after")
    def _check_source(self) -> ProposerSpec:
        if self.url is not None and self.base is not None:
            raise ValueError("a proposer is either a `url` with its `model`, or a `base`")
        if (self.url is None) != (self.model is None) or (self.url is None and self.api_key_env is not None):
            raise ValueError("`url`, `model` and `api_key_env` belong together")
        return self

    @property
    def endpoint(self) -> EndpointSpec | None:
        named = self.model_dump(include=set(EndpointSpec.model_fields))
        return None if self.url is None else EndpointSpec.model_validate(named)


Dollars = Annotated[float, Field(ge=0)]


class HostedSpec(EndpointSpec):
    """An endpoint as a candidate. The prices are the provider's list as of a date. max_usd: what all questions of this
    climb may cost."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    usd_per_million_input: Dollars
    usd_per_million_cached_input: Dollars | None = None
    usd_per_million_output: Dollars
    as_of: datetime.date
    max_usd: Annotated[float, Field(gt=0)] = 1.0

    @property
    def price(self) -> TokenPrices:
        """Cached tokens cost what others do where nothing else is said."""
        from bedplate.inference.remote.account import TokenPrices

        cached = self.usd_per_million_cached_input
        whole = self.usd_per_million_input
        return TokenPrices(whole, whole if cached is None else cached, self.usd_per_million_output)

    @property
    def reference(self) -> EndpointReference:
        from bedplate.skins.skin import EndpointReference  # a task file is read without torch

        return EndpointReference(**self.model_dump(include=set(EndpointSpec.model_fields)))


Format = Literal["int8", "int4"]
FORMATS: tuple[Format, ...] = ("int8", "int4")


class FormatsSpec(Strict):
    """weights: "auto" tries those that this machine was measured to be faster in, a list these, an empty one (or
    `formats: none`) nothing. margin: a skin keeps a format whose metric on valid is shown to be worse by less.

    `formats: auto`, `formats: int8` and `formats: [int8, int4]` are short for `weights` alone.
    """

    weights: Annotated[Literal["auto"] | tuple[Format, ...], distinct("a format")] = "auto"
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.01

    @model_validator(mode="before")
    @classmethod
    def _short(cls, values: Any) -> Any:
        # YAML reads `off` as false
        if values is None or values is False or values == "none":
            return {"weights": ()}
        if isinstance(values, str):
            return {"weights": values if values == "auto" else (values,)}
        if isinstance(values, list | tuple):
            return {"weights": cast("Any", values)}
        return values

    @property
    def allowed(self) -> tuple[Format, ...]:
        return FORMATS if self.weights == "auto" else self.weights


class DocumentsSpec(Strict):
    """Where documents are. source: a data set of the catalogue, a .jsonl, .csv, .tsv or .parquet file (`column` is a
    document's text, `id` what it is called), a .txt, .md or .rst file, or a directory of such, all below it.
    chunk_tokens: passage sizes to try, in tokens of the base; overlap: the share of a passage that the one before it
    has as well; k: how many passages to try in a prompt."""

    source: Annotated[str, Field(min_length=1)]
    column: str = "text"
    id: str | None = None
    chunk_tokens: Annotated[tuple[Annotated[int, Field(ge=8)], ...], Field(min_length=1, max_length=4)] = (96, 192)
    overlap: Annotated[float, Field(ge=0, le=0.5)] = 0.15
    k: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=4)] = (3, 1)


def task_documents(spec: DocumentsSpec, relative_to: Path) -> Documents:
    """The documents, each text once. DataError for what cannot be read, a column that is missing, or none at all."""
    documents = read_documents(spec.source, relative_to, column=spec.column, id=spec.id)
    by_text: dict[str, Document] = {}
    for document in documents.documents:
        by_text.setdefault(document.text, document)
    return replace(documents, documents=tuple(by_text.values()), repeated=len(documents.documents) - len(by_text))


def cut(documents: Sequence[Document], size: int, overlap: float, count: Callable[[str], int]) -> list[Chunk]:
    """The documents in passages of at most `size` tokens, the white space around them left off."""
    from bedplate.skins.lookup_index import Chunk  # a task file is read without torch

    chunks: list[Chunk] = []
    for document in progress(documents, f"passages of {size} tokens", unit="documents"):
        for piece in pieces(document.text, size, int(size * overlap), count):
            text = document.text[piece.start : piece.end]
            inner = text.strip()
            if inner:
                chunks.append(Chunk(document.id, piece.start + text.index(inner), inner))
    return chunks
