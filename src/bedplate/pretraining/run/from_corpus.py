"""A run's data from a corpus directory: memory-mapped, mixed as the run file says, evaluated on its held-out texts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bedplate.core.errors import ConfigError, DataError
from bedplate.data.corpus.build import build, processes_here
from bedplate.data.corpus.recipe import load_recipe
from bedplate.data.corpus.shards import Corpus
from bedplate.data.loader import CorpusLoader
from bedplate.data.mixture import MixtureConfig
from bedplate.inference.predict.judges import judges_of
from bedplate.pretraining.plan.sizes import RowShape
from bedplate.pretraining.run.baselines import MOST_COUNTED
from bedplate.pretraining.run.data import BySource, HeldOut, MakeSource, RunData
from bedplate.pretraining.run.directory import CORPUS
from bedplate.pretraining.runfile.file import RunFile
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.sources import CorpusSource, Shard

logger = logging.getLogger("bedplate.pretraining")
MOST_HASHED = 16e9
"""Bytes of shards that are held against their hashes before a run: 10 to 20 seconds of reading at most."""
MOST_HELD = 4_000_000
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
    if corpus.stored_bytes <= MOST_HASHED:
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
    return RunData(
        tokenizer=corpus_tokenizer,
        make_source=_maker(run, corpus, names),
        holdouts=holdouts,
        tokens={name: corpus.tokens(name, "train") for name in names},
        bytes={name: sum(shard.bytes for shard in corpus.shards(name, "train")) for name in names},
        documents={name: len(corpus.documents(name, "train")) for name in names},
        hashes=dict.fromkeys(names, corpus.sha256),
        licences={name: corpus.sources[name].licence for name in names},
        stream=lambda: _stream(corpus, names),
        about={"corpus": str(directory), "sha256": corpus.sha256, "recipe": corpus.manifest.recipe},
    )


def _read_holdout(corpus: Corpus, tokenizer: Tokenizer, name: str, general: bool) -> HeldOut:
    documents = corpus.documents(name, "valid")
    ids: list[np.ndarray] = []
    tokens = 0
    for number in range(len(documents)):
        if ids and tokens + len(documents[number]) > MOST_HELD:
            break
        ids.append(documents[number])
        tokens += len(ids[-1])
        if int(ids[-1].max()) >= corpus.vocab_size:
            documents.refuse(number, int(ids[-1].max()))
    return HeldOut(
        name, ids, [tokenizer.decode(document[:-1].tolist(), skip_special_tokens=False) for document in ids], general
    )


def _maker(run: RunFile, corpus: Corpus, names: Sequence[str]) -> MakeSource:
    def make_source(rows: RowShape, steps: int, shard: Shard) -> BySource:
        mixture = run.data.mixture or MixtureConfig()
        loader = CorpusLoader(corpus, rows.length, total=steps * rows.batch, mixture=mixture, seed=run.seed)
        return BySource(CorpusSource(loader, rows.batch, micro_rows=rows.micro, shard=shard), names)

    return make_source


def _stream(corpus: Corpus, names: Sequence[str]) -> np.ndarray:
    """The first training tokens of every source, as many of each as it has a share of."""
    whole = sum(corpus.tokens(name, "train") for name in names)
    parts: list[np.ndarray] = []
    for name in names:
        remaining = int(corpus.tokens(name, "train") * min(1.0, MOST_COUNTED / whole))
        for shard in corpus.shards(name, "train"):
            ids = corpus.mapped(shard)[0][:remaining]
            parts.append(np.asarray(ids, dtype=np.int32))
            remaining -= len(ids)
    return np.concatenate(parts)
