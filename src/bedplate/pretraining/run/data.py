"""The data of a run, whichever way it is given: tokenizer, batch source, counts by source; and the loss on held-out
texts: nats per token, and bits per byte, which do not depend on the tokenizer.

Texts named in the run file are read, cut into documents and tokenised in memory, a share held out. A corpus directory
is memory-mapped, mixed as the run file says, and evaluated on its held-out texts.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from bedplate.core.errors import ConfigError, DataError
from bedplate.core.files import sha256_bytes, sha256_json
from bedplate.core.progress import progress
from bedplate.data.corpus.build import build, processes_here
from bedplate.data.corpus.recipe import load_recipe
from bedplate.data.corpus.shards import Corpus
from bedplate.data.documents import Document, read_documents, read_whole_documents
from bedplate.data.loader import CorpusLoader
from bedplate.data.mixture import MixtureConfig
from bedplate.data.stdlib import LICENCE, read_modules
from bedplate.inference.predict.judges import judges_of
from bedplate.models.checkpoints.checkpoint import locate
from bedplate.pretraining.page.page import TOKENS_PREFIX
from bedplate.pretraining.plan.sizes import RowShape, RunSizes
from bedplate.pretraining.run.directory import CORPUS, TOKENIZER
from bedplate.pretraining.runfile.file import STDLIB, RunFile, TextsPart
from bedplate.text.bpe import train_bpe
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.batch import PackedBatch
from bedplate.training.objectives.language import NextToken
from bedplate.training.objectives.objective import (
    AnyModel,
    Corrupting,
    CorruptionVocabulary,
    TextObjective,
    corrupted,
    evaluate_loss,
)
from bedplate.training.raw_text import encode_text, first_tokens, heldout_batches
from bedplate.training.sources import ALONE, BatchSource, CorpusSource, DocumentSource, MappedSource, Shard


@dataclass(frozen=True)
class HeldOut:
    """Documents that are kept from training. ids: the tokens of each, with the end; texts: the same as written.
    general: not what is to be learned, but what may be forgotten."""

    name: str
    ids: Sequence[np.ndarray]
    texts: Sequence[str]
    general: bool = False

    @property
    def bytes(self) -> int:
        return sum(len(text.encode()) for text in self.texts)

    def first_documents(self, limit: int | None, tokenizer: Tokenizer) -> HeldOut:
        """Those of `limit` tokens together (None: all), the last one cut there."""
        if limit is None:
            return self
        limit = max(2, limit)  # of one token nothing is predicted
        ids, texts = list[np.ndarray](), list[str]()
        for document, text in zip(self.ids, self.texts, strict=True):
            part = document[:limit]
            if len(part) > 1:
                ids.append(part)
                whole = len(part) == len(document)  # else a character may be cut
                texts.append(text if whole else tokenizer.decode(part.tolist()).rstrip("\ufffd"))
            limit -= len(part)
        return replace(self, ids=ids, texts=texts)


class HeldBatches:
    """Some documents of a held-out text, ready to be scored.

    starts: texts begin with a token that the tokenizer sets, which is not predicted and costs nothing. words: what the
    objective's corruption needs; texts are corrupted as those to be learned are, the same each time.
    """

    def __init__(
        self,
        holdout: HeldOut,
        rows: RowShape,
        vocabulary: int,
        starts: bool,
        objective: TextObjective,
        words: CorruptionVocabulary,
    ) -> None:
        self.holdout = holdout
        self._bytes, self._tokens = max(1, holdout.bytes), sum(map(len, holdout.ids))
        self._first_bits = 0.0 if starts else len(holdout.ids) * math.log2(vocabulary)
        named = {str(number): ids for number, ids in enumerate(holdout.ids)}
        self._batches = heldout_batches(named, rows.length, rows.micro)
        self._objective = NextToken() if objective.likelihood else objective
        if isinstance(self._objective, Corrupting):
            corrupt = self._objective.corruption(words)
            self._batches = [corrupted(batch, corrupt, seed=0) for batch in self._batches]

    def score(self, model: AnyModel) -> dict[str, Any]:
        """The row of the text. documents, bytes: of the texts; tokens: that are predicted. bits_per_byte counts a
        text's first token, before which nothing stands, as one of all: log2 of the vocabulary. Where not all of a text
        is said in its order, it is the bits of a token that is said over the bytes that a token has on average.
        target: what is counted in the place of tokens; only of tokens there are bits a byte."""
        objective = self._objective
        tokens = sum(batch.target_count for batch in self._batches)
        nats = evaluate_loss(model, self._batches, objective)[objective.name]
        if objective.likelihood:
            bits = (nats * tokens / math.log(2) + self._first_bits) / self._bytes
        else:
            bits = nats / math.log(2) / (self._bytes / self._tokens) if objective.target == "token" else None
        return {
            "name": self.holdout.name,
            "general": self.holdout.general,
            "documents": len(self.holdout.ids),
            "bytes": self._bytes,
            "tokens": tokens,
            "nats_per_token": nats,
            "bits_per_byte": bits,
            "target": objective.target,
        }


MakeSource = Callable[[RowShape, int, Shard], BatchSource[PackedBatch]]
"""Rows, steps and this rank's share → the batches of a run; a source that ends earlier is begun again."""


