"""Defines `Served`, the routes' view of a model, and implements it for bases (`served_skin` does for skins)."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from typing import Any, Protocol, cast

from bedplate.core.errors import RequestError
from bedplate.core.values import TaskInput
from bedplate.inference.engine.answers import Answers, ModelDescription
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import (
    Classification,
    Embedding,
    Generate,
    Generation,
    LookupContext,
    Request,
    RequestTiming,
    Result,
    Sampling,
    Stream,
    Usage,
)
from bedplate.inference.predict.text_reading import (
    DOCUMENTS,
    QUERIES,
    embed_requests,
    gives_numbers,
    label_requests,
    label_scores,
    prompt_of,
    side_prompt,
    similarities,
)
from bedplate.models.specs.transformer import Classifier
from bedplate.serving.schemas.openai_fields import ChatRequest, CompletionRequest
from bedplate.serving.schemas.request_fields import SEED_LOW
from bedplate.serving.schemas.response_formats import compiled
from bedplate.serving.schemas.tool_fields import conversation_tokens
from bedplate.text.calls.reply_form import ReplyForm, begun_tokens, reply_form
from bedplate.text.tokenizer import TextOrPair, Tokenizer


class FollowUpSteps(Protocol):
    def is_unsure(self, result: Result) -> bool:
        """Whether a choice is asked again after this result."""
        ...

    def next_plan(self, inputs: Sequence[TaskInput], terms: LookupContext) -> AnswerPlan:
        """The next step, for choices with these inputs. It may take a while."""
        ...


@dataclass(frozen=True)
class AnswerPlan:
    """The first step of an answer: one request per choice, in their order, to one answerer. followup: later steps, for
    which the choices' inputs are needed. form: how texts split into content, reasoning and calls; None: not at all."""

    answerer: Answers
    requests: Sequence[Request]
    inputs: Sequence[TaskInput] = ()
    followup: FollowUpSteps | None = None
    form: ReplyForm | None = None

    def on(self, terms: LookupContext) -> AnswerPlan:
        requests = [replace(request, tenant=terms.tenant, deadline=terms.deadline) for request in self.requests]
        return replace(self, requests=requests)

    def turns(self, max_choices: int) -> Iterator[AnswerPlan]:
        """Splits the plan into plans of at most this many choices."""
        for start in range(0, len(self.requests), max_choices):
            part = slice(start, start + max_choices)
            yield replace(self, requests=self.requests[part], inputs=self.inputs[part])


@dataclass(frozen=True)
class PlanResult:
    """The results of one choice, one per step. Usage and timing are the sums over its steps."""

    steps: tuple[Result, ...]

    @property
    def last(self) -> Result:
        """The result of the last step, which is the answer."""
        return self.steps[-1]

    @cached_property
    def usage(self) -> Usage:
        return Usage(*map(sum, zip(*(astuple(step.usage) for step in self.steps), strict=True)))

    @cached_property
    def timing(self) -> RequestTiming:
        timings = [step.timing for step in self.steps]
        before, last = sum(timing.total for timing in timings[:-1]), timings[-1]
        queued, compute = sum(timing.queued for timing in timings), sum(timing.compute for timing in timings)
        return RequestTiming(queued, before + last.first, before + last.total, compute)


def compute_of(results: Sequence[PlanResult]) -> float:
    """Seconds of compute behind results, lookups for them included; the choices of one prompt count theirs once."""
    steps = [step for result in results for step in result.steps]
    retrievals = {id(step.retrieval): step.retrieval.compute for step in steps if step.retrieval is not None}
    return sum(step.timing.compute for step in steps) + sum(retrievals.values())


COMPLETION_MAX_TOKENS = 16
"""The API's own default for /v1/completions; a chat goes on to the context's end by default."""


@dataclass(frozen=True)
class Answer:
    """One choice of a reply. extension: contents of the reply's `bedplate` field, for which the API has no field."""

    text: str
    finish_reason: str
    usage: Usage
    generation: Generation | None = None
    extension: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class TextReading:
    """How texts are read for embeddings and scores. prompt_name: one of a sentence encoder's prompts. truncate: tokens
    to which longer texts are cut, or True for the number that the model's publisher states."""

    prompt_name: str | None = None
    truncate: bool | int = False


AS_IS = TextReading()
Texts = Sequence[str | tuple[int, ...]]
"""Texts, or the token ids of each."""


