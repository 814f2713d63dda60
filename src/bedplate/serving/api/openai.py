"""The OpenAI-compatible routes: models, chat completions, completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from bedplate.core.errors import RequestError
from bedplate.inference.engine.requests import Generate
from bedplate.serving.api.replies import ChatReply, ChoicesReply, CompletionReply
from bedplate.serving.models.answer_plan import AnswerPlan, PlanResult
from bedplate.serving.models.served import Answer
from bedplate.serving.request.events import Event, EventStream
from bedplate.serving.request.lifecycle import READ_AT_ONCE, ApiCall, CallInProgress, answers
from bedplate.serving.rollout.version_router import VersionRouter
from bedplate.serving.schemas.openai_fields import ChatRequest, CompletionRequest
from bedplate.serving.schemas.strict_json import json_response, large_json_response

router = APIRouter(prefix="/v1")
TOKEN_BYTES = 1000
"""About what one token's log-probabilities and its alternatives' take in a reply."""
TEXT_BYTES = 8
"""About what one token's text takes."""
MOST_PROMPT_LOGPROBS = 2_000_000
"""Log-probabilities of prompts in one reply. Each takes some hundred bytes of memory until the reply is written, much
more than a token takes in a request."""


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
    route = next(
        (listing for listing in call.server.part(VersionRouter).listed(call.caller) if listing["id"] == name), None
    )
    return json_response(route or registry.describe(registry.lookup(name, call.caller)))


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
    return await answer(
        call, CompletionReply(call, request, [engine_request.tokens for engine_request in plan.requests]), plan
    )


async def answer(call: ApiCall, reply: ChoicesReply[Any], plan: AnswerPlan) -> Response:
    """The reply to a chat or completion, whole or as a stream."""
    _check_reported(plan)
    run = call.submit(plan, reply.source, reply.request.limit_field)
    if reply.request.stream:
        return EventStream(_events(call, reply, run))
    results = await call.results(run)

    def read() -> list[Answer]:
        return [call.with_notes(reply.request, call.lease.served.answer(result)) for result in results]

    prompt, completion = (
        sum(result.usage.prompt_tokens for result in results),
        sum(result.usage.completion_tokens for result in results),
    )
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
    """RequestError where more is to be said of the prompts than fits a reply."""
    total = 0
    for request in plan.requests:
        alternatives = request.sampling.prompt_logprobs if isinstance(request, Generate) else None
        total += 0 if alternatives is None else len(request.tokens) * (alternatives + 1)
    if total > MOST_PROMPT_LOGPROBS:
        raise RequestError(
            f"{total:,} log-probabilities of prompts are asked for; one reply has at most {MOST_PROMPT_LOGPROBS:,}: "
            "send fewer prompts, or ask for fewer alternatives",
            param="prompt_logprobs",
        )


async def _events(call: ApiCall, reply: ChoicesReply[Any], run: CallInProgress) -> AsyncGenerator[Event]:
    """The chunks of a streamed reply."""
    opened: set[int] = set()
    ended: dict[int, tuple[PlanResult, Answer]] = {}
    async with aclosing(call.arrivals(run)) as arriving:
        async for arrival in arriving:
            if arrival.index not in opened:
                opened.add(arrival.index)
                opening = reply.opening(arrival.index)
                if opening is not None:
                    yield Event(reply.chunk(opening))
            has_logprobs = reply.request.alternatives is not None and any(
                step.token_id is not None for step in arrival.steps
            )
            if arrival.text or has_logprobs:
                yield Event(reply.chunk(reply.piece(arrival.index, arrival.text, arrival.steps)))
            if arrival.result is not None and arrival.answer is not None:
                answer = call.with_notes(reply.request, arrival.answer)
                ended[arrival.index] = arrival.result, answer
                yield Event(reply.chunk(reply.ending(arrival.index, answer)))
    ordered = [ended[index] for index in sorted(ended)]
    answers = [answer for _, answer in ordered]
    call.account(reply.request, [result for result, _ in ordered], answers)
    if reply.request.reports_usage:
        yield Event(reply.usage_chunk(answers))
