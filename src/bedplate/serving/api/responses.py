"""POST /v1/responses, and the routes to its stored replies.

Reference: the OpenAI API's responses and their streaming events. Replies are kept in memory as `responses_store` says;
`store: false` keeps nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.responses import Response

from bedplate.core.errors import RequestError
from bedplate.inference.engine.requests import LookupContext
from bedplate.serving.api.responses_reply import ResponseEvents, ResponseReply
from bedplate.serving.api.turns import AssistantTurn, parts_of, take_turn
from bedplate.serving.api.uploads import ORDER, PAGE_FIELDS, Page
from bedplate.serving.durable.responses_store import KeptResponse, ResponseStore
from bedplate.serving.models.answer_plan import AnswerPlan
from bedplate.serving.models.served import Served
from bedplate.serving.request.events import Event, EventStream
from bedplate.serving.request.lifecycle import READ_AT_ONCE, ApiCall, CallInProgress, answers
from bedplate.serving.schemas.http_errors import StatusError
from bedplate.serving.schemas.openai_fields import ChatRequest
from bedplate.serving.schemas.request_fields import openapi_queries
from bedplate.serving.schemas.responses_fields import ChatMessage, ResponsesRequest
from bedplate.serving.schemas.strict_json import json_response, large_json_response

router = APIRouter(prefix="/v1/responses")
T = TypeVar("T")


@router.post("")
@answers("responses")
async def create_response(call: ApiCall, request: ResponsesRequest) -> Response:
    is_stored = _is_stored(call, request)
    earlier = _earlier(call, request)
    call.size += 0 if earlier is None else earlier.size
    chat, messages = await _off_loop(call, lambda: request.chat(() if earlier is None else earlier.messages()))
    served = await call.choose(request.model)
    left_out = 0

    def make_plan(terms: LookupContext) -> AnswerPlan:
        nonlocal left_out
        if request.truncation != "auto":
            return served.chat(chat, terms)
        plan, left_out = fitting_plan(served, chat, terms)
        return plan

    plan = await call.prepare(make_plan, "input")
    run = call.submit(plan, "input", "max_output_tokens")
    reply = ResponseReply(call, request, is_stored, left_out)
    if request.stream:
        return EventStream(_events(call, chat, messages, reply, plan, run), with_terminator=False, error_name="error")
    turn = await take_turn(call, chat, plan, run)
    whole = reply.whole(turn)
    await _store(call, reply, [*messages, turn.message()], whole)
    return json_response(whole)


@router.get("/{name}", openapi_extra=openapi_queries(stream={"enum": ["false"]}))
@answers("responses")
async def get_response(call: ApiCall) -> Response:
    if call.request.query_params.get("stream") not in {None, "false"}:
        raise RequestError("a kept reply cannot be streamed; leave stream out", param="stream")
    name = call.request.path_params["name"]
    return Response(_stored_response(call, name).response, media_type="application/json")


@router.get("/{name}/input_items", openapi_extra=openapi_queries(**PAGE_FIELDS, order=ORDER))
@answers("responses")
async def list_input_items(call: ApiCall) -> Response:
    page = Page(call.request, 100, "order", "include")
    order, name = page.query.get("order", "desc"), call.request.path_params["name"]
    if order not in ("asc", "desc"):
        raise RequestError(f"order is {order[:40]!r}; it is asc or desc", param="order")
    stored = _stored_response(call, name)
    call.size = stored.size

    def listed() -> Response:
        rows = input_items(name, stored.messages()[:-1])
        if order == "desc":
            rows.reverse()
        if page.after is not None:
            place = next((i for i, row in enumerate(rows) if row["id"] == page.after), None)
            if place is None:
                raise RequestError(f"after is {page.after[:80]!r}, which is not an item of this list", param="after")
            rows = rows[place + 1 :]
        return large_json_response(page.reply(rows))

    return await _off_loop(call, listed)


@router.delete("/{name}")
@answers("responses")
async def delete_response(call: ApiCall) -> Response:
    name = call.request.path_params["name"]
    if not call.server.part(ResponseStore).remove(call.caller.tenant, name):
        raise _not_found(name)
    return json_response({"id": name, "object": "response", "deleted": True})


def _stored_response(call: ApiCall, name: str) -> KeptResponse:
    """StatusError 404 also for another tenant's."""
    stored = call.server.part(ResponseStore).get(call.caller.tenant, name)
    if stored is None:
        raise _not_found(name)
    return stored


async def _off_loop(call: ApiCall, work: Callable[[], T]) -> T:
    """What `work` makes of the call's bytes: beside the event loop, unless they are few."""
    return work() if call.size <= READ_AT_ONCE else await call.off_loop(lambda _: work())


