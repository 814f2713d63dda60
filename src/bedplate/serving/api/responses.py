"""POST /v1/responses, and the routes to its stored replies.

Reference: the OpenAI API's responses and their streaming events. Replies are kept in memory as `responses_store` says;
`store: false` keeps nothing.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.responses import Response

from bedplate.core.errors import RequestError
from bedplate.inference.engine.requests import LookupContext, Step
from bedplate.serving.api.batches import ORDER, PAGE_FIELDS, Page
from bedplate.serving.api.openai import padding_of, reasoning_tokens, steps_of, token_entries
from bedplate.serving.api.turns import AssistantTurn, TurnBlock, TurnPart, extension_of, parts_of, take_turn
from bedplate.serving.durable.responses_store import KeptResponse, ResponseStore
from bedplate.serving.models.served import AnswerPlan, Served
from bedplate.serving.request.events import Event, EventStream
from bedplate.serving.request.lifecycle import READ_AT_ONCE, ApiCall, CallInProgress, answers
from bedplate.serving.schemas.http_errors import StatusError
from bedplate.serving.schemas.openai_fields import ChatRequest
from bedplate.serving.schemas.request_fields import openapi_queries
from bedplate.serving.schemas.strict_json import json_response, large_json_response
from bedplate.serving.schemas.turn_fields import ChatMessage, ResponsesRequest

Json = dict[str, Any]


class ResponseReply:
    """One reply in the making. Items have ids from the start, so that events and the whole agree."""

    def __init__(self, call: ApiCall, request: ResponsesRequest, is_stored: bool, left_out: int = 0) -> None:
        """left_out: messages that had no place in the context, where the request allowed that."""
        self._call, self._request, self.is_stored, self._left_out = call, request, is_stored, left_out
        self._created = int(time.time())

    def whole(self, turn: AssistantTurn) -> Json:
        answer, cut = turn.ended, turn.finish_reason == "length"
        reasoned = reasoning_tokens(self._call.lease.served, turn.spoken.reasoning, answer)
        logprobs = [] if answer.generation is None else self.logprobs(steps_of(answer.generation))
        extension = extension_of(self._call, answer).get("bedplate", {})
        extension |= {"messages_left_out": self._left_out} if self._left_out else {}
        return {
            **self.base("incomplete" if cut else "completed"),
            "output": [self.output_item(block, self.status(turn, block), logprobs) for block in turn.blocks],
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": answer.usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": answer.usage.cached_tokens},
                "output_tokens": answer.usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": reasoned},
                "total_tokens": answer.usage.prompt_tokens + answer.usage.completion_tokens,
            },
            **({"bedplate": extension} if extension else {}),
        }

    def base(self, status: str) -> Json:
        request = self._request
        form = None if request.text is None else request.text.format
        return {
            "id": f"resp_{self._call.id}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": request.model,
            "output": [],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id,
            "reasoning": {"effort": None if request.reasoning is None else request.reasoning.effort, "summary": None},
            "store": self.is_stored,
            "temperature": request.temperature,
            "text": {"format": form or {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": request.top_p,
            "truncation": request.truncation or "disabled",
            "usage": None,
        }

    @property
    def obfuscates(self) -> bool:
        return self._request.obfuscates

    def status(self, turn: AssistantTurn, block: TurnBlock) -> str:
        """Status of a block that has ended: the last block of a turn that was cut off is incomplete."""
        cut = turn.answer is not None and turn.finish_reason == "length" and block is turn.blocks[-1]
        return "incomplete" if cut else "completed"

    def output_item(self, block: TurnBlock, status: str, logprobs: Sequence[Json] = ()) -> Json:
        name = self.item_id(block)
        if block.block_type == "call":
            head = {"id": name, "type": "function_call", "status": status}
            return {**head, "call_id": block.id, "name": block.name, "arguments": block.text}
        if block.block_type == "reasoning":
            reasoning = [{"type": "reasoning_text", "text": block.text}] if block.text else []
            return {"id": name, "type": "reasoning", "status": status, "summary": [], "content": reasoning}
        content = [text_part(block.text, logprobs)]
        return {"id": name, "type": "message", "status": status, "role": "assistant", "content": content}

    def item_id(self, block: TurnBlock) -> str:
        prefixes = {"call": "fc", "text": "msg", "reasoning": "rs"}
        return f"{prefixes[block.block_type]}_{self._call.id}_{block.index}"

    def logprobs(self, steps: Sequence[Step]) -> list[Json]:
        if not self._request.includes_logprobs:
            return []
        return list(token_entries(self._call.lease.served.tokenizer, steps))


def text_part(text: str, logprobs: Sequence[Json] = ()) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


class ResponseEvents:
    """The events of one streamed reply, numbered: each item is added, built up and done, one after the other."""

    def __init__(self, reply: ResponseReply, turn: AssistantTurn) -> None:
        self._reply, self._turn = reply, turn
        self._numbers = count()
        self._open: TurnBlock | None = None
        self._logprobs: list[Json] = []

    def opening(self) -> Iterator[Event]:
        base = self._reply.base("in_progress")
        yield self._event("response.created", response=base)
        yield self._event("response.in_progress", response=base)

    def part(self, part: TurnPart) -> Iterator[Event]:
        logprobs = self._reply.logprobs(part.steps)
        for growth in part.growths:
            block = growth.block
            if growth.begins:
                yield from self._close()
                yield from self._begin(block)
            if block.block_type == "call" and growth.text:
                place = self._place(block)
                yield self._event("response.function_call_arguments.delta", **place, delta=growth.text)
            elif block.block_type == "reasoning" and growth.text:
                yield self._event("response.reasoning_text.delta", **self._place(block, 0), delta=growth.text)
            elif block.block_type == "text" and (growth.text or logprobs):
                place, self._logprobs = self._place(block, 0), [*self._logprobs, *logprobs]
                yield self._event("response.output_text.delta", **place, delta=growth.text, logprobs=logprobs)
                logprobs = []

    def ending(self) -> Iterator[Event]:
        """What is still open is closed, and the whole is sent."""
        yield from self._close()
        whole = self._reply.whole(self._turn)
        yield self._event(f"response.{whole['status']}", response=whole)

    def _begin(self, block: TurnBlock) -> Iterator[Event]:
        self._open, self._logprobs = block, []
        empty = self._reply.output_item(replace(block, text=""), "in_progress")
        if block.block_type != "text":
            yield self._event("response.output_item.added", output_index=block.index, item=empty)
            return
        yield self._event("response.output_item.added", output_index=block.index, item={**empty, "content": []})
        yield self._event("response.content_part.added", **self._place(block, 0), part=text_part(""))

    def _close(self) -> Iterator[Event]:
        block, self._open = self._open, None
        if block is None:
            return
        if block.block_type == "call":
            call_fields = {"name": block.name, "arguments": block.text}
            yield self._event("response.function_call_arguments.done", **self._place(block), **call_fields)
        elif block.block_type == "reasoning":
            yield self._event("response.reasoning_text.done", **self._place(block, 0), text=block.text)
        else:
            place, text = self._place(block, 0), block.text
            yield self._event("response.output_text.done", **place, text=text, logprobs=self._logprobs)
            yield self._event("response.content_part.done", **place, part=text_part(text, self._logprobs))
        output_item = self._reply.output_item(block, self._reply.status(self._turn, block), self._logprobs)
        yield self._event("response.output_item.done", output_index=block.index, item=output_item)

    def _place(self, block: TurnBlock, content: int | None = None) -> Json:
        place: Json = {"item_id": self._reply.item_id(block), "output_index": block.index}
        return place if content is None else {**place, "content_index": content}

    def _event(self, event_type: str, **fields: Any) -> Event:
        payload = {"type": event_type, "sequence_number": next(self._numbers), **fields}
        if event_type.endswith(".delta") and self._reply.obfuscates:
            payload["obfuscation"] = padding_of(payload)
        return Event(payload, event_type)


router = APIRouter(prefix="/v1/responses")
T = TypeVar("T")


@router.post("")
@answers("responses")
async def create_response(call: ApiCall, request: ResponsesRequest) -> Response:
    # The reply's own `store` says whether it is kept.
    is_stored = call.server.part(ResponseStore).config.enabled and request.store is not False
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
    call.server.part(ResponseStore).remove(call.caller.tenant, _stored_response(call, name).id)
    return json_response({"id": name, "object": "response", "deleted": True})


def _stored_response(call: ApiCall, name: str) -> KeptResponse:
    """StatusError 404 also for another tenant's."""
    stored = call.server.part(ResponseStore).get(call.caller.tenant, name)
    if stored is None:
        raise StatusError(404, f"no reply with the id {name[:100]!r} is kept here", "response_not_found")
    return stored