class Served(ABC):
    """A model under its name: a base, or a skin.

    `chat` and `complete` plan the choices of a reply, in their order; retrieval for them runs under the caller's tenant
    and deadline (`terms`). By default each method refuses. Routes and observers know the implementation only through
    `answerer`.
    """

    name: str
    answerer: Answers
    report: bytes | None = None
    """The HTML report of its evaluation, if there is one."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its prompts. RequestError where it has none."""
        return self.answerer.describe().need_tokenizer()

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies the weights behind its answers."""

    @property
    @abstractmethod
    def dimensions(self) -> int:
        """Size of its embedding vectors."""

    @abstractmethod
    def describe(self) -> dict[str, Any]: ...

    @abstractmethod
    def refusal(self) -> RequestError:
        """The error for a request that it does not support."""

    def chat(self, body: ChatRequest, terms: LookupContext) -> AnswerPlan:
        raise self.refusal()

    def complete(self, body: CompletionRequest, terms: LookupContext) -> AnswerPlan:
        raise self.refusal()

    def embed(self, inputs: Texts, reading: TextReading) -> AnswerPlan:
        """One choice for each text."""
        raise self.refusal()

    def vector(self, plan_result: PlanResult, dimensions: int | None = None) -> Sequence[float]:
        """The vector in a result of `embed`, cut to `dimensions`."""
        raise self.refusal()

    def classify(self, inputs: Sequence[TaskInput], terms: LookupContext, reading: TextReading = AS_IS) -> AnswerPlan:
        """One choice for each input; `answer` of its result has the label and its scores."""
        raise self.refusal()

    def rerank(self, query: str, documents: Sequence[str], terms: LookupContext, reading: TextReading) -> AnswerPlan:
        """Scores each document against the query; `relevances` reads the scores from the results."""
        raise self.refusal()

    def relevances(self, plan_results: Sequence[PlanResult]) -> list[float]:
        """The documents' scores, from all results of `rerank`: the higher the better."""
        raise self.refusal()

    def answer(self, plan_result: PlanResult) -> Answer:
        raise self.refusal()

    def pieces(self) -> Callable[[str], str]:
        """A function for one stream that turns the model's text into the client's, piece by piece."""
        return str


@dataclass(frozen=True)
class ImmediateAnswer(Request):
    """A request that was answered when it was made. tokens: the request's number, once per word, so that no two
    requests look like the same prompt."""

    result: Classification


class ImmediateAnswers:
    """Implements `Answers` for requests that carry their result. description: of the model that they were sent to."""

    alive = True

    def __init__(self, description: ModelDescription) -> None:
        self._description = description

    def submit(self, request: Request) -> Stream:
        stream = Stream(request)
        stream.finish(cast("ImmediateAnswer", request).result)
        return stream

    def run(self, requests: Sequence[Request]) -> list[Result]:
        return [cast("ImmediateAnswer", request).result for request in requests]

    def tokenize(self, text: str) -> list[int]:
        """UsageError: there is no tokenizer."""
        return self._description.need_tokenizer().encode_prompt(text)

    def describe(self) -> ModelDescription:
        return self._description


class ServedBase(Served):
    """A base as an embedding model; all that an encoder without a head can do."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.name, self.answerer, self.engine = name, engine, engine

    @property
    def fingerprint(self) -> str:
        return self.engine.base.identity.weights_id

    @property
    def dimensions(self) -> int:
        return self.engine.base.embedding_size

    def refusal(self) -> RequestError:
        return RequestError(f"{self.name!r} embeds texts and does nothing else; use /v1/embeddings", param="model")

    def embed(self, inputs: Texts, reading: TextReading) -> AnswerPlan:
        base = self.engine.base
        prompt = prompt_of(base, reading.prompt_name)
        return AnswerPlan(self.answerer, embed_requests(base, inputs, prompt=prompt, truncate=reading.truncate))

    def vector(self, plan_result: PlanResult, dimensions: int | None = None) -> Sequence[float]:
        sentence = self.engine.base.sentence
        normalise = sentence is None or sentence.spec.unit_length
        return cut(cast("Embedding", plan_result.last).vector, dimensions, normalise=normalise)

    def rerank(self, query: str, documents: Sequence[str], terms: LookupContext, reading: TextReading) -> AnswerPlan:
        base, truncate = self.engine.base, reading.truncate
        requests = embed_requests(base, [query], prompt=side_prompt(base, *QUERIES), truncate=truncate)
        requests += embed_requests(base, documents, prompt=side_prompt(base, *DOCUMENTS), truncate=truncate)
        return AnswerPlan(self.answerer, requests)

    def relevances(self, plan_results: Sequence[PlanResult]) -> list[float]:
        sentence = self.engine.base.sentence
        compared = "cosine" if sentence is None else sentence.spec.similarity
        return similarities(compared, [self.vector(plan_result) for plan_result in plan_results])

    def describe(self) -> dict[str, Any]:
        base = self.engine.base
        prompts = {} if base.sentence is None else {"prompts": dict(base.sentence.spec.prompts)}
        return {**self.facts(), "architecture": "encoder", "dimensions": self.dimensions, **prompts}

    def facts(self) -> dict[str, Any]:
        return {"kind": "base", "context_length": self.engine.base.spec.context_length}


class ServedGenerator(ServedBase):
    """A base that generates text."""

    def refusal(self) -> RequestError:
        return RequestError(f"{self.name!r} is a base and has no labels; ask a skin that has", param="model")

    def describe(self) -> dict[str, Any]:
        return self.facts()

    def answer(self, plan_result: PlanResult) -> Answer:
        generation = cast("Generation", plan_result.last)
        return Answer(generation.text, generation.finish_reason, generation.usage, generation)

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


PAIR = ("text", "text_pair")
"""The fields of a pair of texts, as transformers' pipelines call them."""


