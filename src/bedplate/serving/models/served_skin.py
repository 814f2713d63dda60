"""Serves skins: single ones, cascades and classical models, each loaded while calls need it."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from bedplate.core.errors import RequestError, SkinError
from bedplate.core.values import TaskInput
from bedplate.inference.engine.answers import ModelDescription
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import (
    Classification,
    Generate,
    Generation,
    LookupContext,
    Request,
    RequestTiming,
    Result,
    Usage,
)
from bedplate.inference.predict.callable_skin import is_unsure
from bedplate.inference.predict.classical import ClassicalPredictor
from bedplate.inference.predict.lookup import citations
from bedplate.inference.predict.predictor import Prediction, Predictor
from bedplate.inference.predict.text_reading import similarities
from bedplate.models.precision import dtype_name
from bedplate.serving.models.residency import SkinPrefixes
from bedplate.serving.models.served import (
    AS_IS,
    Answer,
    AnswerPlan,
    ImmediateAnswer,
    ImmediateAnswers,
    PlanResult,
    Served,
    Stripped,
    TextReading,
    Texts,
    choices,
    cut,
    finite,
)
from bedplate.serving.schemas.http_errors import StatusError
from bedplate.serving.schemas.openai_fields import ChatRequest, CompletionRequest
from bedplate.serving.schemas.request_fields import TOKEN_LIMIT
from bedplate.serving.schemas.response_formats import compiled
from bedplate.serving.schemas.strict_json import parse_json
from bedplate.serving.schemas.tool_fields import refuse_tools
from bedplate.skins.files import Card, card_of, read_identified, report_of
from bedplate.skins.skin import ADAPTED, BaseReference, Skin
from bedplate.skins.verify import check_base, check_judged
from bedplate.text.tokenizer import Tokenizer

RELEVANT = "relevant"
"""The label of a skin that judges whether a document fits a query."""

_serial = itertools.count(1)


class ServedSkin(Served):
    """One version of a skin. Its input is the user message or the prompt; several inputs are sent as one JSON object.

    Other messages are refused, because the skin was judged with its prompt and an input alone. Sampling settings of a
    request override the skin's where it generates text, and have no effect where it chooses a label.

    Its content is identified by `card.id` and never changes. Until `load` only the card is in memory; `load` reads the
    files and gives the weights to the engine, `unload` removes them.
    """

    def __init__(
        self,
        engine: Engine,
        source: Card | Skin,
        prefixes: SkinPrefixes,
        *,
        embedder: Engine | None = None,
        name: str | None = None,
        allow_other_weights: bool = False,
    ) -> None:
        """source: a card, whose directory is read when it is loaded, or a skin in memory. embedder: the engine of the
        skin's second base, if it has one. name: the model name (default: the skin's own). SkinError for a skin of
        another base than the engine's, or judged with other weights."""
        self.card = source if isinstance(source, Card) else card_of(source)
        self.name = self.card.name if name is None else name
        self.answerer, self.engine, self._embedder = engine, engine, embedder
        self._in_memory = source if isinstance(source, Skin) else None
        self._prefixes = prefixes
        self._allow_other_weights = allow_other_weights
        card = self.card
        if not isinstance(card.base, BaseReference):
            raise SkinError(f"skin {card.name!r} is answered by no base here")
        check_base(card.name, card.base, card.format, engine.base)
        if card.embedder is not None and embedder is not None:
            check_base(card.name, card.embedder, "plain", embedder.base)
        self.warnings: list[str] = []
        for host_engine, judged in ((engine, card.evaluated_with), (embedder, card.embedded_with)):
            if host_engine is not None:
                weights, kernel, dtype = host_engine.weights, host_engine.kernel, dtype_name(host_engine.base.dtype)
                self.warnings += check_judged(card.name, judged, weights, kernel, allow_other_weights, dtype)
        # Never used twice, so that no cached state of one version is ever another's.
        self._key = f"{card.id}.{next(_serial)}"
        self._loaded: Predictor | None = None

    @property
    def fingerprint(self) -> str:
        return self.engine.base.identity.weights_id

    @property
    def adapted_on(self) -> Engine | None:
        """The engine that holds this skin's adapter weights, if it has any."""
        return self.engine if ADAPTED & set(self.card.parts) else None

    # In memory or not; these block, and run in a thread

    def check(self) -> None:
        """Reads and verifies everything, and keeps nothing. SkinError, RequestError, TemplateError."""
        self._read()

    def _read(self) -> Predictor:
        skin, allowed = self._in_memory or self._read_registered(), self._allow_other_weights
        return Predictor(self.engine, skin, embedder=self._embedder, allow_other_weights=allowed, attach=False)

    def _read_registered(self) -> Skin:
        """What lies where the card was read. SkinError where that is another skin by now."""
        assert self.card.directory is not None
        current_id, skin = read_identified(self.card.directory)
        if current_id != self.card.id:
            raise SkinError(
                f"{self.card.directory} holds another skin than when {self.name!r} was registered; register it again, "
                "with replace"
            )
        return skin

    def load(self) -> None:
        """Gives its weights to the engine, and keeps no copy of them."""
        predictor = self._read()
        predictor.attach(self._key, pin=False)
        predictor.forget_weights()
        self._loaded = predictor
        self.warm()

    def unload(self) -> None:
        """Takes its weights away from the engine. Nothing of it may be running."""
        predictor, self._loaded = self._loaded, None
        if predictor is None:
            return
        self._prefixes.forget(self)
        predictor.detach(wait=True)  # a call that was given up may still be in the engine's step

    @property
    def is_warm(self) -> bool:
        """Whether the beginning that its prompts share is kept. Asking counts as use."""
        return self._prefixes.used(self)

    def warm(self) -> None:
        """Computes the beginning that its prompts share, and keeps it while there is room."""
        predictor = self._predictor
        self._prefixes.add(self, self.engine, predictor.prefix, predictor.adapter)

    @property
    def _predictor(self) -> Predictor:
        if self._loaded is None:
            raise RuntimeError(f"the skin {self.name!r} is not in memory; hold a lease on it")
        return self._loaded

    # Asking

    @property
    def report(self) -> bytes | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return report_of(self.card)

    def chat(self, body: ChatRequest, terms: LookupContext) -> AnswerPlan:
        if [message.role for message in body.messages] != ["user"]:
            names = self.card.inputs
            fields = f" (a JSON object of {', '.join(names)})" if len(names) > 1 else ""
            raise RequestError(
                f"{self.name!r} is a skin and reads one user message, its input{fields}; it has a prompt already: "
                "leave out system messages and other turns",
                param="input",
            )
        return self._plan([body.messages[0].content], body, terms)

    def complete(self, body: CompletionRequest, terms: LookupContext) -> AnswerPlan:
        if body.echo:
            raise RequestError(f"{self.name!r} is a skin and does not echo its prompt", param="echo")
        if body.logprobs is not None:
            raise RequestError(f"{self.name!r} is a skin; ask the base for logprobs", param="logprobs")
        texts = [prompt for prompt in body.prompt if isinstance(prompt, str)]
        if len(texts) < len(body.prompt):
            raise RequestError(f"{self.name!r} is a skin: its input is text, not token ids", param="prompt")
        return self._plan(texts, body, terms)

    @property
    def dimensions(self) -> int:
        embedding, base = self.card.output.as_embedding, self.engine.base
        if embedding is None:
            return base.embedding_size
        return embedding.dimensions or embedding.full_size(base.embedding_size, base.spec.hidden_size)

    def refusal(self) -> RequestError:
        return RequestError(f"{self.name!r} is a skin and has no embeddings; ask a base", param="model")

    def embed(self, inputs: Texts, reading: TextReading) -> AnswerPlan:
        self._refuse(reading)
        if self.card.output.as_embedding is None:
            raise self.refusal()
        texts = [text for text in inputs if isinstance(text, str)]
        if len(texts) < len(inputs):
            raise RequestError(f"{self.name!r} is a skin: its input is text, not token ids", param="input")
        return AnswerPlan(self.answerer, [self._predictor.request(self._input(text)) for text in texts])

    def vector(self, plan_result: PlanResult, dimensions: int | None = None) -> Sequence[float]:
        embedding = self.card.output.as_embedding
        normalise = embedding is not None and embedding.normalise
        return cut(self._predictor.vector(plan_result.last), dimensions, normalise=normalise)

    def _refuse(self, reading: TextReading) -> None:
        """A skin reads its inputs as it was judged."""
        if reading.prompt_name is not None:
            raise RequestError(f"{self.name!r} is a skin, with a prompt of its own", param="prompt_name")
        if reading.truncate is not False:
            raise RequestError(f"{self.name!r} is a skin and cuts no input", param="truncate_prompt_tokens")

    def rerank(self, query: str, documents: Sequence[str], terms: LookupContext, reading: TextReading) -> AnswerPlan:
        if self.card.output.as_embedding is not None:
            return self.embed((query, *documents), reading)
        if set(self.card.inputs) != {"query", "document"} or RELEVANT not in self.card.labels:
            message = f"{self.name!r} cannot rerank: ask a base, an embedding skin, or a skin with the inputs query and"
            raise RequestError(f"{message} document and a label {RELEVANT!r}", param="model")
        return self.classify([{"query": query, "document": text} for text in documents], terms, reading)

    def relevances(self, plan_results: Sequence[PlanResult]) -> list[float]:
        if self.card.output.as_embedding is not None:
            return similarities("cosine", [self.vector(plan_result) for plan_result in plan_results])
        scores = [(self.answer(plan_result).extension or {})["scores"][RELEVANT] for plan_result in plan_results]
        return [math.exp(score) for score in scores]

    def classify(self, inputs: Sequence[TaskInput], terms: LookupContext, reading: TextReading = AS_IS) -> AnswerPlan:
        self._refuse(reading)
        if not self.card.labels:
            message = f"{self.name!r} gives {self.card.output.kind}s and has no labels; ask a skin that has"
            raise RequestError(message, param="model")
        rows = [self._input(raw_input) for raw_input in inputs]
        return AnswerPlan(self.answerer, self._predictor.requests(rows, queued=True, terms=terms))

    def refuse_settings(self, body: ChatRequest | CompletionRequest) -> None:
        """RequestError for what a skin, or one that answers with a label, cannot do."""
        if body.prompt_logprobs is not None:
            raise RequestError(f"{self.name!r} is a skin; ask the base for prompt_logprobs", param="prompt_logprobs")
        if self.card.output.as_embedding is not None:
            raise RequestError(f"{self.name!r} embeds texts; use /v1/embeddings", param="model")
        if isinstance(body, ChatRequest):
            refuse_tools(self.name, body.usable_tools)
        if body.grammar is not None and (self.card.labels or self._predictor.grammar is not None):
            field = body.grammar[0]
            raise RequestError(f"{self.name!r} is a skin whose answers have a form already; leave it out", param=field)
        if self.card.labels:
            if body.choices > 1:
                raise RequestError(f"{self.name!r} answers with a label: n can only be 1", param="n")
            if body.alternatives is not None:
                message = f"{self.name!r} answers with a label: its log-probabilities are in the reply's bedplate field"
                raise RequestError(message, param="logprobs")

    def _plan(self, texts: Sequence[str], body: ChatRequest | CompletionRequest, terms: LookupContext) -> AnswerPlan:
        self.refuse_settings(body)
        if self.card.labels:
            return self.classify(texts, terms)
        skin_grammar, changes = self._predictor.grammar, body.sampling()
        for name in () if skin_grammar is None else ("stop", "stop_token_ids"):
            if name in changes:
                raise RequestError(f"{self.name!r} gives whole answers only; leave {name} out", param=name)
        grammar = compiled(self.engine.compile, body.grammar, terms.tenant)
        if "stop" in changes:  # the skin's own belong to its output
            stops = self._predictor.sampling().stop
            changes["stop"] = tuple(dict.fromkeys((*stops, *changes["stop"])))
        sampling = self._predictor.sampling(**changes)
        requests: list[Request] = []
        rows = [self._input(text) for text in texts]
        for request in self._predictor.requests(rows, sampling, queued=True, terms=terms):
            requests += choices(replace(cast(Generate, request), grammar=grammar or skin_grammar), body.choices)
        return AnswerPlan(self.answerer, requests)

    def _input(self, text: TaskInput) -> TaskInput:
        names = self.card.inputs
        if not isinstance(text, str) or len(names) == 1:
            return text
        try:
            fields = parse_json(text)
        except RequestError as error:
            raise RequestError(
                f"{self.name!r} takes the inputs {', '.join(names)}: write them as a JSON object ({error.message})",
                param="input",
            ) from None
        if not isinstance(fields, dict):
            raise RequestError(f"{self.name!r} takes a JSON object of {', '.join(names)}", param="input")
        return fields

    def read(self, result: Result) -> Prediction:
        """A result, parsed. StatusError 422 where the model gave what is no answer of this skin: what a caller can
        bring it to is no fault of the server, and asking the same again may end the same."""
        try:
            return self._predictor.read(result)
        except RequestError as error:
            message = f"what the model said is no answer of {self.name!r}, ask otherwise: {error.message}"
            raise StatusError(422, message, "unreadable_answer") from error

    def answer(self, plan_result: PlanResult) -> Answer:
        result = plan_result.last
        prediction = self.read(result)
        cited_passages = citations(result, texts=True)
        extension: dict[str, Any] = {"passages": list(cited_passages)} if cited_passages else {}
        if isinstance(result, Generation):
            # As it was streamed: `output` may be another writing of it.
            return Answer(prediction.text.strip(), result.finish_reason, result.usage, result, extension or None)
        scores, answer = {label: finite(score) for label, score in prediction.scores.items()}, prediction.output
        probabilities = prediction.probabilities
        label = {"label": answer, "probability": probabilities.get(answer)}
        chosen = label if self.card.output.is_one_label else {"labels": json.loads(answer)}
        extension = {**chosen, "probabilities": probabilities, "scores": scores, **extension}
        return Answer(answer, "stop", result.usage, None, extension)

    def pieces(self) -> Callable[[str], str]:
        return Stripped().push

    def describe(self) -> dict[str, Any]:
        card, output = self.card, self.card.output
        extras: dict[str, Any] = {"labels": list(card.labels)} if card.labels else {}
        if output.as_embedding is not None:
            extras["dimensions"] = self.dimensions
        if self.warnings:
            extras["warnings"] = self.warnings
        head = {"kind": card.kind, "inputs": list(card.inputs), "output": output.kind}
        return {**head, **extras, "report": card.report}


