"""POST /v1/messages and /v1/messages/count_tokens, with errors in their API's own shape.

Reference: Anthropic's Messages API and its streaming events.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from bedplate.serving.api.anthropic_reply import MessageEvents, MessageReply
from bedplate.serving.api.turns import AssistantTurn, parts_of, take_turn
from bedplate.serving.models.answer_plan import AnswerPlan
from bedplate.serving.request.events import Event, EventStream
from bedplate.serving.request.lifecycle import ApiCall, CallInProgress, Work, answers, respond
from bedplate.serving.schemas.anthropic_fields import CountRequest, MessagesRequest
from bedplate.serving.schemas.errors import ClientGone, error_object, error_response, log_failure
from bedplate.serving.schemas.fields import ChatRequest
from bedplate.serving.schemas.scope import note_error
from bedplate.serving.schemas.strict_json import json_response

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
        log_failure(error)
        note_error(request.scope, error_object(error)[1]["error"]["code"])
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
