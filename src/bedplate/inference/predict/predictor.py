"""Inputs → requests → parsed outputs: a skin on an engine, as evaluation, batch prediction and serving all call it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import BedplateError, ContextLengthExceeded, RequestError
from bedplate.core.progress import progress
from bedplate.core.values import TaskInput, Values
from bedplate.inference.engine.answers import ModelDescription
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import (
    NO_TERMS,
    Classification,
    Classify,
    Embed,
    Embedding,
    Generate,
    Generation,
    Grammar,
    LookupContext,
    Request,
    Result,
    Sampling,
    Score,
    Scores,
)
from bedplate.inference.predict.callable_skin import (
    Prediction,
    Predictions,
    RowsLike,
    SkinPredictor,
    for_each,
    inputs_of_rows,
    rows_for,
)
from bedplate.inference.predict.engine_answers import EngineAnswers
from bedplate.inference.predict.lookup import Lookup, LookupResult, citations
from bedplate.inference.predict.text_reading import text_tokens
from bedplate.models.precision import dtype_name
from bedplate.skins.files import skin_id
from bedplate.skins.skin import ADAPTED, Skin
from bedplate.skins.verify import verify_skin


class Predictor(EngineAnswers, SkinPredictor):
    """A skin bound to an engine whose base it belongs to. Its adapter is loaded and its own prompt's beginning computed
    once. Call it with a text (one input) or a mapping of inputs; `close` takes its adapter out of the engine again.

    attach: load it now; otherwise everything has been checked, and `attach` loads it. embedder: the engine of the
    skin's second base, if it has one, on the same compute lock. Raises SkinError for a skin of another base, or judged
    with other weights or another kernel; RequestError, TemplateError for settings or a prompt that cannot be.
    """

    row_errors = (BedplateError,)

    def __init__(
        self,
        engine: Engine,
        skin: Skin,
        *,
        embedder: Engine | None = None,
        allow_other_weights: bool = False,
        attach: bool = True,
    ) -> None:
        self.warnings = verify_skin(
            skin,
            engine.base,
            weights=engine.weights,
            kernel=engine.kernel,
            weights_version=engine.weights_version,
            allow_other_weights=allow_other_weights,
        )
        self.engine, self.skin = engine, skin
        self._tokenizer = engine.base.need_tokenizer()
        self._lookup: Lookup | None = None
        if skin.index is not None:
            self._lookup = Lookup(skin, engine, embedder, allow_other_weights=allow_other_weights)
            self.warnings += self._lookup.warnings
        grammar = skin.output.grammar()
        self.grammar = None if grammar is None else Grammar(*grammar)
        """The grammar of the skin's generated text; None where anything goes."""
        if skin.output.answered_by == "generate":
            self.sampling()
            if self.grammar is not None:
                self.grammar = engine.compile(self.grammar)
        self.prefix = () if skin.output.answered_by == "embed" else self._constant_prefix()
        self.adapter: str | None = None
        """The key of what stands between the base and its requests: its LoRA weights, its soft prompt, or that on
        these."""
        self._keys: list[str] = []
        if attach:
            self.attach()

    def attach(self, key: str | None = None, *, pin: bool = True) -> None:
        """Loads the skin's weights under `key` (default: the skin's id). pin: computes the prompt's beginning,
        `prefix`, and keeps it; otherwise somebody else decides about that."""
        skin = self.skin
        key = key or (skin_id(skin) if ADAPTED & set(skin.parts) else "")
        try:
            if skin.lora is not None:
                self._load(key, self.engine.load_adapter, skin.lora.config, skin.lora.tensors)
            if skin.soft_prompt is not None:
                on = self.adapter
                self._load(f"{key}.soft" if on else key, self.engine.load_soft_prompt, skin.soft_prompt.vectors, on)
            if pin:
                self.engine.pin(self.prefix, self.adapter)
        except BaseException:
            self.detach()
            raise

    def _load(self, key: str, load: Callable[..., None], *weights: object) -> None:
        load(key, *weights)
        self.adapter = key
        self._keys.append(key)

    def detach(self, *, wait: bool = False) -> None:
        """Takes the skin's weights out of the engine. wait: returns when no request uses them any more."""
        while self._keys:  # what stands on another first
            self.engine.unload_adapter(self._keys.pop(), wait)
        self.adapter = None

    def _constant_prefix(self) -> tuple[int, ...]:
        skin = self.skin
        if skin.probe is not None and (skin.probe.pooling != "last" or self._reads_only):
            return ()
        if self._lookup is not None:
            return self._lookup.prefix(self._tokenizer)
        return tuple(skin.prompt.constant_prefix(self._tokenizer, skin.demonstrations, list(skin.inputs)))

    def forget_weights(self) -> None:
        """Drops the adapter's tensors, which the engine holds: `skin` cannot be written any more."""
        self.skin = self.skin.without_weights()

    def predict(self, rows: RowsLike, *, one_by_one: bool = False, tenant: str = "") -> Predictions:
        """Predictions for rows, in order: texts, mappings of inputs, or a table. `one_by_one` runs each as a call of
        its own, as a server would: that is what latencies are measured on. Beyond the skin's own prompt, beginnings are
        shared within one `tenant` only."""
        checked_rows = rows_for(self.skin, rows)
        if one_by_one:
            alone = progress(checked_rows, "single calls", unit="") if len(checked_rows) > 1 else checked_rows
            return Predictions(self._timed([row], tenant)[0] for row in alone)
        return Predictions(self._timed(checked_rows, tenant))

    def _timed(self, rows: Sequence[TaskInput], tenant: str) -> list[Prediction]:
        start = time.perf_counter()
        return self.run_requests(self.requests(rows, terms=LookupContext(tenant)), tenant=tenant, since=start)

    def run_requests(
        self, requests: Sequence[Request], *, tenant: str = "", since: float | None = None
    ) -> list[Prediction]:
        """Predictions for requests of this skin, run together. since: when their time began (`perf_counter`)."""
        start = time.perf_counter() if since is None else since
        results = self.engine.run([replace(request, tenant=tenant) for request in requests])
        seconds = (time.perf_counter() - start) / max(len(requests), 1)
        return [self.read(result, seconds) for result in results]

    def request(self, row: TaskInput, sampling: Sampling | None = None, *, terms: LookupContext = NO_TERMS) -> Request:
        """The engine request for one input. Raises RequestError for missing or unknown inputs, ContextLengthExceeded
        for a prompt that does not fit. `sampling` overrides the skin's own, for skins that generate text."""
        return self.requests([row], sampling, terms=terms)[0]

    def requests(
        self,
        rows: Sequence[TaskInput],
        sampling: Sampling | None = None,
        *,
        queued: bool = False,
        terms: LookupContext = NO_TERMS,
    ) -> list[Request]:
        """`request` for each row. What a skin looks up for each call is looked up here, on these terms, which asks the
        engine that embeds: not from the engines' own threads. queued: that engine's thread computes, as in a server;
        otherwise the caller's does."""
        inputs = inputs_of_rows(self.skin, rows)
        if self._lookup is None:
            return for_each(inputs, lambda values: self._request(values, None, sampling))
        lookups = self._lookup.retrieve(inputs, queued=queued, terms=terms)
        pairs = list(zip(inputs, lookups, strict=True))
        return for_each(pairs, lambda pair: self._request(pair[0], pair[1], sampling))

    def _request(self, inputs: Values, lookup_result: LookupResult | None, sampling: Sampling | None) -> Request:
        skin, tokenizer = self.skin, self._tokenizer
        virtual = 0 if skin.soft_prompt is None else len(skin.soft_prompt)
        limit = min(skin.limits.max_prompt_tokens or self._context, self._context - virtual)
        embedding = skin.output.as_embedding
        if embedding is not None:
            tokens = self._text_tokens(inputs, limit)
            return Embed(tuple(tokens), embedding.pooling, embedding.depth, normalise=False, **self._common)
        shown = skin.demonstrations if lookup_result is None else lookup_result.demonstrations
        retrieval = None if lookup_result is None else lookup_result.retrieval
        passages = () if retrieval is None else retrieval.passages
        common: dict[str, Any] = {**self._common, "retrieval": retrieval}
        if skin.probe is not None:
            depth = int(skin.probe.layer.removeprefix("layers."))
            if self._reads_only:
                tokens = self._text_tokens(inputs, limit)
            else:
                tokens = skin.prompt.tokens(tokenizer, inputs, shown, passages, limit=limit)
            return Classify(tuple(tokens), skin.probe.head, depth, skin.probe.pooling, **common)
        if skin.output.answered_by == "score":
            ids, continuations = skin.prompt.label_tokens(tokenizer, inputs, shown, skin.output, passages, limit=limit)
            return Score(tuple(ids), continuations, **common)
        tokens = skin.prompt.tokens(tokenizer, inputs, shown, passages, limit=limit)
        return Generate(tuple(tokens), sampling or self.sampling(), self.grammar, **common)

    def _text_tokens(self, inputs: Values, limit: int) -> Sequence[int]:
        """The prompt as a text that is embedded: the special tokens that the tokenizer sets take part."""
        tokens = text_tokens(self._tokenizer, cast(str, self.skin.prompt.text(inputs)))
        if not tokens:
            raise RequestError("the text has no tokens, so it has no embedding", param="input")
        if len(tokens) > limit:
            raise ContextLengthExceeded(
                f"the text has {len(tokens):,} tokens, more than the {limit:,} that fit; shorten it", param="input"
            )
        return tokens

    @property
    def _reads_only(self) -> bool:
        return not self.engine.base.writes

    @property
    def _common(self) -> dict[str, Any]:
        return {"adapter": self.adapter, "skin": self.skin.name, "shared_tokens": len(self.prefix)}

    @property
    def _context(self) -> int:
        return self.engine.base.spec.context_length

    def sampling(self, **changes: Any) -> Sampling:
        """The skin's own generation settings, with some changed."""
        output = self.skin.output
        if output.answered_by != "generate":
            raise RequestError(f"skin {self.skin.name!r} answers with labels; it has no sampling settings")
        return Sampling(**(output.generation_settings() | dict(self.skin.generation) | changes))

    def read(self, result: Result, seconds: float = 0.0) -> Prediction:
        """A result of this skin's request, parsed."""
        prediction, passages = self._parsed(result, seconds), citations(result)
        return replace(prediction, passages=passages) if passages else prediction

    def _parsed(self, result: Result, seconds: float) -> Prediction:
        output, usage = self.skin.output, result.usage
        counts = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, seconds)
        if isinstance(result, Generation):
            parsed = output.read_text(result.text, finished=result.finish_reason == "stop")
            return Prediction(parsed, result.text, {}, *counts, finish_reason=result.finish_reason)
        if isinstance(result, Embedding):
            raise RequestError(f"skin {self.skin.name!r} gives vectors: ask it with `embed`")
        if isinstance(result, Scores):
            label, scores = output.read_scores(result.totals, result.token_counts)
        else:
            label, scores = output.read_scores(cast(Classification, result).scores)
        return Prediction(label, label, scores, *counts)

    def embed(self, rows: RowsLike) -> NDArray[np.float32]:
        """The vectors of an embedding skin, in order: float32 [N, D]."""
        checked_rows = rows_for(self.skin, rows)
        vectors = [self.vector(result) for result in self.engine.run(self.requests(checked_rows))]
        return np.array(vectors, dtype=np.float32).reshape(len(checked_rows), -1 if vectors else 0)

    def vector(self, result: Result) -> tuple[float, ...]:
        """A result of an embedding skin's request. RequestError for a skin that gives something else."""
        embedding = self.skin.output.as_embedding
        if embedding is None:
            raise RequestError(f"skin {self.skin.name!r} gives {self.skin.output.kind}s, no embeddings")
        return embedding.parse(cast(Embedding, result).vector)

    def _on_weights(self, request: Request) -> Request:
        """The request on the skin's weights, under its name."""
        return replace(request, adapter=self.adapter, skin=self.skin.name)

    @property
    def execution(self) -> dict[str, str]:
        """Its base, and how that is computed."""
        base = self.engine.base
        how = {"dtype": dtype_name(base.dtype), "weights": self.engine.weights, "kernel": self.engine.kernel}
        return {"base": base.identity.weights_id} | how

    def describe(self) -> ModelDescription:
        """The base's description, under the skin's name."""
        return replace(self.engine.describe(), name=self.skin.name)

    def close(self) -> None:
        """Forgets the pinned prompt and takes the adapter out of the engine."""
        self.engine.unpin(self.prefix, self.adapter)
        self.detach()
