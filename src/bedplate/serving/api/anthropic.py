"""POST /v1/messages and /v1/messages/count_tokens, with errors in their API's own shape.

Reference: Anthropic's Messages API and its streaming events.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from bedplate.core.json import deeper
from bedplate.inference.engine.requests import Usage
from bedplate.serving.api.turns import AssistantTurn, TurnBlock, TurnPart, extension_of, parts_of, take_turn
from bedplate.serving.models.served import Answer, AnswerPlan
from bedplate.serving.request.events import Event, EventStream
from bedplate.serving.request.lifecycle import ApiCall, CallInProgress, Work, answers, respond
from bedplate.serving.schemas.http_errors import ClientGone, error_object, error_response, log_failure, note_failure
from bedplate.serving.schemas.openai_fields import ChatRequest
from bedplate.serving.schemas.strict_json import MAX_DEPTH, json_response
from bedplate.serving.schemas.turn_fields import CountRequest, MessagesRequest

router = APIRouter(prefix="/v1/messages")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_error(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and body of a failure. The field that is wrong begins the message; there is no other place for it."""
    status, content = error_object(error)
    details = content["error"]
    message = details["message"]
    if details["param"] is not None and details["param"] not in message:
        message = f"{details['param']}: {message}"
    error_type = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return status, {"type": "error", "error": {"type": error_type, "message": message}}


async def _respond(request: Request, endpoint: str, work: Work) -> Response:
    try:
        return await respond(request, endpoint, work)
    except ClientGone:
        raise
    except Exception as error:
        log_failure(error, request.app.state.server.outage)
        note_failure(request.scope, error)
        return error_response(error, anthropic_error)


@router.post("")
@answers("messages", _respond)
async def create_message(call: ApiCall, request: MessagesRequest) -> Response:
    chat = request.chat()
    served = await call.choose(request.model)
    plan = await call.prepare(lambda terms: served.chat(chat, terms), "messages")
    run = call.submit(plan, "messages")
    reply = MessageReply(call, request)
    if request.stream:
        events = _events(call, chat, reply, run, plan)
        return EventStream(events, with_terminator=False, error_name="error", error_shape=anthropic_error)
    return json_response(reply.whole(await take_turn(call, chat, plan, run)))


@router.post("/count_tokens")
@answers("count_tokens", _respond)
async def count_tokens(call: ApiCall, request: CountRequest) -> Response:
    chat = request.chat()
    served = await call.choose(request.model)
    plan = await call.prepare(lambda terms: served.chat(chat, terms), "messages")
    return json_response({"input_tokens": len(plan.requests[0].tokens)})


async def _events(
    call: ApiCall, chat: ChatRequest, reply: MessageReply, run: CallInProgress, plan: AnswerPlan
) -> AsyncGenerator[Event]:
    turn = AssistantTurn.of(plan)
    events = MessageEvents(reply, turn)
    for event in events.opening(len(plan.requests[0].tokens)):
        yield event
    async with aclosing(parts_of(turn, call, chat, run)) as arriving:
        async for part in arriving:
            for event in events.part(part):
                yield event
    for event in events.ending():
        yield event


Json = dict[str, Any]


class MessageReply:
    def __init__(self, call: ApiCall, request: MessagesRequest) -> None:
        self.call, self._request = call, request

    def whole(self, turn: AssistantTurn) -> Json:
        return {
            **self.base(),
            "content": [_block(block) for block in turn.blocks if block.block_type == "call" or block.text],
            **self.stop(turn),
            "usage": usage_of(turn.ended.usage),
            **extension_of(self.call, turn.ended),
        }

    def base(self) -> Json:
        """The message before it says anything."""
        return {
            "id": f"msg_{self.call.id}",
            "type": "message",
            "role": "assistant",
            "model": self._request.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def stop(self, turn: AssistantTurn) -> Json:
        """Why the message ends; a stop sequence by name."""
        reasons = {"length": "max_tokens", "tool_calls": "tool_use"}
        if turn.finish_reason in reasons:
            return {"stop_reason": reasons[turn.finish_reason], "stop_sequence": None}
        sequence = self._stop_sequence(turn.ended, frozenset(turn.spoken.form.marks.values()))
        return {"stop_reason": "end_turn" if sequence is None else "stop_sequence", "stop_sequence": sequence}

    def _stop_sequence(self, answer: Answer, marks: frozenset[int]) -> str | None:
        """The text was cut before it: it is what the tokens go on with."""
        generation, sequences = answer.generation, self._request.stop_sequences or ()
        if generation is None or not sequences:
            return None
        tail = self.call.lease.served.tokenizer.decode(generation.token_ids, marks=marks)[len(generation.text) :]
        return next((sequence for sequence in sequences if tail.startswith(sequence)), None)


def _block(block: TurnBlock) -> Json:
    if block.block_type == "text":
        return {"type": "text", "text": block.text}
    if block.block_type == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    return {"type": "tool_use", "id": block.id, "name": block.name, "input": _input(block.text)}


def _input(text: str) -> Any:
    """A call's arguments. A number that no float holds is its text: JSON readers have no other. Of what was cut off by
    max_tokens, or is nested deeper than JSON is read here, there is no object."""
    try:
        arguments = json.loads(text, parse_float=_number, parse_constant=str)
        return {} if deeper(arguments, MAX_DEPTH) else arguments
    except (ValueError, RecursionError):
        return {}


def _number(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text


def usage_of(usage: Usage) -> Json:
    """Tokens of the prompt that came from the cache are counted apart."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


_DELTAS = {
    "text": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
    "reasoning": ("thinking_delta", "thinking"),
}


class MessageEvents:
    """The events of one streamed message: each block begins, grows and stops before the next."""

    def __init__(self, reply: MessageReply, turn: AssistantTurn) -> None:
        self._reply, self._turn = reply, turn
        self._open: TurnBlock | None = None
        self._index = -1

    def opening(self, prompt_tokens: int) -> Iterator[Event]:
        """How much of the prompt is cached is not known yet: the last usage says."""
        message = {**self._reply.base(), "usage": usage_of(Usage(prompt_tokens))}
        yield _event("message_start", message=message)
        yield _event("ping")

    def part(self, part: TurnPart) -> Iterator[Event]:
        for growth in part.growths:
            block = growth.block
            if block is not self._open and (growth.text or block.block_type == "call"):
                yield from self._stop()
                self._open = block
                self._index += 1
                empty: Json = {"text": ""} if block.block_type == "text" else {"thinking": ""}
                begun = {**_block(block), **({"input": {}} if block.block_type == "call" else empty)}
                yield _event("content_block_start", index=self._index, content_block=begun)
            if growth.text:
                delta_type, field = _DELTAS[block.block_type]
                delta = {"type": delta_type, field: growth.text}
                yield _event("content_block_delta", index=self._index, delta=delta)

    def ending(self) -> Iterator[Event]:
        yield from self._stop()
        usage, extension = usage_of(self._turn.ended.usage), extension_of(self._reply.call, self._turn.ended)
        yield _event("message_delta", delta=self._reply.stop(self._turn), usage=usage, **extension)
        yield _event("message_stop")

    def _stop(self) -> Iterator[Event]:
        if self._open is not None:
            yield _event("content_block_stop", index=self._index)
            self._open = None


def _event(event_type: str, **fields: Any) -> Event:
    return Event({"type": event_type, **fields}, event_type)