class ServedClassifier(ServedBase):
    """An encoder with labels of its own: a classifier, or with one label a cross-encoder."""

    @property
    def _head(self) -> Classifier:
        head = self.engine.base.spec.classifier
        assert head is not None
        return head

    def classify(self, inputs: Sequence[TaskInput], terms: LookupContext, reading: TextReading = AS_IS) -> AnswerPlan:
        return self._plan([self._pair(raw_input) for raw_input in inputs], reading)

    def embed(self, inputs: Texts, reading: TextReading) -> AnswerPlan:
        raise self.refusal()

    def rerank(self, query: str, documents: Sequence[str], terms: LookupContext, reading: TextReading) -> AnswerPlan:
        if len(self._head.labels) > 1:
            raise RequestError(
                f"{self.name!r} tells {len(self._head.labels)} labels apart and ranks nothing; use /v1/classify, or "
                "ask a cross-encoder (of one label) or an embedder",
                param="model",
            )
        return self._plan([(query, document) for document in documents], reading)

    def relevances(self, plan_results: Sequence[PlanResult]) -> list[float]:
        return [self._scores(plan_result)[0] for plan_result in plan_results]

    def answer(self, plan_result: PlanResult) -> Answer:
        head, scores = self._head, self._scores(plan_result)
        named = dict(zip(head.labels, scores, strict=True))
        label = max(head.labels, key=lambda candidate: named[candidate])
        if gives_numbers(head):
            return Answer(label, "stop", plan_result.usage, extension={"label": label, "numbers": named})
        extension: dict[str, Any] = {"label": label, "probabilities": named}
        if head.problem == "any":
            chosen = [candidate for candidate in head.labels if named[candidate] >= 0.5]
            label, extension = json.dumps(chosen, ensure_ascii=False), {"labels": chosen, "probabilities": named}
        return Answer(label, "stop", plan_result.usage, extension=extension)

    def describe(self) -> dict[str, Any]:
        return {**self.facts(), "architecture": "encoder", "labels": list(self._head.labels)}

    def _plan(self, inputs: Sequence[TextOrPair], reading: TextReading) -> AnswerPlan:
        return AnswerPlan(self.answerer, label_requests(self.engine.base, inputs, truncate=reading.truncate))

    def _scores(self, plan_result: PlanResult) -> list[float]:
        return label_scores(self._head, cast(Classification, plan_result.last).scores)

    def _pair(self, raw_input: TaskInput) -> TextOrPair:
        if isinstance(raw_input, str):
            return raw_input
        fields = raw_input if isinstance(raw_input, Mapping) else {}
        first, second = (fields.get(name) for name in PAIR)
        if set(fields) != set(PAIR) or not isinstance(first, str) or not isinstance(second, str):
            message = f"{self.name!r} takes a text, or a pair of texts as an object of {' and '.join(PAIR)}"
            raise RequestError(message, param="input")
        return first, second

    def refusal(self) -> RequestError:
        ability = "judges pairs of texts" if len(self._head.labels) == 1 else "classifies texts"
        return RequestError(
            f"{self.name!r} {ability} and does nothing else; use /v1/classify"
            + (" or /v1/rerank" if len(self._head.labels) == 1 else ""),
            param="model",
        )


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
    seeds = [(seed + i - SEED_LOW) % 2**64 + SEED_LOW for i in range(count)]
    return [replace(request, sampling=replace(request.sampling, seed=seed)) for seed in seeds]
