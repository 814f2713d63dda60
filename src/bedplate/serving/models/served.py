"""What is served under which name, as the routes see it; and bases as themselves (`served_skin` has the skins)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

from bedplate.core.errors import RequestError
from bedplate.core.values import Given
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Embed, Embedding, Generate, Generation, Request, Sampling, Terms, Usage
from bedplate.serving.models.plan import AnswerPlan, PlanResult
from bedplate.serving.wire.fields import ChatRequest, CompletionRequest
from bedplate.serving.wire.formats import compiled
from bedplate.serving.wire.sampling_fields import SEED_LOW
from bedplate.serving.wire.tools import conversation_tokens
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


class Served(Protocol):
    """One model name. `chat` and `complete` plan the choices of a reply, in their order; what has to be looked up for
    these is looked up on the caller's terms."""

    @property
    def name(self) -> str: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def report(self) -> Path | None:
        """The page that says how it was judged, where there is one."""
        ...

    def chat(self, asked: ChatRequest, terms: Terms) -> AnswerPlan: ...
    def complete(self, asked: CompletionRequest, terms: Terms) -> AnswerPlan: ...
    def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> AnswerPlan:
        """One choice for each text (or its token ids)."""
        ...

    def vector(self, found: PlanResult, dimensions: int | None = None) -> Sequence[float]:
        """The vector that a result of `embed` holds, cut to `dimensions`."""
        ...

    def classify(self, inputs: Sequence[Given], terms: Terms) -> AnswerPlan:
        """One choice for each input; `answer` of its result has the label and its scores."""
        ...

    def answer(self, found: PlanResult) -> Answer: ...
    def notes(self, asked: ChatRequest | CompletionRequest) -> dict[str, Any]:
        """What the reply must say about how the request was read."""
        ...

    def pieces(self) -> Callable[[str], str]:
        """For one stream: from the text that the model gives to the text that the client gets."""
        ...

    def describe(self) -> dict[str, Any]: ...


class ServedBase:
    """The base itself."""

    report: Path | None = None

    def __init__(self, engine: Engine, name: str) -> None:
        self.name = name
        self.engine = engine
        self._tokenizer = engine.base.need_tokenizer()

    def chat(self, asked: ChatRequest, terms: Terms) -> AnswerPlan:
        if self._tokenizer.chat is None:
            raise RequestError(f"the model {self.name!r} has no chat template; use /v1/completions", param="messages")
        messages = [message.plain() for message in asked.messages]
        tokens = conversation_tokens(self._tokenizer, messages, asked.usable_tools)
        settings: dict[str, Any] = {"temperature": 1.0, "max_tokens": None, **asked.sampling()}
        grammar = compiled(self.engine, asked.grammar)
        request = Generate(tuple(tokens), Sampling(**settings), grammar)
        return AnswerPlan(self.engine, choices(request, asked.choices))

    def complete(self, asked: CompletionRequest, terms: Terms) -> AnswerPlan:
        settings: dict[str, Any] = {"temperature": 1.0, "max_tokens": COMPLETION_MAX_TOKENS, **asked.sampling()}
        if asked.echo and asked.logprobs is not None:
            settings["prompt_logprobs"] = max(asked.logprobs, asked.prompt_logprobs or 0)
            # Harnesses ask for one token and cut its entry off: it must be there even where it is the end token.
            settings["ignore_eos"] = asked.max_tokens == 1
        sampling, grammar = Sampling(**settings), compiled(self.engine, asked.grammar)
        requests: list[Request] = []
        for prompt in asked.prompt:
            tokens = prompt
            if isinstance(prompt, str):
                tokens = (*self._tokenizer.prompt_start, *self._tokenizer.encode(prompt))
            requests += choices(Generate(cast("tuple[int, ...]", tokens), sampling, grammar), asked.choices)
        return AnswerPlan(self.engine, requests)

    def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> AnswerPlan:
        return AnswerPlan(self.engine, embed_requests(self._tokenizer, inputs))

    def vector(self, found: PlanResult, dimensions: int | None = None) -> Sequence[float]:
        return cut(cast(Embedding, found.last).vector, dimensions)

    def classify(self, inputs: Sequence[Given], terms: Terms) -> AnswerPlan:
        raise RequestError(f"{self.name!r} is a base and has no labels; ask a skin that has", param="model")

    def answer(self, found: PlanResult) -> Answer:
        generation = cast(Generation, found.last)
        return Answer(generation.text, generation.finish_reason, generation.usage, generation)

    def notes(self, asked: ChatRequest | CompletionRequest) -> dict[str, Any]:
        return {}

    def pieces(self) -> Callable[[str], str]:
        return str

    def describe(self) -> dict[str, Any]:
        return {"kind": "base", "context_length": self.engine.base.spec.context_length}


class ServedEmbedder(ServedBase):
    """An encoder: it gives vectors, and nothing else."""

    def chat(self, asked: ChatRequest, terms: Terms) -> AnswerPlan:
        raise self._only_vectors()

    def complete(self, asked: CompletionRequest, terms: Terms) -> AnswerPlan:
        raise self._only_vectors()

    def classify(self, inputs: Sequence[Given], terms: Terms) -> AnswerPlan:
        raise self._only_vectors()

    def answer(self, found: PlanResult) -> Answer:
        raise self._only_vectors()

    def _only_vectors(self) -> RequestError:
        return RequestError(f"{self.name!r} embeds texts and does nothing else; use /v1/embeddings", param="model")

    def describe(self) -> dict[str, Any]:
        size = {"dimensions": self.engine.base.spec.hidden_size}
        return {**super().describe(), "architecture": "encoder", **size}


class Stripped:
    """`str.strip` of a text that comes in pieces: white space waits until something follows it."""

    def __init__(self) -> None:
        self._begun = False
        self._held = ""

    def push(self, piece: str) -> str:
        text = self._held + piece
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        kept = text.rstrip()
        self._held = text[len(kept) :]
        return kept


def embed_requests(tokenizer: Tokenizer, inputs: Sequence[str | tuple[int, ...]]) -> list[Request]:
    """One request for each text or its token ids."""
    requests: list[Request] = []
    for one in inputs:
        # Control tokens in a text are what their characters say; special tokens that the tokenizer sets belong.
        given = isinstance(one, str)
        tokens = tuple(tokenizer.encode(one, add_special_tokens=True, parse_special=False)) if given else one
        if not tokens:
            raise RequestError(f"input {len(requests)} has no tokens, so it has no embedding", param="input")
        requests.append(Embed(tokens))
    return requests


def cut(vector: Sequence[float], dimensions: int | None, *, normalise: bool = True) -> Sequence[float]:
    """The first `dimensions` numbers, with unit length again. RequestError where there are fewer."""
    if dimensions is None or dimensions == len(vector):
        return vector
    if dimensions > len(vector):
        raise RequestError(f"dimensions is {dimensions}; this model has {len(vector)}", param="dimensions")
    kept = vector[:dimensions]
    length = math.sqrt(sum(number * number for number in kept)) or 1.0
    return [number / length for number in kept] if normalise else kept


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