class ServedCascade(ServedSkin):
    """A cascade: two served skins under one name, loaded together, each on any of the server's engines."""

    def __init__(self, card: Card, first: ServedSkin, second: ServedSkin, *, name: str | None = None) -> None:
        self.card, self.name = card, card.name if name is None else name
        self.first, self.second = first, second
        # A bag-of-words model, which comes first, has no tokenizer: the other one stands for the cascade then.
        self.answerer = first.answerer if first.answerer.describe().tokenizer else second.answerer
        self.warnings = [*first.warnings, *second.warnings]
        self._threshold: float | None = None

    @property
    def fingerprint(self) -> str:
        return self.first.fingerprint

    @property
    def dimensions(self) -> int:
        return self.second.dimensions

    @property
    def adapted_on(self) -> Engine | None:
        return self.second.adapted_on or self.first.adapted_on

    def check(self) -> None:
        self._read_registered()
        self.first.check()
        self.second.check()

    def load(self) -> None:
        # Its two skins read their own weights, and give them to their engines: nothing else of it is kept.
        cascade = self._read_registered().cascade
        assert cascade is not None
        self._threshold = cascade.threshold
        del cascade
        self.first.load()
        try:
            self.second.load()
        except BaseException:
            self.first.unload()
            raise

    def unload(self) -> None:
        self.first.unload()
        self.second.unload()

    @property
    def is_warm(self) -> bool:
        first = self.first.is_warm
        return self.second.is_warm and first

    def warm(self) -> None:
        self.first.warm()
        self.second.warm()

    def classify(self, inputs: Sequence[TaskInput], terms: LookupContext, reading: TextReading = AS_IS) -> AnswerPlan:
        self._refuse(reading)
        rows = [self._input(raw_input) for raw_input in inputs]
        return replace(self.first.classify(rows, terms), inputs=rows, followup=self)

    def _plan(self, texts: Sequence[str], body: ChatRequest | CompletionRequest, terms: LookupContext) -> AnswerPlan:
        self.first.refuse_settings(body)
        return self.classify(texts, terms)

    def is_unsure(self, result: Result) -> bool:
        """Whether the second skin is to be asked after this result of the first."""
        assert self._threshold is not None
        return is_unsure(self._threshold, self.first.read(result))

    def next_plan(self, inputs: Sequence[TaskInput], terms: LookupContext) -> AnswerPlan:
        return self.second.classify(inputs, terms)

    def answer(self, plan_result: PlanResult) -> Answer:
        passed_on = len(plan_result.steps) > 1
        answer = (self.second if passed_on else self.first).answer(plan_result)
        return replace(answer, usage=plan_result.usage, extension={**(answer.extension or {}), "passed_on": passed_on})


