"""One assistant's turn, for the APIs whose replies are one turn in parts: text, and calls of tools.

Their requests become a `ChatRequest`, so that whatever chats (bases, skins, tools, formats) works behind them as well.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from bedplate.core.errors import RequestError
from bedplate.inference import requests as engine_requests
from bedplate.inference.requests import Step
from bedplate.inference.stream import Stream
from bedplate.serving.calls import Call
from bedplate.serving.fields import ChatRequest, read_fields
from bedplate.serving.models import Answer
from bedplate.text.tools import Piece


@dataclass(frozen=True)
class Part:
    """What arrived of a turn: pieces of text or calls, the steps behind them, and the answer with the last."""

    pieces: Sequence[Piece]
    steps: Sequence[Step]
    answer: Answer | None


def as_chat(body: Mapping[str, Any], names: Mapping[str, str]) -> ChatRequest:
    """The chat that a request amounts to. names: what the request calls the chat's fields, for messages about them."""
    try:
        return read_fields(ChatRequest, {name: value for name, value in body.items() if value is not None})
    except RequestError as error:
        head = (error.param or "").split("[", 1)[0].split(".", 1)[0]
        if head in names:
            error.param = names[head]
        raise


async def take_turn(call: Call, asked: ChatRequest, streams: Sequence[Stream]) -> Answer:
    """The whole turn, told to whoever counts."""
    found = await call.results(streams)
    return _accounted(call, asked, found)


async def parts_of_turn(call: Call, asked: ChatRequest, streams: Sequence[Stream]) -> AsyncGenerator[Part]:
    """The turn as it comes. Its last part has the answer, which by then was told to whoever counts."""
    async with aclosing(call.arrivals(streams)) as arriving:
        async for one in arriving:
            pieces = [Piece("content", one.text)] if one.text else []
            if one.answer is None:
                yield Part(pieces, one.steps, None)
            else:
                yield Part(pieces, one.steps, _accounted(call, asked, [stream.result(0) for stream in streams]))


def _accounted(call: Call, asked: ChatRequest, found: Sequence[engine_requests.Result]) -> Answer:
    served = call.lease.served
    answer, notes = served.answer(found[0]), served.notes(asked)
    if notes:
        answer = replace(answer, extension={**(answer.extension or {}), **notes})
    call.account(asked, found, [answer])
    return answer


def extension_of(call: Call, answer: Answer) -> dict[str, Any]:
    """The reply's `bedplate` field, where there is something to say that its API has no field for."""
    cost = {} if call.cost_usd is None else {"cost_usd": call.cost_usd}
    said = {**(answer.extension or {}), **cost}
    return {"bedplate": said} if said else {}