async def _off_loop(call: ApiCall, work: Callable[[], T]) -> T:
    """What `work` makes of the call's bytes: beside the event loop, unless they are few."""
    return work() if call.size <= READ_AT_ONCE else await call.off_loop(lambda _: work())


def _earlier(call: ApiCall, request: ResponsesRequest) -> KeptResponse | None:
    name = request.previous_response_id
    stored = None if name is None else call.server.part(ResponseStore).get(call.caller.tenant, name)
    if name is not None and stored is None:
        message = f"no reply with the id {name[:100]!r} is kept here; send the whole conversation as input"
        raise RequestError(message, param="previous_response_id", code="previous_response_not_found")
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
    if not reply.is_stored:
        return
    tenant = call.caller.tenant
    if call.size <= READ_AT_ONCE:
        stored = KeptResponse.of(whole, conversation)
    else:  # not `written`: of a stream somebody listens already whether its client leaves
        turn = call.server.preparation.run
        stored = await turn(tenant, call.size, lambda: KeptResponse.of(whole, conversation), refused=False)
    call.server.part(ResponseStore).add(tenant, stored)


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
        system = [message for message in request.messages[: begins[middle]] if message.role in {"system", "developer"}]
        messages = [*system, *request.messages[begins[middle] :]]
        plan = served.chat(request.model_copy(update={"messages": messages}), terms)
        if _fits(served, plan, request):
            fitting, high = (plan, len(request.messages) - len(messages)), middle - 1
        else:
            low = middle + 1
    return fitting


def _fits(served: Served, plan: AnswerPlan, request: ChatRequest) -> bool:
    room = served.answerer.describe().context_length
    return all(len(engine_request.tokens) + (request.token_limit or 1) <= room for engine_request in plan.requests)