class ServedClassical(ServedSkin):
    """A classical (bag-of-words) model, which needs no base."""

    def __init__(self, source: Card | Skin, *, name: str | None = None) -> None:
        self.card = source if isinstance(source, Card) else card_of(source)
        self.name = self.card.name if name is None else name
        self.answerer = ImmediateAnswers(ModelDescription(self.name, frozenset({"classify"}), TOKEN_LIMIT))
        self._in_memory = source if isinstance(source, Skin) else None
        self.warnings: list[str] = []
        self._resident: ClassicalPredictor | None = None

    @property
    def adapted_on(self) -> Engine | None:
        return None

    @property
    def tokenizer(self) -> Tokenizer:
        raise RequestError(f"{self.name!r} counts words and has no tokenizer; name a base", param="model")

    @property
    def fingerprint(self) -> str:
        return self.card.id

    @property
    def dimensions(self) -> int:
        return TOKEN_LIMIT  # it has no vectors, which `embed` says

    # In memory or not

    def check(self) -> None:
        ClassicalPredictor(self._in_memory or self._read_registered())

    def load(self) -> None:
        self._resident = ClassicalPredictor(self._in_memory or self._read_registered())

    def unload(self) -> None:
        self._resident = None

    @property
    def is_warm(self) -> bool:
        return True

    def warm(self) -> None:
        """Does nothing: there is no prompt prefix to cache."""

    # Asking

    def classify(self, inputs: Sequence[TaskInput], terms: LookupContext, reading: TextReading = AS_IS) -> AnswerPlan:
        self._refuse(reading)
        requests: list[Request] = []
        for raw_input in inputs:
            start = time.perf_counter()
            scores, words = self._classifier.scored(self._input(raw_input))
            seconds = time.perf_counter() - start
            timing = RequestTiming(0.0, seconds, seconds, seconds)
            result, tokens = Classification(scores, usage=Usage(words), timing=timing), (next(_serial),) * words
            requests.append(ImmediateAnswer(tokens, skin=self.name, result=result))
        return AnswerPlan(self.answerer, requests)

    def read(self, result: Result) -> Prediction:
        result = cast(Classification, result)
        return self._classifier.prediction(result.scores, result.usage.prompt_tokens)

    @property
    def _classifier(self) -> ClassicalPredictor:
        if self._resident is None:
            raise RuntimeError(f"the skin {self.name!r} is not in memory; hold a lease on it")
        return self._resident

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "base": None}
