"""`Served`: a model name as the routes see it, and bases under their own names (`served_skin` has the skins)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from bedplate.core.errors import RequestError
from bedplate.core.values import TaskInput
from bedplate.inference.engine.answers import Answers
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import (
    Embedding,
    Generate,
    Generation,
    LookupContext,
    Request,
    Sampling,
    Usage,
)
from bedplate.inference.predict.text_reading import (
    DOCUMENTS,
    QUERIES,
    embed_requests,
    prompt_of,
    side_prompt,
    similarities,
)
from bedplate.serving.models.answer_plan import AnswerPlan, PlanResult
from bedplate.serving.schemas.openai_fields import ChatRequest, CompletionRequest
from bedplate.serving.schemas.request_fields import SEED_LOW
from bedplate.serving.schemas.response_formats import compiled
from bedplate.serving.schemas.tool_fields import conversation_tokens
from bedplate.text.calls.reply_form import begun_tokens, reply_form
from bedplate.text.tokenizer import Tokenizer

COMPLETION_MAX_TOKENS = 16
"""The API's own default for /v1/completions; a chat goes on to the context's end by default."""


@dataclass(frozen=True)
class Answer:
    """One choice of a reply. `extension` is what the API has no field for."""

    text: str
    finish_reason: str
    usage: Usage
    generation: Generation | None = None
    extension: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class TextReading:
    """How texts are read that are not continued. prompt_name: of those that a sentence encoder has. truncate: longer
    texts are cut, to so many tokens or (True) to what the model's publisher says."""

    prompt_name: str | None = None
    truncate: bool | int = False


PLAIN = TextReading()


class Served(ABC):
    """One model name: a base, or a skin on one.

    `chat` and `complete` plan the choices of a reply, in their order; what has to be looked up for these is looked up
    on the caller's terms. Routes and observers know no more of what answers than `answerer` says.
    """

    name: str
    answerer: Answers
    report: bytes | None = None
    """The page that says how it was judged, where there is one."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Reads its texts. RequestError where it has none."""
        return self.answerer.describe().need_tokenizer()

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Names what computes its answers."""

    @property
    @abstractmethod
    def dimensions(self) -> int:
        """Numbers of the vectors that it gives."""

    @abstractmethod
    def chat(self, body: ChatRequest, terms: LookupContext) -> AnswerPlan: ...
    @abstractmethod
    def complete(self, body: CompletionRequest, terms: LookupContext) -> AnswerPlan: ...
    @abstractmethod
    def embed(self, inputs: Sequence[str | tuple[int, ...]], reading: TextReading = PLAIN) -> AnswerPlan:
        """One choice for each text (or its token ids)."""

    @abstractmethod
    def vector(self, plan_result: PlanResult, dimensions: int | None = None) -> Sequence[float]:
        """The vector that a result of `embed` holds, cut to `dimensions`."""

    @abstractmethod
    def classify(self, inputs: Sequence[TaskInput], terms: LookupContext, reading: TextReading = PLAIN) -> AnswerPlan:
        """One choice for each input; `answer` of its result has the label and its scores."""

    @abstractmethod
    def rerank(
        self, query: str, documents: Sequence[str], terms: LookupContext, reading: TextReading = PLAIN
    ) -> AnswerPlan:
        """How well each document fits the query; `relevances` of its results has the scores."""

    @abstractmethod
    def relevances(self, plan_results: Sequence[PlanResult]) -> list[float]:
        """The documents' scores, from all results of `rerank`: the higher the better."""

    @abstractmethod
    def answer(self, plan_result: PlanResult) -> Answer: ...

    def notes(self, body: ChatRequest | CompletionRequest) -> dict[str, Any]:
        """What the reply must say about how the request was read."""
        return {}

    def pieces(self) -> Callable[[str], str]:
        """For one stream: from the text that the model gives to the text that the client gets."""
        return str

    @abstractmethod
    def describe(self) -> dict[str, Any]: ...