@dataclass(frozen=True)
class RunData:
    """tokens, bytes: by source, of what there is to learn. hashes: of what was read."""

    tokenizer: Tokenizer
    make_source: MakeSource
    holdouts: Sequence[HeldOut]
    tokens: Mapping[str, int]
    bytes: Mapping[str, int]
    documents: Mapping[str, int]
    hashes: Mapping[str, str]
    licences: Mapping[str, str | None]
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def bytes_per_token(self) -> float:
        return sum(self.bytes.values()) / max(1, sum(self.tokens.values()))


class BySource(MappedSource):
    """Another source's batches, counted by what their ids begin with (`source:document`)."""

    def __init__(self, inner: BatchSource[PackedBatch], names: Sequence[str]) -> None:
        def counted(batch: PackedBatch) -> PackedBatch:
            # every name in every batch: ranks add up the same ones
            counts = {f"{TOKENS_PREFIX}{name}": 0 for name in names}
            lengths = batch.lengths[len(batch.lengths) - len(batch.ids) :]
            for name, length in zip(batch.ids, lengths, strict=True):
                counts[f"{TOKENS_PREFIX}{name.partition(':')[0]}"] += length
            return replace(batch, further_counts=counts)

        super().__init__(inner, counted)


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
    elif source.column == "text" and not (directory / Path(source.source).expanduser()).is_dir():
        # Rows of one document belong together only where nothing else is said of the column.
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
    described = progress(run.data.sources, "reading texts", unit="sources")
    sources = [read_source(description, run.directory) for description in described]
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
        raise DataError(f"the texts hold {sum(tokens.values()):,} tokens; at least {LEAST_TOKENS:,} are needed")
    hashes = {source.name: source.sha256 for source in sources}
    return RunData(
        tokenizer=tokenizer,
        make_source=_texts_maker(run, learned, hashes, tokenizer),
        holdouts=holdouts,
        tokens=tokens,
        bytes=bytes_,
        documents={name: len(documents) for name, documents in learned.items()},
        hashes=hashes,
        licences={source.name: source.licence for source in sources},
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


def _texts_maker(
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


logger = logging.getLogger("bedplate.pretraining")
MAX_COUNTED_TOKENS = 20_000_000
"""Tokens that a model of counts reads at most: each takes some 80 bytes while it does."""
_PASS = re.compile(r"@\d+$")
"""Behind the name of a document that a weight has read again."""
MAX_HASHED_BYTES = 16e9
"""Bytes of shards that are held against their hashes before a run: 10 to 20 seconds of reading at most."""
MAX_HELD_OUT_TOKENS = 4_000_000
"""Held-out tokens of a source that are read at most."""


def built_corpus(run: RunFile, out: Path) -> Corpus:
    """The corpus of `data.recipe`, built into the run's directory `out`, or gone on with there. Raises as `build`."""
    assert run.data.recipe is not None
    path = run.place(run.data.recipe)
    recipe = load_recipe(path)
    with judges_of(recipe, path.parent) as judges:
        return build(recipe, path.parent, out / CORPUS, processes=processes_here(), judges=judges).corpus


def corpus_data(run: RunFile, directory: Path, tokenizer: Tokenizer | None) -> RunData:
    """The data of a run on the corpus in `directory`. tokenizer: of the base that is gone on from.

    Raises DataError for a corpus that cannot be read, is not what was written, or holds no texts to be judged on,
    ConfigError where the base has another tokenizer than the corpus, or the file names sources that there are not.
    """
    corpus = Corpus.open(directory)
    if corpus.stored_bytes <= MAX_HASHED_BYTES:
        corpus.check_hashes()
    else:
        logger.warning(
            "%s holds %.0f GB, which are too many to be hashed before every start: only sizes were compared; `bedplate "
            "data verify %s` reads all of it",
            *(directory, corpus.stored_bytes / 1e9, directory),
        )
    corpus_tokenizer = Tokenizer.from_directory(corpus.directory)
    if tokenizer is not None and tokenizer.identity != corpus_tokenizer.identity:
        raise ConfigError(
            f"the corpus {directory} was made with another tokenizer than that of the base {run.base}; build it with "
            "the base's tokenizer"
        )
    names = [name for name in corpus.sources if corpus.shards(name, "train")]
    unknown = next((name for name in run.data.general if name not in corpus.sources), None)
    if unknown is not None:
        raise ConfigError(f"data.general names {unknown!r}, and the corpus has {', '.join(corpus.sources)}")
    holdouts = [
        _read_holdout(corpus, corpus_tokenizer, name, name in run.data.general)
        for name in corpus.sources
        if corpus.shards(name, "valid")
    ]
    holdouts = [holdout for holdout in holdouts if holdout.ids]
    if not holdouts:
        raise DataError(f"{directory} holds no texts to be judged on (split valid); build it with a share held out")
    unjudged = [name for name in names if name not in {holdout.name for holdout in holdouts}]
    if unjudged:
        logger.warning("%s: no document is held out, so the base is not evaluated on it", ", ".join(unjudged))
    return RunData(
        tokenizer=corpus_tokenizer,
        make_source=_corpus_maker(run, corpus, names),
        holdouts=holdouts,
        tokens={name: corpus.tokens(name, "train") for name in names},
        bytes={name: sum(shard.bytes for shard in corpus.shards(name, "train")) for name in names},
        documents={name: len(corpus.documents(name, "train")) for name in names},
        hashes={name: sha256_json([shard.sha256 for shard in corpus.shards(name, "train")]) for name in names},
        licences={name: corpus.sources[name].licence for name in names},
        about={"corpus": str(directory), "sha256": corpus.sha256, "recipe": corpus.manifest.recipe},
    )


def _read_holdout(corpus: Corpus, tokenizer: Tokenizer, name: str, general: bool) -> HeldOut:
    documents = corpus.documents(name, "valid")
    ids: list[np.ndarray] = []
    tokens = 0
    for number in range(len(documents)):
        if ids and tokens + len(documents[number]) > MAX_HELD_OUT_TOKENS:
            break
        ids.append(documents[number])
        tokens += len(ids[-1])
        if int(ids[-1].max()) >= corpus.vocab_size:
            documents.refuse(number, int(ids[-1].max()))
    texts = [tokenizer.decode(document[:-1].tolist(), skip_special_tokens=False) for document in ids]
    return HeldOut(name, ids, texts, general)


def _corpus_maker(run: RunFile, corpus: Corpus, names: Sequence[str]) -> MakeSource:
    def make_source(rows: RowShape, steps: int, shard: Shard) -> BySource:
        mixture = run.data.mixture or MixtureConfig()
        loader = CorpusLoader(corpus, rows.length, total=steps * rows.batch, mixture=mixture, seed=run.seed)
        return BySource(CorpusSource(loader, rows.batch, micro_rows=rows.micro, shard=shard), names)

    return make_source


def learned_tokens(data: RunData, sizes: RunSizes) -> np.ndarray:
    """The first `MAX_COUNTED_TOKENS` tokens that the steps of a run train on, one piece of a document after the other:
    each once, however often the run reads it."""
    pieces: dict[tuple[str, bytes], np.ndarray] = {}
    read = 0
    source = data.make_source(sizes, sizes.steps, ALONE)
    for batch in chain.from_iterable(islice(source, sizes.steps)):
        ids = batch.tokens.numpy().reshape(-1).astype(np.int32)
        for name, place in zip(batch.ids, batch.placement.documents, strict=True):
            piece = ids[place.start : place.stop][: MAX_COUNTED_TOKENS - read]
            read += len(piece)
            digest = hashlib.blake2b(piece.tobytes(), digest_size=16).digest()
            pieces.setdefault((_PASS.sub("", name), digest), piece)
        if read >= MAX_COUNTED_TOKENS:
            break
    return np.concatenate(list(pieces.values()))
