"""A run's data from texts as they are: read, tokenised in memory, a share kept apart. What does not fit in memory is
built into a corpus first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bedplate.core.errors import DataError
from bedplate.core.files import sha256_json
from bedplate.core.progress import progress
from bedplate.models.checkpoints.base import locate
from bedplate.pretraining.run.corpus import HeldOut, MakeSource, Rows, RunData
from bedplate.pretraining.run.directory import TOKENIZER
from bedplate.pretraining.run.seen import BySource
from bedplate.pretraining.run.texts import SourceText, read_source
from bedplate.pretraining.runfile.file import RunFile
from bedplate.text.bpe import train_bpe
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.objectives import Corrupting
from bedplate.training.raw_text import EncodedText, encode_text, first_tokens
from bedplate.training.sources import DocumentSource, Shard

LEAST_TOKENS = 1000
"""Fewer say nothing about any model."""


def texts_data(run: RunFile, out: Path, tokenizer: Tokenizer | None) -> RunData:
    """The data of a run file with `sources`. tokenizer: of the base that is gone on from; else the file says which, and
    a trained one is kept in the run's directory, so that a resumed run has the same."""
    described = progress(run.data.sources, "reading texts", unit="sources")
    sources = [read_source(one, run.directory) for one in described]
    tokenizer = tokenizer or _tokenizer(run, out, sources)
    encoded = {one.name: encode_text(one.documents, tokenizer, run.seed, run.data.held_out) for one in sources}
    for source in sources:
        found = encoded[source.name]
        if not found.held or not found.learned:
            raise DataError(
                f"data source {source.name!r}: {len(source.documents)} documents leave none to be judged on with "
                f"held_out = {run.data.held_out:g}; raise it, or cut long texts into documents with `lines`"
            )
    learned = {one.name: _share(run, one, encoded[one.name]) for one in sources}
    tokens = {name: sum(map(len, documents.values())) for name, documents in learned.items()}
    if sum(tokens.values()) < LEAST_TOKENS:
        raise DataError(
            f"the texts hold {sum(tokens.values()):,} tokens; at least {LEAST_TOKENS:,} are needed to train a model"
        )
    per_token = {name: one.bytes / max(1, _all(encoded[name])) for name, one in ((s.name, s) for s in sources)}
    held = [
        HeldOut(s.name, list(e.held.values()), list(e.texts.values()), s.general) for s, e in _pairs(sources, encoded)
    ]
    return RunData(
        tokenizer=tokenizer,
        make=_maker(run, learned, {one.name: one.sha256 for one in sources}, tokenizer),
        held=held,
        tokens=tokens,
        bytes={name: round(count * per_token[name]) for name, count in tokens.items()},
        documents={name: len(documents) for name, documents in learned.items()},
        hashes={one.name: one.sha256 for one in sources},
        licences={one.name: one.licence for one in sources},
        stream=lambda: np.concatenate([ids for documents in learned.values() for ids in documents.values()]),
    )


def _pairs(sources: Sequence[SourceText], encoded: dict[str, EncodedText]) -> list[tuple[SourceText, EncodedText]]:
    return [(one, encoded[one.name]) for one in sources]


def _all(text: EncodedText) -> int:
    return sum(map(len, text.learned.values())) + sum(map(len, text.held.values()))


def _share(run: RunFile, source: SourceText, text: EncodedText) -> dict[str, np.ndarray]:
    """What of a source is learned in one pass: as much of it as is asked for, by `tokens` and by its weight."""
    every = text.learned
    if source.tokens is not None:
        every = first_tokens(every, source.tokens)
    weight = run.data.weights.get(source.name, 1.0)
    if not weight:
        return {}
    whole, part = divmod(weight, 1.0)
    found: dict[str, np.ndarray] = {}
    for number in range(int(whole)):
        found |= {name if number == 0 else f"{name}@{number + 1}": ids for name, ids in every.items()}
    if part:
        some = first_tokens(every, round(part * sum(map(len, every.values()))))
        found |= {name if not whole else f"{name}@{int(whole) + 1}": ids for name, ids in some.items()}
    if not found:
        raise DataError(f"data.weights.{source.name} is {weight:g}: nothing of the source is left")
    return found


def _maker(
    run: RunFile, learned: dict[str, dict[str, np.ndarray]], hashes: dict[str, str], tokenizer: Tokenizer
) -> MakeSource:
    documents = {name: ids for every in learned.values() for name, ids in every.items()}
    content = sha256_json([hashes, tokenizer.identity, run.seed, run.data.model_dump(mode="json")])

    def make(rows: Rows, steps: int, shard: Shard) -> BySource:
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

        once = source(1)
        assert once.steps is not None
        return BySource(source(math.ceil(steps / once.steps)), list(learned))

    return make


def _tokenizer(run: RunFile, out: Path, sources: Sequence[SourceText]) -> Tokenizer:
    asked = run.data.tokenizer
    assert asked is not None
    if asked.source is not None:
        place = run.place(asked.source)
        return Tokenizer.from_directory(place if place.is_dir() else locate(asked.source))
    kept = out / TOKENIZER
    if (kept / "tokenizer.json").is_file():
        return Tokenizer.from_directory(kept)
    assert asked.vocab_size is not None
    texts = (one.text for source in sources for one in source.documents)
    objective = run.made_objective()
    special = objective.special if isinstance(objective, Corrupting) else ()
    tokenizer = train_bpe(texts, asked.vocab_size, f"the tokenizer of run {run.run}", special)
    kept.mkdir(parents=True, exist_ok=True)
    tokenizer.save(kept)
    return Tokenizer.from_directory(kept)