class ServedBase(Served):
    """The base itself."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.name, self.answerer, self.engine = name, engine, engine

    @property
    def fingerprint(self) -> str:
        return self.engine.base.identity.weights_id

    def chat(self, body: ChatRequest, terms: LookupContext) -> AnswerPlan:
        messages = [message.plain() for message in body.messages]
        begun = str(messages.pop()["content"]) if body.continue_final_message and len(messages) > 1 else ""
        effort, tools = body.reasoning_effort, body.usable_tools
        if self.tokenizer.chat is None and self.tokenizer.answers_apart:
            tokens = self.tokenizer.encode_prompt(self._only_text(body))
        elif self.tokenizer.chat is None:
            raise RequestError(f"the model {self.name!r} has no chat template; use /v1/completions", param="messages")
        else:
            tokens = conversation_tokens(self.tokenizer, messages, tools, effort=effort)
        settings: dict[str, Any] = {"temperature": 1.0, "max_tokens": None, **body.sampling()}
        # An answer that is held to a form of its own is that form from its first token on.
        reasons = bool(body.usable_tools) or body.grammar is None
        form = reply_form(self.tokenizer, tokens, tools, reasons=reasons)
        if begun and (form.opened or form.channels):
            tokens = begun_tokens(self.tokenizer, tokens, form, begun)
        elif begun:
            tokens = conversation_tokens(self.tokenizer, messages, tools, begun=begun, effort=effort)
        if begun:
            if form.channels and tools:
                message = "this model calls tools in channels, and its answer is begun in one; leave tools out"
                raise RequestError(message, param="tools", code="unsupported_parameter")
            form = replace(form, thinking=None, opened=False)
        if body.usable_tools:
            # So that what is wrong in it is named by its own field.
            compiled(self.engine.compile, body.content_grammar, terms.tenant)
        grammar = compiled(self.engine.compile, body.grammar_in(form), terms.tenant)
        request = Generate(tuple(tokens), Sampling(**settings), grammar, frozenset(form.marks.values()))
        return AnswerPlan(self.answerer, choices(request, body.choices), form=form)

    def _only_text(self, body: ChatRequest) -> str:
        """What an encoder–decoder without a template reads of a conversation: its only message."""
        if len(body.messages) == 1 and not body.usable_tools and body.messages[0].role == "user":
            return body.messages[0].content
        raise RequestError(
            f"the model {self.name!r} reads one text and has no chat template: give one user message, and no tools",
            param="messages",
        )

    def complete(self, body: CompletionRequest, terms: LookupContext) -> AnswerPlan:
        settings: dict[str, Any] = {"temperature": 1.0, "max_tokens": COMPLETION_MAX_TOKENS, **body.sampling()}
        if body.echo and body.logprobs is not None:
            settings["prompt_logprobs"] = max(body.logprobs, body.prompt_logprobs or 0)
            # Harnesses ask for one token and cut its entry off: it must be there even where it is the end token.
            settings["ignore_eos"] = body.max_tokens == 1
        sampling, grammar = Sampling(**settings), compiled(self.engine.compile, body.grammar, terms.tenant)
        requests: list[Request] = []
        for prompt in body.prompt:
            tokens = prompt
            if isinstance(prompt, str):
                tokens = tuple(self.tokenizer.encode_prompt(prompt))
            requests += choices(Generate(cast("tuple[int, ...]", tokens), sampling, grammar), body.choices)
        return AnswerPlan(self.answerer, requests)

    @property
    def dimensions(self) -> int:
        return self.engine.base.embedding_size

    def embed(self, inputs: Sequence[str | tuple[int, ...]], reading: TextReading = PLAIN) -> AnswerPlan:
        base = self.engine.base
        prompt = prompt_of(base, reading.prompt_name)
        return AnswerPlan(self.answerer, embed_requests(base, inputs, prompt=prompt, truncate=reading.truncate))

    def vector(self, plan_result: PlanResult, dimensions: int | None = None) -> Sequence[float]:
        sentence = self.engine.base.sentence
        normalise = sentence is None or sentence.spec.unit_length
        return cut(cast("Embedding", plan_result.last).vector, dimensions, normalise=normalise)

    def rerank(
        self, query: str, documents: Sequence[str], terms: LookupContext, reading: TextReading = PLAIN
    ) -> AnswerPlan:
        base, truncate = self.engine.base, reading.truncate
        requests = embed_requests(base, [query], prompt=side_prompt(base, *QUERIES), truncate=truncate)
        requests += embed_requests(base, documents, prompt=side_prompt(base, *DOCUMENTS), truncate=truncate)
        return AnswerPlan(self.answerer, requests)

    def relevances(self, plan_results: Sequence[PlanResult]) -> list[float]:
        sentence = self.engine.base.sentence
        compared = "cosine" if sentence is None else sentence.spec.similarity
        return similarities(compared, [self.vector(plan_result) for plan_result in plan_results])

    def classify(self, inputs: Sequence[TaskInput], terms: LookupContext, reading: TextReading = PLAIN) -> AnswerPlan:
        raise RequestError(f"{self.name!r} is a base and has no labels; ask a skin that has", param="model")

    def answer(self, plan_result: PlanResult) -> Answer:
        generation = cast("Generation", plan_result.last)
        return Answer(generation.text, generation.finish_reason, generation.usage, generation)

    def describe(self) -> dict[str, Any]:
        return {"kind": "base", "context_length": self.engine.base.spec.context_length}


class Stripped:
    """`str.strip` of a text that comes in pieces: white space waits until something follows it."""

    def __init__(self) -> None:
        self._begun = False
        self._trailing_space = ""

    def push(self, piece: str) -> str:
        text = self._trailing_space + piece
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        stripped = text.rstrip()
        self._trailing_space = text[len(stripped) :]
        return stripped


def cut(vector: Sequence[float], dimensions: int | None, *, normalise: bool = True) -> Sequence[float]:
    """The first `dimensions` numbers, with unit length again. RequestError where there are fewer."""
    if dimensions is None or dimensions == len(vector):
        return vector
    if dimensions > len(vector):
        raise RequestError(f"dimensions is {dimensions}; this model has {len(vector)}", param="dimensions")
    truncated = vector[:dimensions]
    length = math.sqrt(sum(number * number for number in truncated)) or 1.0
    return [number / length for number in truncated] if normalise else truncated


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold, as the API writes minus infinity."""
    return max(logprob, -9999.0)


def choices(request: Generate, count: int) -> list[Request]:
    """The same request `count` times, with seeds of their own; the first keeps the given one."""
    seed = request.sampling.seed
    if seed is None:
        return [request] * count
    return [
        replace(request, sampling=replace(request.sampling, seed=(seed + i - SEED_LOW) % 2**64 + SEED_LOW))
        for i in range(count)
    ]
