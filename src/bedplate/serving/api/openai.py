"""OpenAI-compatible routes for models, chat completions and completions; builds their replies and stream chunks."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Generic, TypeVar

from fastapi import APIRouter
from starlette.responses import Response

from bedplate.core.errors import RequestError
from bedplate.inference.engine.requests import Generate, Generation, Step
from bedplate.serving.models.served import Answer, AnswerPlan, PlanResult, Served, finite
from bedplate.serving.request.events import Event, EventStream
from bedplate.serving.request.lifecycle import READ_AT_ONCE, ApiCall, CallInProgress, answers
from bedplate.serving.rollout.version_router import VersionRouter
from bedplate.serving.schemas.openai_fields import ChatRequest, CompletionRequest
from bedplate.serving.schemas.strict_json import Rows, dump_json, json_response, large_json_response
from bedplate.serving.schemas.tool_fields import Spoken
from bedplate.text.tokenizer import Tokenizer

Json = dict[str, Any]

FULL_LENGTH = 256
"""Padded stream events have a multiple of this many bytes."""

A = TypeVar("A", ChatRequest, CompletionRequest)


class ChoicesReply(ABC, Generic[A]):
    """Builds the reply to one request: as a whole (`whole`) or as stream chunks (`chunk`)."""

    prefix: str
    whole_object: str
    chunk_object: str
    source: str
    """The field that holds the prompt, for messages about it."""

    def __init__(self, call: ApiCall, request: A) -> None:
        self._call, self.request = call, request
        self._head: Json = {
            "id": f"{self.prefix}-{call.id}",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": f"bedplate-{call.lease.served.fingerprint[:12]}",
        }

    @property
    def _tokenizer(self) -> Tokenizer:
        return self._call.lease.served.tokenizer

    @abstractmethod
    def choice(self, index: int, answer: Answer) -> Json:
        """A whole choice."""

    @abstractmethod
    def opening(self, index: int) -> Json | None:
        """The first chunk of a choice's stream, if it has one before its text."""

    @abstractmethod
    def piece(self, index: int, text: str, steps: Sequence[Step]) -> Json:
        """A choice's next text, and the steps whose log-probabilities go with it."""

    @abstractmethod
    def ending(self, index: int, answer: Answer) -> Json:
        """A choice's last chunk."""

    def whole(self, answers: Sequence[Answer]) -> Json:
        choices = [self.choice(index, answer) for index, answer in enumerate(answers)]
        whole = {**self._head, "object": self.whole_object, "choices": choices, "usage": self.usage(answers)}
        return whole | self._priced()

    def chunk(self, choice: Json) -> Json:
        usage = {"usage": None} if self.request.reports_usage else {}
        padding = {"obfuscation": padding_of(choice)} if self.request.obfuscates else {}
        return {**self._head, "object": self.chunk_object, "choices": [choice], **usage, **padding}

    def usage_chunk(self, answers: Sequence[Answer]) -> Json:
        head = {**self._head, "object": self.chunk_object, "choices": [], "usage": self.usage(answers)}
        return head | self._priced()

    def _priced(self) -> Json:
        cost = self._call.cost_usd
        return {} if cost is None else {"bedplate": {"cost_usd": cost}}

    def usage(self, answers: Sequence[Answer]) -> Json:
        """Token counts. The choices of one prompt count it once."""
        prompts = answers[:: self.request.choices]
        prompt = sum(answer.usage.prompt_tokens for answer in prompts)
        completion = sum(answer.usage.completion_tokens for answer in answers)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(answer.usage.cached_tokens for answer in prompts)},
        }

    def prompt_logprobs(self, prompt: Sequence[int], generation: Generation) -> Iterator[Json | None]:
        """Per token of the prompt, None for the first: by token id, the log-probability of the token itself and of the
        likeliest (vLLM's shape). The rank of a token that is not among these is not known, and null."""
        count = self.request.prompt_logprobs or 0
        tops = zip(prompt, generation.prompt_logprobs or (), generation.prompt_top_logprobs, strict=True)
        for token, logprob, top in tops:
            ranked: dict[int, tuple[float, int | None]] = {
                index: (number, rank) for rank, (index, number) in enumerate(top[:count], 1)
            }
            ranked.setdefault(token, (logprob or 0.0, None))
            row = {
                str(index): {"logprob": finite(number), "rank": rank, "decoded_token": self._token(index)}
                for index, (number, rank) in ranked.items()
            }
            yield None if logprob is None else row

    def _token(self, index: int) -> str:
        return token_text(self._tokenizer, index)


