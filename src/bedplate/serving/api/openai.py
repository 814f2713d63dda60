"""The OpenAI-compatible routes: models, chat completions, completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import Response

from bedplate.inference.engine import requests as engine_requests
from bedplate.inference.engine.scheduler import Stream
from bedplate.serving.api.replies import ChatReply, CompletionReply, Reply
from bedplate.serving.call.call import Call, json_response, respond
from bedplate.serving.call.events import Event, EventStream
from bedplate.serving.models.served import Answer
from bedplate.serving.rollout.routing import Router
from bedplate.serving.wire.fields import ChatRequest, CompletionRequest, read_fields

router = APIRouter(prefix="/v1")


@router.get("/models")
async def list_models(request: Request) -> Response:
    async def work(call: Call) -> Response:
        registry = call.server.registry
        data = [registry.describe(served) for served in registry.visible(call.caller)]
        return json_response({"object": "list", "data": [*data, *call.server.part(Router).listed(call.caller)]})

    return await respond(request, "models", work)


@router.get("/models/{name:path}")
async def get_model(request: Request) -> Response:
    async def work(call: Call) -> Response:
        registry, name = call.server.registry, request.path_params["name"]
        route = next((one for one in call.server.part(Router).listed(call.caller) if one["id"] == name), None)
        return json_response(route or registry.describe(registry.find(name, call.caller)))

    return await respond(request, "models", work)


@router.post("/chat/completions")
async def chat_completions(request: Request) -> Response:
    async def work(call: Call) -> Response:
        asked = read_fields(ChatRequest, await call.body())
        served = await call.choose(asked.model)
        prepared = await call.prepare(lambda terms: served.chat(asked, terms), "messages")
        return await answer(call, ChatReply(call, asked, prepared[0].tokens), prepared)

    return await respond(request, "chat", work)


@router.post("/completions")
async def completions(request: Request) -> Response:
    async def work(call: Call) -> Response:
        asked = read_fields(CompletionRequest, await call.body())
        served = await call.choose(asked.model)
        prepared = await call.prepare(lambda terms: served.complete(asked, terms), "prompt")
        return await answer(call, CompletionReply(call, asked, [one.tokens for one in prepared]), prepared)

    return await respond(request, "completions", work)


async def answer(call: Call, reply: Reply, prepared: Sequence[engine_requests.Request]) -> Response:
    """The reply to a chat or completion, whole or as a stream."""
    streams = call.submit(prepared, reply.source, reply.asked.limit_field)
    if reply.asked.stream:
        return EventStream(_events(call, reply, streams))
    found = await call.results(streams)
    answers = [_noted(call, reply, call.lease.served.answer(result)) for result in found]
    call.account(reply.asked, found, answers)
    return json_response(reply.whole(answers))


async def _events(call: Call, reply: Reply, streams: Sequence[Stream]) -> AsyncGenerator[Event]:
    """The chunks of a streamed reply."""
    opened: set[int] = set()
    answers: dict[int, Answer] = {}
    async with aclosing(call.arrivals(streams)) as arriving:
        async for one in arriving:
            if one.index not in opened:
                opened.add(one.index)
                opening = reply.opening(one.index)
                if opening is not None:
                    yield Event(reply.chunk(opening))
            wanted = reply.asked.alternatives is not None and any(step.token_id is not None for step in one.steps)
            if one.text or wanted:
                yield Event(reply.chunk(reply.piece(one.index, one.text, one.steps)))
            if one.answer is not None:
                answers[one.index] = _noted(call, reply, one.answer)
                yield Event(reply.chunk(reply.ending(one.index, answers[one.index])))
    ordered = [answers[index] for index in range(len(streams))]
    call.account(reply.asked, [call.result_of(stream) for stream in streams], ordered)
    if reply.asked.reports_usage:
        yield Event(reply.usage_chunk(ordered))


def _noted(call: Call, reply: Reply, answer: Answer) -> Answer:
    """The answer, with what there is to say about how its request was read."""
    notes = call.lease.served.notes(reply.asked)
    return replace(answer, extension={**(answer.extension or {}), **notes}) if notes else answer
