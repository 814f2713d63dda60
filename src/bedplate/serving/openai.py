"""The OpenAI-compatible routes: models, chat completions, completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from bedplate.core.errors import RequestError
from bedplate.inference import requests as engine_requests
from bedplate.inference.scheduler import Stream
from bedplate.serving.access import ACCESS_FACTS
from bedplate.serving.bodies import read_json
from bedplate.serving.bridge import arrivals, cancel_all, results, submit_all, until_disconnect
from bedplate.serving.errors import StoppingError
from bedplate.serving.events import EventStream
from bedplate.serving.fields import ChatRequest, CompletionRequest, read_fields
from bedplate.serving.house import House
from bedplate.serving.models import Answer, Served
from bedplate.serving.replies import ChatReply, CompletionReply, Reply
from bedplate.serving.strict_json import dump_json

router = APIRouter(prefix="/v1")


@router.get("/models")
async def list_models(request: Request) -> Response:
    registry = _house(request).registry
    data = [registry.describe(served) for served in registry.models.values()]
    return _json({"object": "list", "data": data})


@router.get("/models/{name:path}")
async def get_model(request: Request) -> Response:
    registry = _house(request).registry
    return _json(registry.describe(registry.find(request.path_params["name"])))


@router.post("/chat/completions")
async def chat_completions(request: Request) -> Response:
    house = _house(request)
    asked = read_fields(ChatRequest, await read_json(request, house.body_limit))
    served = _find(request, asked.model)
    prepared = await _prepare(lambda: served.chat(asked), "messages")
    reply = ChatReply(asked, house.registry.fingerprint, house.tokenizer)
    return await _answer(request, served, reply, prepared)


@router.post("/completions")
async def completions(request: Request) -> Response:
    house = _house(request)
    asked = read_fields(CompletionRequest, await read_json(request, house.body_limit))
    served = _find(request, asked.model)
    prepared = await _prepare(lambda: served.complete(asked), "prompt")
    prompts = [one.tokens for one in prepared]
    reply = CompletionReply(asked, prompts, house.registry.fingerprint, house.tokenizer)
    return await _answer(request, served, reply, prepared)


def _house(request: Request) -> House:
    return request.app.state.house


def _json(content: Any) -> Response:
    return Response(dump_json(content), media_type="application/json")


def _find(request: Request, name: str) -> Served:
    served = _house(request).registry.find(name)
    request.scope[ACCESS_FACTS]["model"] = served.name
    return served


async def _prepare(make: Callable[[], list[engine_requests.Request]], source: str) -> list[engine_requests.Request]:
    """The engine requests. Templates and tokenizers may take a while, so they run beside the loop."""
    try:
        return await asyncio.to_thread(make)
    except RequestError as error:
        _name_source(error, source)
        raise


def _name_source(error: RequestError, source: str, limit: str = "max_tokens") -> None:
    """What the engine calls prompt, input or max_tokens has the request's own name for it in the reply."""
    if error.param in {"prompt", "input"}:
        error.param = source
    elif error.param == "max_tokens":
        error.param = limit


async def _answer(
    request: Request, served: Served, reply: Reply, prepared: Sequence[engine_requests.Request]
) -> Response:
    house = _house(request)
    if house.stopping:
        raise StoppingError("the server is shutting down")
    if len(prepared) > house.max_waiting:
        raise RequestError(
            f"the request asks for {len(prepared)} answers at once; the queue holds {house.max_waiting}: send fewer",
            param=reply.source,
        )
    try:
        streams = submit_all(house.registry.engine, prepared)
    except RequestError as error:
        _name_source(error, reply.source, reply.asked.limit_field)
        raise
    if reply.asked.stream:
        return EventStream(_chunks(request, served, reply, streams), partial(cancel_all, streams))
    try:
        found = await until_disconnect(request.receive, results(house.registry.engine, streams))
    finally:
        cancel_all(streams)
    answers = [_noted(served, reply, result) for result in found]
    _log_usage(request, reply, answers)
    return _json(reply.whole(answers))


async def _chunks(
    request: Request, served: Served, reply: Reply, streams: Sequence[Stream]
) -> AsyncGenerator[dict[str, Any]]:
    """The chunks of a streamed reply."""
    pieces = [served.pieces() for _ in streams]
    opened: set[int] = set()
    answers: dict[int, Answer] = {}
    async with aclosing(arrivals(_house(request).registry.engine, streams)) as arriving:
        async for index, steps, ended in arriving:
            if ended:
                answers[index] = _noted(served, reply, streams[index].result(0))
            if index not in opened:
                opened.add(index)
                opening = reply.opening(index)
                if opening is not None:
                    yield reply.chunk(opening)
            text = pieces[index]("".join(step.text for step in steps))
            if ended and answers[index].generation is None:
                text = answers[index].text
            wanted = reply.asked.alternatives is not None and any(step.token_id is not None for step in steps)
            if text or wanted:
                yield reply.chunk(reply.piece(index, text, steps))
            if ended:
                yield reply.chunk(reply.ending(index, answers[index]))
    ordered = [answers[index] for index in range(len(streams))]
    if reply.asked.reports_usage:
        yield reply.usage_chunk(ordered)
    _log_usage(request, reply, ordered)


def _noted(served: Served, reply: Reply, result: engine_requests.Result) -> Answer:
    """The answer, with what there is to say about how its request was read."""
    answer, notes = served.answer(result), served.notes(reply.asked)
    return replace(answer, extension={**(answer.extension or {}), **notes}) if notes else answer


def _log_usage(request: Request, reply: Reply, answers: Sequence[Answer]) -> None:
    usage = reply.usage(answers)
    request.scope[ACCESS_FACTS].update(prompt=usage["prompt_tokens"], completion=usage["completion_tokens"])