def _not_found(name: str) -> StatusError:
    return StatusError(404, f"no reply with the id {name[:100]!r} is kept here", "response_not_found")


def _is_stored(call: ApiCall, request: ResponsesRequest) -> bool:
    """Whether the reply is kept: where the server keeps any, unless it is not to be. The reply's own `store` says."""
    able = call.server.part(ResponseStore).config.enabled
    return able and request.store is not False


def _earlier(call: ApiCall, request: ResponsesRequest) -> KeptResponse | None:
    """What the request goes on from."""
    name = request.previous_response_id
    if name is None:
        return None
    stored = call.server.part(ResponseStore).get(call.caller.tenant, name)
    if stored is None:
        raise RequestError(
            f"no reply with the id {name[:100]!r} is kept here; send the whole conversation as input",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return stored


async def _events(
    call: ApiCall,
    chat: ChatRequest,
    messages: Sequence[ChatMessage],
    reply: ResponseReply,
    plan: AnswerPlan,
    run: CallInProgress,
) -> AsyncGenerator[Event]:
    turn = AssistantTurn.of(plan)
    events = ResponseEvents(reply, turn)
    for event in events.opening():
        yield event
    async with aclosing(parts_of(turn, call, chat, run)) as arriving:
        async for part in arriving:
            for event in events.part(part):
                yield event
    await _store(call, reply, [*messages, turn.message()], reply.whole(turn))
    for event in events.ending():
        yield event


async def _store(
    call: ApiCall, reply: ResponseReply, conversation: Sequence[ChatMessage], whole: dict[str, Any]
) -> None:
    """Keeps the whole reply, where it is to be."""
    if not reply.is_stored:
        return
    tenant = call.caller.tenant
    if call.size <= READ_AT_ONCE:
        stored = KeptResponse.of(whole, conversation)
    else:  # not `written`: of a stream somebody listens already whether its client leaves
        turn = call.server.preparation.run
        stored = await turn(tenant, call.size, lambda: KeptResponse.of(whole, conversation), refused=False)
    call.server.part(ResponseStore).add(tenant, stored)


Json = dict[str, Any]


def input_items(name: str, messages: Sequence[Mapping[str, Any]]) -> list[Json]:
    """One item for each message, and for each call of a tool. name: the reply's id, from which theirs are made."""
    rows: list[Json] = []

    def add(item_type: str, prefix: str, **fields: Any) -> None:
        rows.append({"id": f"{prefix}_{name.removeprefix('resp_')}_in{len(rows)}", "type": item_type, **fields})

    for message in messages:
        role, content = message["role"], message["content"]
        if role == "tool":
            add("function_call_output", "fco", call_id=message["tool_call_id"], output=content, status="completed")
            continue
        if message.get("reasoning_content"):
            reasoning = [{"type": "reasoning_text", "text": message["reasoning_content"]}]
            add("reasoning", "rs", summary=[], content=reasoning, status="completed")
        if content or not message.get("tool_calls"):
            part = {"type": "output_text", "annotations": []} if role == "assistant" else {"type": "input_text"}
            add("message", "msg", role=role, content=[{**part, "text": content}], status="completed")
        for call in message.get("tool_calls") or ():
            add("function_call", "fc", call_id=call["id"], **call["function"], status="completed")
    return rows


def fitting_plan(served: Served, request: ChatRequest, terms: LookupContext) -> tuple[AnswerPlan, int]:
    """The plan of the longest end of a conversation that leaves room for the answer, and how many messages it leaves
    out; the whole conversation's where not even the last turn has room, so that the message is about all of it.

    A turn begins with the user's message: calls of tools stay with their results. What the system said stays. As many
    plans are made as a search by halves needs."""
    whole = served.chat(request, terms)
    begins = [i for i, message in enumerate(request.messages) if message.role == "user"][1:]
    if _fits(served, whole, request) or not begins:
        return whole, 0
    low, high, fitting = 0, len(begins) - 1, (whole, 0)
    while low <= high:
        middle = (low + high) // 2
        messages = [
            message
            for i, message in enumerate(request.messages)
            if i >= begins[middle] or message.role in {"system", "developer"}
        ]
        plan = served.chat(request.model_copy(update={"messages": messages}), terms)
        if _fits(served, plan, request):
            fitting, high = (plan, len(request.messages) - len(messages)), middle - 1
        else:
            low = middle + 1
    return fitting


def _fits(served: Served, plan: AnswerPlan, request: ChatRequest) -> bool:
    room = served.answerer.describe().context_length
    return all(len(engine_request.tokens) + (request.token_limit or 1) <= room for engine_request in plan.requests)
