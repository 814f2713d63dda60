"""Demonstrations for each call: its inputs are embedded, and the nearest rows of the skin's pool go into the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from bedplate.core.errors import ContextLengthExceeded, RequestError, SkinError
from bedplate.inference.engine import Engine
from bedplate.inference.requests import Embed, Embedding, Result
from bedplate.inference.stream import Stream
from bedplate.skins.neighbours import PoolPooling, text_of
from bedplate.skins.prompt import Demonstration
from bedplate.skins.skin import Skin
from bedplate.skins.verify import verify_embedder
from bedplate.text.tokenizer import Tokenizer

_AT_ONCE = 1024
_PULSE_SECONDS = 2.0
"""How often a wait looks whether the engine's thread still lives."""
# Texts whose first characters differ: what prompts with any demonstrations have in common is no part of these.
_PROBES = ("a", "7", "中")


class Chooser:
    """A skin's pool on the engine that embeds for it: the main one, or that of the skin's second base."""

    def __init__(self, skin: Skin, main: Engine, embedder: Engine | None, *, allow_other_weights: bool = False) -> None:
        """SkinError without the engine that the skin needs, or where that is held otherwise than for the pool."""
        assert skin.neighbours is not None
        self._skin, self._pool = skin, skin.neighbours
        self._names = list(skin.inputs)
        self.warnings: list[str] = []
        if skin.embedder is None:
            self.engine = main
            return
        if embedder is None:
            raise SkinError(
                f"skin {skin.name!r} chooses its demonstrations with the base {skin.embedder.name}; load that base too"
            )
        self.warnings = verify_embedder(
            skin,
            embedder.base,
            weights=embedder.weights,
            kernel=embedder.kernel,
            allow_other_weights=allow_other_weights,
        )
        self.engine = embedder

    def demonstrations(
        self, rows: Sequence[Mapping[str, str]], *, queued: bool = False
    ) -> list[tuple[Demonstration, ...]]:
        """What is shown with each row's inputs. queued: as `embed_texts`."""
        pool = self._pool
        texts = [text_of(row, self._names) for row in rows]
        vectors = embed_texts(self.engine, texts, pool.pooling, pool.depth, skin=self._skin.name, queued=queued)
        return [pool.demonstrations(vector) for vector in vectors]

    def prefix(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The tokens with which the prompts of all calls begin, whatever they show."""
        prompt, names = self._skin.prompt, self._names
        shared: list[int] | None = None
        for probe in _PROBES:
            shown = (Demonstration(dict.fromkeys(names, probe), probe),) * self._pool.k
            found = prompt.constant_prefix(tokenizer, shown, names)
            shared = found if shared is None else _common(shared, found)
        return tuple((shared or [])[:-1])


def _common(a: Sequence[int], b: Sequence[int]) -> list[int]:
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return list(a[:same])


def text_tokens(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """A text's tokens with the special ones that the tokenizer sets, as for /v1/embeddings."""
    return tuple(tokenizer.encode(text, add_special_tokens=True, parse_special=False))


def embed_texts(
    engine: Engine,
    texts: Sequence[str],
    pooling: PoolPooling,
    depth: int | None = None,
    *,
    skin: str = "",
    queued: bool = False,
) -> np.ndarray:
    """Vectors float32 [N, D] of unit length. ContextLengthExceeded for a text that the base cannot take whole,
    RequestError for one without tokens.

    queued: the engine's own thread computes, in turn with what it serves, and BusyError where its queue is full;
    otherwise the caller's does.
    """
    base = engine.base
    tokenizer, limit = base.need_tokenizer(), base.spec.context_length
    found = np.empty((len(texts), base.spec.hidden_size), dtype=np.float32)
    for start in range(0, len(texts), _AT_ONCE):
        requests: list[Embed] = []
        for text in texts[start : start + _AT_ONCE]:
            ids = text_tokens(tokenizer, text)
            if not ids:
                raise RequestError("the input has no tokens, so it has no neighbours", param="input")
            if len(ids) > limit:
                raise ContextLengthExceeded(
                    f"the input has {len(ids):,} tokens for {base.name}, which embeds {limit:,} at most; shorten it",
                    param="input",
                )
            requests.append(Embed(ids, pooling, depth, skin=skin))
        results = _queued(engine, requests) if queued else engine.run(requests)
        for i, result in enumerate(results, start=start):
            found[i] = cast(Embedding, result).vector
    return found


def _queued(engine: Engine, requests: Sequence[Embed]) -> list[Result]:
    streams: list[Stream] = []
    try:
        for request in requests:
            streams.append(engine.submit(request))
        return [_wait(engine, stream) for stream in streams]
    finally:
        for stream in streams:
            if not stream.done:
                stream.cancel()


def _wait(engine: Engine, stream: Stream) -> Result:
    while True:
        try:
            return stream.result(_PULSE_SECONDS)
        except TimeoutError:
            if not engine.alive:
                raise RuntimeError("the engine's thread has ended") from None
