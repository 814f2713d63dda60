"""Retrieval for each call: embeds its inputs and puts the nearest rows of the skin's pool, or the nearest passages of
its documents, into the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from bedplate.core.errors import ContextLengthExceeded, RequestError, SkinError
from bedplate.core.values import Values
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import (
    NO_TERMS,
    Embed,
    Embedding,
    Generation,
    LookupContext,
    Result,
    Retrieval,
    Stream,
)
from bedplate.inference.predict.callable_skin import for_each
from bedplate.inference.predict.text_reading import text_tokens
from bedplate.skins.lookup_index import Neighbours, PoolPooling, text_of
from bedplate.skins.prompt import Demonstration, Passage
from bedplate.skins.skin import Skin
from bedplate.skins.verify import verify_skin
from bedplate.text.tokenizer import Tokenizer

_AT_ONCE = 1024
# Texts whose first characters differ: what prompts with any demonstrations have in common is no part of these.
_PROBES = ("a", "7", "中")


@dataclass(frozen=True)
class LookupResult:
    """The retrieved parts of a call's prompt."""

    demonstrations: tuple[Demonstration, ...]
    retrieval: Retrieval


class Lookup:
    """A skin's index on the engine that embeds for it: the main one, or that of the skin's second base."""

    def __init__(self, skin: Skin, main: Engine, embedder: Engine | None, *, allow_other_weights: bool = False) -> None:
        """SkinError without the engine that the skin needs, or where that is held otherwise than for the index."""
        index = skin.index
        assert index is not None
        self._skin, self._index = skin, index
        self._names = list(skin.inputs)
        self.warnings: list[str] = []
        if skin.embedder is None:
            self.engine = main
            return
        if embedder is None:
            material = "demonstrations" if skin.passages is None else "passages"
            raise SkinError(f"skin {skin.name!r} chooses its {material} with {skin.embedder.name}; load that too")
        self.warnings = verify_skin(
            skin,
            embedder.base,
            embedder=True,
            weights=embedder.weights,
            kernel=embedder.kernel,
            weights_version=embedder.weights_version,
            allow_other_weights=allow_other_weights,
        )
        self.engine = embedder

    def retrieve(
        self, rows: Sequence[Values], *, queued: bool = False, terms: LookupContext = NO_TERMS
    ) -> list[LookupResult]:
        """The retrieval results of each row. queued, terms: as `embedded`."""
        index = self._index
        texts = [text_of(row, self._names) for row in rows]
        results: list[LookupResult] = []
        vectors = embedded(
            self.engine, texts, index.pooling, index.depth, skin=self._skin.name, queued=queued, terms=terms
        )
        for embedding in vectors:
            vector, compute = np.array(embedding.vector, dtype=np.float32), embedding.timing.compute
            if isinstance(index, Neighbours):
                results.append(LookupResult(index.demonstrations(vector), Retrieval((), compute)))
            else:
                results.append(LookupResult(self._skin.demonstrations, Retrieval(index.retrieve(vector), compute)))
        return results

    def prefix(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The tokens with which the prompts of all calls begin, whatever is looked up."""
        prompt, names = self._skin.prompt, self._names
        beginnings: list[list[int]] = []
        for probe in _PROBES:
            shown, passages = self._skin.demonstrations, tuple[Passage, ...]()
            if isinstance(self._index, Neighbours):
                shown = (Demonstration(dict.fromkeys(names, probe), probe),) * self._index.k
            else:
                passages = tuple(Passage(number, probe, probe) for number in range(1, self._index.k + 1))
            beginnings.append(prompt.constant_prefix(tokenizer, shown, names, passages))
        return tuple(tokenizer.common_start(beginnings))


def citations(result: Result, *, texts: bool = False) -> tuple[dict[str, Any], ...]:
    """The passages that an answer was given: number, document and start in it, and `cited` where the answer is a text:
    whether that holds the number in brackets, as in [1]. texts: with the passages' own."""
    if result.retrieval is None:
        return ()
    cited_passages: list[dict[str, Any]] = []
    for passage in result.retrieval.passages:
        citation: dict[str, Any] = {"number": passage.number, "document": passage.document, "start": passage.start}
        if texts:
            citation["text"] = passage.text
        if isinstance(result, Generation):
            citation["cited"] = f"[{passage.number}]" in result.text
        cited_passages.append(citation)
    return tuple(cited_passages)


def embed_texts(engine: Engine, texts: Sequence[str], pooling: PoolPooling, depth: int | None = None) -> np.ndarray:
    """Vectors float32 [N, D] of unit length; raises what `embedded` raises."""
    size = engine.base.embedding_size if pooling == "own" else engine.base.spec.hidden_size
    vectors = np.empty((len(texts), size), dtype=np.float32)
    for i, embedding in enumerate(embedded(engine, texts, pooling, depth)):
        vectors[i] = embedding.vector
    return vectors


def embedded(
    engine: Engine,
    texts: Sequence[str],
    pooling: PoolPooling,
    depth: int | None = None,
    *,
    skin: str = "",
    queued: bool = False,
    terms: LookupContext = NO_TERMS,
) -> Iterator[Embedding]:
    """The texts' vectors, of unit length. ContextLengthExceeded for a text that the base cannot take whole,
    RequestError for one without tokens. queued: the engine's own thread computes, in turn with what it serves, and
    BusyError where its queue is full; otherwise the caller's does. terms: beginnings are shared within their tenant
    only; DeadlineError after their deadline."""
    base = engine.base
    tokenizer, limit = base.need_tokenizer(), base.spec.context_length

    def request(text: str) -> Embed:
        ids = text_tokens(tokenizer, text)
        if not ids:
            raise RequestError("the input has no tokens, so nothing is near to it", param="input")
        if len(ids) > limit:
            raise ContextLengthExceeded(
                f"the input has {len(ids):,} tokens for {base.name}, which embeds {limit:,} at most; shorten it",
                param="input",
            )
        how = None if pooling == "own" else pooling
        return Embed(ids, how, depth, True, skin=skin, tenant=terms.tenant, deadline=terms.deadline)

    for start in range(0, len(texts), _AT_ONCE):
        try:
            requests = for_each(texts[start : start + _AT_ONCE], request)
        except RequestError as error:
            error.row = start + (error.row or 0) if len(texts) > 1 else None
            raise
        for result in _queued(engine, requests) if queued else engine.run(requests):
            yield cast(Embedding, result)


def _queued(engine: Engine, requests: Sequence[Embed]) -> list[Result]:
    streams: list[Stream] = []
    try:
        for request in requests:
            streams.append(engine.submit(request))
        return [stream.result() for stream in streams]
    finally:
        for stream in streams:
            if not stream.finished:
                stream.cancel()
