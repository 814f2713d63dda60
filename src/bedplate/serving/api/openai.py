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
from bedplate.serving.call.call import READ_AT_ONCE, ApiCall, UnderWay, answers
from bedplate.serving.call.events import Event, EventStream
from bedplate.serving.models.plan import AnswerPlan, PlanResult
from bedplate.serving.models.served import Answer
from bedplate.serving.rollout.routing import Router
from bedplate.serving.wire.fields import ChatRequest, CompletionRequest
from bedplate.serving.wire.json_replies import json_response, large_json_response

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
    return json_response({"object": "list", "data": [*data, *call.server.part(Router).listed(call.caller)]})


@router.get("/models/{name:path}")
@answers("models")
async def get_model(call: ApiCall) -> Response:
    registry, name = call.server.registry, call.request.path_params["name"]
    route = next((one for one in call.server.part(Router).listed(call.caller) if one["id"] == name), None)
    return json_response(route or registry.describe(registry.find(name, call.caller)))


@router.post("/chat/completions")
@answers("chat")
async def chat_completions(call: ApiCall) -> Response:
    asked = await call.read(ChatRequest)
    served = await call.choose(asked.model)
    plan = await call.prepare(lambda terms: served.chat(asked, terms), "messages")
    return await answer(call, ChatReply(call, asked, plan), plan)


@router.post("/completions")
@answers("completions")
async def completions(call: ApiCall) -> Response:
    asked = await call.read(CompletionRequest)
    served = await call.choose(asked.model)
    plan = await call.prepare(lambda terms: served.complete(asked, terms), "prompt")
    return await answer(call, CompletionReply(call, asked, [one.tokens for one in plan.requests]), plan)


async def answer(call: ApiCall, reply: ChoicesReply[Any], plan: AnswerPlan) -> Response:
    """The reply to a chat or completion, whole or as a stream."""
    _check_reported(plan)
    run = call.submit(plan, reply.source, reply.asked.limit_field)
    if reply.asked.stream:
        return EventStream(_events(call, reply, run))
    found = await call.results(run)

    def read() -> list[Answer]:
        return [call.noted(reply.asked, call.lease.served.answer(result)) for result in found]

    prompt, said = sum(one.usage.prompt_tokens for one in found), sum(one.usage.completion_tokens for one in found)
    plain = reply.asked.alternatives is None and reply.asked.prompt_logprobs is None
    # Log-probabilities of every token are a thousand times the text.
    size = TEXT_BYTES * said if plain else TOKEN_BYTES * (prompt + said)
    if size <= READ_AT_ONCE:
        answers = read()
        call.account(reply.asked, found, answers)
        return json_response(reply.whole(answers))
    answers = await call.written(read, size)
    call.account(reply.asked, found, answers)
    return await call.written(lambda: large_json_response(reply.whole(answers)), size)


def _check_reported(plan: AnswerPlan) -> None:
    """RequestError where more is to be said of the prompts than fits a reply."""
    asked = 0
    for one in plan.requests:
        told = one.sampling.prompt_logprobs if isinstance(one, Generate) else None
        asked += 0 if told is None else len(one.tokens) * (told + 1)
    if asked > MOST_PROMPT_LOGPROBS:
        raise RequestError(
            f"{asked:,} log-probabilities of prompts are asked for; one reply has at most {MOST_PROMPT_LOGPROBS:,}: "
            "send fewer prompts, or ask for fewer alternatives",
            param="prompt_logprobs",
        )


async def _events(call: ApiCall, reply: ChoicesReply[Any], run: UnderWay) -> AsyncGenerator[Event]:
    """The chunks of a streamed reply."""
    opened: set[int] = set()
    ended: dict[int, tuple[PlanResult, Answer]] = {}
    async with aclosing(call.arrivals(run)) as arriving:
        async for one in arriving:
            if one.index not in opened:
                opened.add(one.index)
                opening = reply.opening(one.index)
                if opening is not None:
                    yield Event(reply.chunk(opening))
            wanted = reply.asked.alternatives is not None and any(step.token_id is not None for step in one.steps)
            if one.text or wanted:
                yield Event(reply.chunk(reply.piece(one.index, one.text, one.steps)))
            if one.found is not None and one.answer is not None:
                answer = call.noted(reply.asked, one.answer)
                ended[one.index] = one.found, answer
                yield Event(reply.chunk(reply.ending(one.index, answer)))
    ordered = [ended[index] for index in sorted(ended)]
    answers = [answer for _, answer in ordered]
    call.account(reply.asked, [found for found, _ in ordered], answers)
    if reply.asked.reports_usage:
        yield Event(reply.usage_chunk(answers))
