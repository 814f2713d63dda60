"""A run's data from texts named in its file: read, cut into documents, tokenised in memory, a share held out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bedplate.core.errors import DataError
from bedplate.core.files import sha256_bytes, sha256_json
from bedplate.core.progress import progress
from bedplate.data.documents import Document, read_documents, read_whole_documents
from bedplate.data.stdlib import LICENCE, read_modules
from bedplate.models.checkpoints.checkpoint import locate
from bedplate.pretraining.plan.sizes import RowShape
from bedplate.pretraining.run.data import BySource, HeldOut, MakeSource, RunData
from bedplate.pretraining.run.directory import TOKENIZER
from bedplate.pretraining.runfile.file import STDLIB, RunFile, TextsPart
from bedplate.text.bpe import train_bpe
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.raw_text import encode_text, first_tokens
from bedplate.training.sources import DocumentSource, Shard


@dataclass(frozen=True)
class SourceText:
    """One source's documents. sha256: of what was read."""

    name: str
    documents: tuple[Document, ...]
    sha256: str
    licence: str | None
    general: bool
    tokens: int | None

    @property
    def bytes(self) -> int:
        return sum(len(document.text.encode()) for document in self.documents)


def read_source(source: TextsPart, directory: Path) -> SourceText:
    """Reads a source of the run file. DataError for what cannot be read or holds no text; HubError for what cannot be
    pulled."""
    licence = source.licence
    if source.source == STDLIB:
        documents = tuple(Document(name, text) for name, text in read_modules() if text.strip())
        licence = licence or LICENCE
        digest = sha256_json([[document.id, sha256_bytes(document.text.encode())] for document in documents])
    elif _is_text(source, directory):
        read = read_whole_documents(source.source, directory)
        documents, digest = read.documents, read.sha256
    else:
        read = read_documents(source.source, directory, column=source.column)
        documents, digest = read.documents, read.sha256
    if source.lines is not None:
        documents = tuple(part for document in documents for part in _parts(document, source.lines))
    if not documents:
        raise DataError(f"data source {source.name!r} ({source.source}): it holds no text")
    named = tuple(Document(f"{source.name}:{document.id}", document.text) for document in documents)
    return SourceText(source.name, named, digest, licence, source.general, source.tokens)


def _is_text(source: TextsPart, directory: Path) -> bool:
    """Whether rows of one document belong together: only where nothing else is said of the column."""
    return source.column == "text" and not (directory / Path(source.source).expanduser()).is_dir()


def _parts(document: Document, lines: int) -> Iterator[Document]:
    text_lines = document.text.splitlines(keepends=True)
    for number, start in enumerate(range(0, len(text_lines), lines), start=1):
        text = "".join(text_lines[start : start + lines])
        if text.strip():
            yield Document(f"{document.id}#{number}", text)


LEAST_TOKENS = 1000
"""Fewer say nothing about any model."""


def texts_data(run: RunFile, out: Path, tokenizer: Tokenizer | None) -> RunData:
    """The data of a run file with `sources`. tokenizer: of the base that is gone on from; else the file says which, and
    a trained one is kept in the run's directory, so that a resumed run has the same."""
    sources = [
        read_source(description, run.directory)
        for description in progress(run.data.sources, "reading texts", unit="sources")
    ]
    tokenizer = tokenizer or _tokenizer(run, out, sources)
    learned: dict[str, dict[str, np.ndarray]] = {}
    holdouts: list[HeldOut] = []
    bytes_: dict[str, int] = {}
    for source in sources:
        text = encode_text(source.documents, tokenizer, run.seed, run.data.held_out)
        if not text.heldout or not text.learned:
            raise DataError(
                f"data source {source.name!r}: {len(source.documents)} documents leave none to be judged on with "
                f"held_out = {run.data.held_out:g}; raise it, or cut long texts into documents with `lines`"
            )
        holdouts.append(HeldOut(source.name, list(text.heldout.values()), list(text.texts.values()), source.general))
        selected = learned[source.name] = _share(run, source, text.learned)
        whole = sum(map(len, (*text.learned.values(), *text.heldout.values())))
        bytes_[source.name] = round(sum(map(len, selected.values())) * (source.bytes / max(1, whole)))
    tokens = {name: sum(map(len, documents.values())) for name, documents in learned.items()}
    if sum(tokens.values()) < LEAST_TOKENS:
        raise DataError(
            f"the texts hold {sum(tokens.values()):,} tokens; at least {LEAST_TOKENS:,} are needed to train a model"
        )
    hashes = {source.name: source.sha256 for source in sources}
    return RunData(
        tokenizer=tokenizer,
        make_source=_maker(run, learned, hashes, tokenizer),
        holdouts=holdouts,
        tokens=tokens,
        bytes=bytes_,
        documents={name: len(documents) for name, documents in learned.items()},
        hashes=hashes,
        licences={source.name: source.licence for source in sources},
        stream=lambda: np.concatenate([ids for documents in learned.values() for ids in documents.values()]),
    )


def _share(run: RunFile, source: SourceText, documents: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What of a source is learned in one pass: as much of it as is asked for, by `tokens` and by its weight."""
    if source.tokens is not None:
        documents = first_tokens(documents, source.tokens)
    weight = run.data.weights.get(source.name, 1.0)
    if not weight:
        return {}
    whole, part = divmod(weight, 1.0)
    passes = [documents] * int(whole)
    if part:
        passes.append(first_tokens(documents, round(part * sum(map(len, documents.values())))))
    selected = {
        name if number == 1 else f"{name}@{number}": ids
        for number, part_documents in enumerate(passes, start=1)
        for name, ids in part_documents.items()
    }
    if not selected:
        raise DataError(f"data.weights.{source.name} is {weight:g}: nothing of the source is left")
    return selected


def _maker(
    run: RunFile, learned: dict[str, dict[str, np.ndarray]], hashes: dict[str, str], tokenizer: Tokenizer
) -> MakeSource:
    documents = {name: ids for source_documents in learned.values() for name, ids in source_documents.items()}
    content = sha256_json([hashes, tokenizer.identity, run.seed, run.data.model_dump(mode="json")])

    def make_source(rows: RowShape, steps: int, shard: Shard) -> BySource:
        def source(epochs: int) -> DocumentSource:
            return DocumentSource(
                list(documents.values()),
                rows.length,
                rows.batch,
                micro_rows=rows.micro,
                seed=run.seed,
                epochs=epochs,
                ids=list(documents),
                lengths=[len(ids) for ids in documents.values()],
                content=content,
                shard=shard,
            )

        single_pass = source(1)
        assert single_pass.steps is not None
        return BySource(source(math.ceil(steps / single_pass.steps)), list(learned))

    return make_source


def _tokenizer(run: RunFile, out: Path, sources: Sequence[SourceText]) -> Tokenizer:
    settings = run.data.tokenizer
    assert settings is not None
    if settings.source is not None:
        place = run.place(settings.source)
        return Tokenizer.from_directory(place if place.is_dir() else locate(settings.source))
    directory = out / TOKENIZER
    if (directory / "tokenizer.json").is_file():
        return Tokenizer.from_directory(directory)
    assert settings.vocab_size is not None
    texts = (document.text for source in sources for document in source.documents)
    objective = run.made_objective()
    tokenizer = train_bpe(texts, settings.vocab_size, f"the tokenizer of run {run.run}", objective.special)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(directory)
    return Tokenizer.from_directory(directory)
