"""What embeds for a rung: the base itself, or an encoder base beside it, and how long that takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bedplate.adaptation.context.bases import source_of
from bedplate.adaptation.context.context import Context
from bedplate.core.files import atomic_write
from bedplate.core.progress import progress
from bedplate.inference.engine.engine import Engine
from bedplate.inference.predict.lookup import embed_texts
from bedplate.inference.predict.text_reading import text_tokens
from bedplate.models.checkpoints.base import Base
from bedplate.skins.lookup_index import PoolPooling, read_vectors, text_of, vector_bytes

SAMPLE = 32
_AT_ONCE, _PARTS = 512, 20
"""Texts between two writes of the vectors so far; of many texts more, as each write is of them all."""


@dataclass(frozen=True)
class Embedder:
    """One way to make vectors. source: None for the base itself. pace: measured seconds for a text of the task."""

    name: str
    source: str | None
    pooling: PoolPooling
    depth: int | None
    pace: float

    def engine(self, context: Context) -> Engine:
        return (context.model if self.source is None else context.embedder(self.source)).engine

    def embed(self, context: Context, texts: Sequence[str], cache_file: Path) -> np.ndarray:
        """Vectors float32 [N, D]; zeros for a text that is too long for the base, or has no tokens. cache_file: a file
        for these texts alone, which grows part by part, so that an interrupted rung embeds none twice."""
        engine = self.engine(context)
        tokenizer, spec = engine.base.need_tokenizer(), engine.base.spec
        fits = [i for i, text in enumerate(texts) if 0 < len(text_tokens(tokenizer, text)) <= spec.context_length]
        nothing = np.empty((0, spec.hidden_size), dtype=np.float32)
        vectors = read_vectors(cache_file) if cache_file.is_file() else nothing
        at_once = max(_AT_ONCE, len(fits) // _PARTS)
        for start in progress(range(len(vectors), len(fits), at_once), f"embedding with {self.name}"):
            part = [texts[i] for i in fits[start : start + at_once]]
            vectors = np.concatenate([vectors, embed_texts(engine, part, self.pooling, self.depth)])
            atomic_write(cache_file, vector_bytes(vectors))
        all_vectors = np.zeros((len(texts), spec.hidden_size), dtype=np.float32)
        all_vectors[fits] = vectors
        return all_vectors


def embedders_of(context: Context) -> list[Embedder]:
    """What the task file names, or the base itself; a decoder's states in two depths. HubError, CheckpointError."""
    rows = context.shuffled(context.valid, "embedding pace")[:SAMPLE]
    texts = [text_of(row.inputs, context.fields) for row in rows]
    embedders, measuring = list[Embedder](), context.clock.measuring
    for base_name in context.spec.embedders or (context.at.base_name,):
        source = source_of(base_name, context.task)
        uses_task_base = source == context.at.source
        model = context.model if uses_task_base else context.embedder(source)
        for depth in dict.fromkeys((topic_depth(model.base), None)):
            name = base_name if depth is None else f"{base_name} after {depth} layers"
            expected = context.throughput.passes(len(texts))
            with measuring.spending():
                pace = pace_of(model.engine, texts, depth) if expected < measuring.left else expected / len(texts)
            sentence = None if model.base.sentence is None else model.base.sentence.spec
            # the mean, unless the base's publisher makes vectors in another way
            plain = sentence is None or (sentence.poolings == ("mean",) and not sentence.denses)
            pooling: PoolPooling = "mean" if depth is not None or plain else "own"
            embedders.append(Embedder(name, None if uses_task_base else source, pooling, depth, pace))
    return embedders


def topic_depth(base: Base) -> int | None:
    """After how many layers states say what a text is about (None: the last): those of a decoder say in the end what
    comes next, and in the middle what the text is about."""
    return round(base.spec.layers * 2 / 3) if base.writes else None


def named_weights(context: Context, names: Sequence[str]) -> list[list[str]]:
    """Names of further bases, and whose weights these are: a base may be another under the same name. HubError,
    CheckpointError."""
    sources = [source_of(name, context.task) for name in names]
    models = [context.model if source == context.at.source else context.embedder(source) for source in sources]
    return [[name, model.base.identity.weights_id] for name, model in zip(names, models, strict=True)]


def pace_of(engine: Engine, texts: Sequence[str], depth: int | None) -> float:
    """Measured seconds for a text like these; those that the base cannot take whole are left out."""
    limit, tokenizer = engine.base.spec.context_length, engine.base.need_tokenizer()
    fit = [text for text in texts if 0 < len(text_tokens(tokenizer, text)) <= limit]
    if not fit:
        return 0.0
    embed_texts(engine, fit[:2], "mean", depth)
    start = time.perf_counter()
    embed_texts(engine, fit, "mean", depth)
    return (time.perf_counter() - start) / len(fit)