def padding_of(content: Json) -> str:
    """Random letters that pad an event to a multiple of `FULL_LENGTH`, so that the packet sizes of an encrypted stream
    reveal little of its words."""
    letters = -len(dump_json(content)) % FULL_LENGTH
    return secrets.token_hex(FULL_LENGTH // 2)[:letters]


def _extension(answer: Answer) -> Json:
    return {} if answer.extension is None else {"bedplate": dict(answer.extension)}


def reasoning_tokens(served: Served, reasoning: str, answer: Answer) -> int:
    """Estimates the number of reasoning tokens in an answer, by tokenizing the reasoning."""
    if not reasoning:
        return 0
    return min(len(served.tokenizer.encode(reasoning, parse_special=False)), answer.usage.completion_tokens)


class ChatReply(ChoicesReply[ChatRequest]):
    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    source = "messages"

    def __init__(self, call: ApiCall, request: ChatRequest, plan: AnswerPlan) -> None:
        super().__init__(call, request)
        self._prompt = plan.requests[0].tokens
        self._spoken = [Spoken(plan.form) for _ in range(request.choices)]

    def choice(self, index: int, answer: Answer) -> Json:
        generation = answer.generation
        steps = [] if generation is None else steps_of(generation)
        spoken = self._spoken[index]
        return {
            "index": index,
            "message": spoken.message(answer.text, answer.finish_reason),
            "logprobs": self._logprobs(steps),
            "finish_reason": spoken.finish_reason(answer.finish_reason),
            **_extension(answer),
        }

    def whole(self, answers: Sequence[Answer]) -> Json:
        whole, generation = super().whole(answers), answers[0].generation
        if self.request.prompt_logprobs is not None and generation is not None:
            whole["prompt_logprobs"] = Rows(partial(self.prompt_logprobs, self._prompt, generation))
        return whole

    def usage(self, answers: Sequence[Answer]) -> Json:
        reasoned = sum(
            reasoning_tokens(self._call.lease.served, spoken.reasoning, answer)
            for spoken, answer in zip(self._spoken, answers, strict=False)
        )
        return {**super().usage(answers), "completion_tokens_details": {"reasoning_tokens": reasoned}}

    def opening(self, index: int) -> Json:
        return self._delta(index, {"role": "assistant", "content": "", "refusal": None})

    def piece(self, index: int, text: str, steps: Sequence[Step]) -> Json:
        spoken = self._spoken[index]
        return self._delta(index, spoken.delta(spoken.push(text)), self._logprobs(steps))

    def ending(self, index: int, answer: Answer) -> Json:
        spoken = self._spoken[index]
        delta, reason = spoken.delta(spoken.finish(answer.finish_reason)), spoken.finish_reason(answer.finish_reason)
        return {**self._delta(index, delta), "finish_reason": reason, **_extension(answer)}

    def _delta(self, index: int, delta: Json, logprobs: Json | None = None) -> Json:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _logprobs(self, steps: Sequence[Step]) -> Json | None:
        if not self.request.logprobs:
            return None
        return {"content": Rows(partial(token_entries, self._tokenizer, steps)), "refusal": None}


class CompletionReply(ChoicesReply[CompletionRequest]):
    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"
    source = "prompt"

    def __init__(self, call: ApiCall, request: CompletionRequest, prompts: Sequence[Sequence[int]]) -> None:
        """`prompts`: the token ids of each choice's prompt."""
        super().__init__(call, request)
        self._prompts = prompts
        self._written = [0] * len(prompts)

    def choice(self, index: int, answer: Answer) -> Json:
        echoed = self._echo(index)
        logprobs = None
        if answer.generation is not None and self.request.logprobs is not None:
            prompt = self._prompt_steps(index, answer.generation) if self.request.echo else []
            logprobs = self._logprobs(prompt, 0, None)
            generated = self._logprobs(steps_of(answer.generation), len(echoed), len(echoed) + len(answer.text))
            logprobs = {key: logprobs[key] + generated[key] for key in generated}
        reason = answer.finish_reason
        if answer.generation is not None and set(answer.generation.token_ids[-1:]) & set(self._tokenizer.eos_ids):
            reason = "stop"  # the one token that was asked for with its log-probability is the end token
        whole = {**self._choice(index, echoed + answer.text, logprobs, reason), **_extension(answer)}
        if self.request.prompt_logprobs is not None and answer.generation is not None:
            whole["prompt_logprobs"] = Rows(partial(self.prompt_logprobs, self._prompts[index], answer.generation))
        return whole

    def opening(self, index: int) -> Json | None:
        echoed = self._echo(index)
        self._written[index] = len(echoed)
        return self._choice(index, echoed) if echoed else None

    def piece(self, index: int, text: str, steps: Sequence[Step]) -> Json:
        start = self._written[index]
        self._written[index] += len(text)
        has_logprobs = self.request.logprobs is not None
        return self._choice(index, text, self._logprobs(steps, start, start + len(text)) if has_logprobs else None)

    def ending(self, index: int, answer: Answer) -> Json:
        return {**self._choice(index, "", None, answer.finish_reason), **_extension(answer)}

    def _choice(self, index: int, text: str, logprobs: Json | None = None, reason: str | None = None) -> Json:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _echo(self, index: int) -> str:
        """The prompt's text, where it is to be repeated."""
        if not self.request.echo:
            return ""
        prompt = self.request.prompt[index // self.request.choices]
        if isinstance(prompt, str):
            return prompt
        return self._tokenizer.reading.decode(prompt, skip_special_tokens=False)

    def _prompt_steps(self, index: int, generation: Generation) -> list[Step]:
        rows = zip(self._prompts[index], generation.prompt_logprobs or (), generation.prompt_top_logprobs, strict=True)
        return [Step(token, "", logprob, top[: self.request.logprobs]) for token, logprob, top in rows]

    def _logprobs(self, steps: Sequence[Step], offset: int, end: int | None) -> Json:
        """Parallel lists. `text_offset` is where a token's text begins in the choice's, which ends at `end`."""
        logprobs: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        decoder = self._tokenizer.stream(skip_special_tokens=end is not None)
        for step in steps:
            if step.token_id is None:
                continue
            text = self._token(step.token_id)
            # Different tokens may have one text: the likelier is kept. The token itself is always there.
            top = {self._token(token): finite(logprob) for token, logprob in reversed(step.top_logprobs)}
            if top and step.logprob is not None:
                top.setdefault(text, finite(step.logprob))
            logprobs["tokens"].append(text)
            logprobs["token_logprobs"].append(None if step.logprob is None else finite(step.logprob))
            logprobs["top_logprobs"].append(top or None)
            logprobs["text_offset"].append(offset if end is None else min(offset, end))
            offset += len(decoder.push(step.token_id))
        return logprobs


def token_text(tokenizer: Tokenizer, index: int) -> str:
    """A token as text; as the API writes its bytes, or by its number, where it is none."""
    if index >= tokenizer.vocab_size:
        return f"token_id:{index}"
    content = tokenizer.token_bytes(index)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def token_entries(tokenizer: Tokenizer, steps: Sequence[Step]) -> Iterator[Json]:
    """The tokens of steps with their log-probabilities and those of the likeliest, as chats list them."""
    shown: dict[int, tuple[str, list[int]]] = {}  # the same few tokens are likely again and again

    def entry(index: int, logprob: float) -> Json:
        if index not in shown:
            content = list(tokenizer.token_bytes(index)) if index < tokenizer.vocab_size else []
            shown[index] = token_text(tokenizer, index), content
        text, content = shown[index]
        return {"token": text, "logprob": finite(logprob), "bytes": content}

    for step in steps:
        if step.token_id is not None and step.logprob is not None:
            top = [entry(token, logprob) for token, logprob in step.top_logprobs]
            yield {**entry(step.token_id, step.logprob), "top_logprobs": top}


def steps_of(generation: Generation) -> list[Step]:
    """A finished generation's tokens as the steps they came in."""
    tops = generation.top_logprobs or ((),) * len(generation.token_ids)
    rows = zip(generation.token_ids, generation.logprobs, tops, strict=True)
    return [Step(token, "", logprob, top) for token, logprob, top in rows]


router = APIRouter(prefix="/v1")
TOKEN_BYTES = 1000
"""Approximate size in a reply of one token's log-probability with its alternatives."""
TEXT_BYTES = 8
"""Approximate size of one token's text."""
MAX_PROMPT_LOGPROBS = 2_000_000
"""Most prompt log-probabilities in one reply; each takes some fifteen bytes of memory until it is written."""


@router.get("/models")
@answers("models")
async def list_models(call: ApiCall) -> Response:
    registry = call.server.registry
    data = [registry.describe(served) for served in registry.visible(call.caller)]
    return json_response({"object": "list", "data": [*data, *call.server.part(VersionRouter).listed(call.caller)]})


@router.get("/models/{name:path}")
@answers("models")
async def get_model(call: ApiCall) -> Response:
    registry, name = call.server.registry, call.request.path_params["name"]
    routes = {listing["id"]: listing for listing in call.server.part(VersionRouter).listed(call.caller)}
    return json_response(routes.get(name) or registry.describe(registry.lookup(name, call.caller)))


@router.post("/chat/completions")
@answers("chat")
async def chat_completions(call: ApiCall, request: ChatRequest) -> Response:
    served = await call.choose(request.model)
    plan = await call.prepare(lambda terms: served.chat(request, terms), "messages")
    return await answer(call, ChatReply(call, request, plan), plan)


@router.post("/completions")
@answers("completions")
async def completions(call: ApiCall, request: CompletionRequest) -> Response:
    served = await call.choose(request.model)
    plan = await call.prepare(lambda terms: served.complete(request, terms), "prompt")
    return await answer(call, CompletionReply(call, request, [generate.tokens for generate in plan.requests]), plan)


async def answer(call: ApiCall, reply: ChoicesReply[Any], plan: AnswerPlan) -> Response:
    """Runs a plan and replies to a chat or completion, as a whole or as a stream."""
    _check_reported(plan)
    run = call.submit(plan, reply.source, reply.request.limit_field)
    if reply.request.stream:
        return EventStream(_events(call, reply, run))
    results = await call.results(run)

    def read() -> list[Answer]:
        return [call.lease.served.answer(result) for result in results]

    prompt = sum(result.usage.prompt_tokens for result in results)
    completion = sum(result.usage.completion_tokens for result in results)
    plain = reply.request.alternatives is None and reply.request.prompt_logprobs is None
    # Log-probabilities of every token are a thousand times the text.
    size = TEXT_BYTES * completion if plain else TOKEN_BYTES * (prompt + completion)
    if size <= READ_AT_ONCE:
        answers = read()
        call.account(reply.request, results, answers)
        return json_response(reply.whole(answers))
    answers = await call.written(read, size)
    call.account(reply.request, results, answers)
    return await call.written(lambda: large_json_response(reply.whole(answers)), size)


def _check_reported(plan: AnswerPlan) -> None:
    """RequestError for more prompt log-probabilities than one reply may have."""
    total = 0
    for request in plan.requests:
        alternatives = request.sampling.prompt_logprobs if isinstance(request, Generate) else None
        total += 0 if alternatives is None else len(request.tokens) * (alternatives + 1)
    if total > MAX_PROMPT_LOGPROBS:
        raise RequestError(
            f"{total:,} log-probabilities of prompts are asked for; one reply has at most {MAX_PROMPT_LOGPROBS:,}: "
            "send fewer prompts, or ask for fewer alternatives",
            param="prompt_logprobs",
        )


async def _events(call: ApiCall, reply: ChoicesReply[Any], run: CallInProgress) -> AsyncGenerator[Event]:
    opened: set[int] = set()
    ended: dict[int, tuple[PlanResult, Answer]] = {}
    async with aclosing(call.arrivals(run)) as arriving:
        async for arrival in arriving:
            if arrival.index not in opened:
                opened.add(arrival.index)
                opening = reply.opening(arrival.index)
                if opening is not None:
                    yield Event(reply.chunk(opening))
            tokens = any(step.token_id is not None for step in arrival.steps)
            if arrival.text or (tokens and reply.request.alternatives is not None):
                yield Event(reply.chunk(reply.piece(arrival.index, arrival.text, arrival.steps)))
            if arrival.result is not None and arrival.answer is not None:
                ended[arrival.index] = arrival.result, arrival.answer
                yield Event(reply.chunk(reply.ending(arrival.index, arrival.answer)))
    ordered = [ended[index] for index in sorted(ended)]
    answers = [answer for _, answer in ordered]
    call.account(reply.request, [result for result, _ in ordered], answers)
    if reply.request.reports_usage:
        yield Event(reply.usage_chunk(answers))
