"""Replies of /v1/responses: the whole object, and the events of a stream."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from bedplate.inference.engine.requests import Step
from bedplate.serving.api.replies import padding_of, reasoning_tokens, steps_of, token_entries
from bedplate.serving.api.turns import AssistantTurn, TurnBlock, TurnPart, extension_of
from bedplate.serving.models.served import Answer
from bedplate.serving.request.events import Event
from bedplate.serving.request.lifecycle import ApiCall
from bedplate.serving.schemas.responses_fields import ResponsesRequest

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
        return {
            **self.base("incomplete" if cut else "completed"),
            "output": [
                self.output_item(block, self.status(turn, block), self._whole_logprobs(turn)) for block in turn.blocks
            ],
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": answer.usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": answer.usage.cached_tokens},
                "output_tokens": answer.usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": reasoned},
                "total_tokens": answer.usage.prompt_tokens + answer.usage.completion_tokens,
            },
            **self._extension(answer),
        }

    def _extension(self, answer: Answer) -> Json:
        extension = extension_of(self._call, answer)
        if not self._left_out:
            return extension
        return {"bedplate": {**extension.get("bedplate", {}), "messages_left_out": self._left_out}}

    def base(self, status: str) -> Json:
        """The reply without what it says."""
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
        """A block as an output item."""
        name = self.item_id(block)
        if block.block_type == "call":
            head = {"id": name, "type": "function_call", "status": status}
            return {**head, "call_id": block.id, "name": block.name, "arguments": block.text}
        if block.block_type == "reasoning":
            reasoning = [_reasoning_part(block.text)] if block.text else []
            return {"id": name, "type": "reasoning", "status": status, "summary": [], "content": reasoning}
        content = [text_part(block.text, logprobs)]
        return {"id": name, "type": "message", "status": status, "role": "assistant", "content": content}

    def item_id(self, block: TurnBlock) -> str:
        prefixes = {"call": "fc", "text": "msg", "reasoning": "rs"}
        return f"{prefixes[block.block_type]}_{self._call.id}_{block.index}"

    def _whole_logprobs(self, turn: AssistantTurn) -> list[Json]:
        generation = turn.ended.generation
        return [] if generation is None else self.logprobs(steps_of(generation))

    def logprobs(self, steps: Sequence[Step]) -> list[Json]:
        return token_entries(self._call.lease.served.tokenizer, steps) if self._request.includes_logprobs else []


def text_part(text: str, logprobs: Sequence[Json] = ()) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def _reasoning_part(text: str) -> Json:
    return {"type": "reasoning_text", "text": text}


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
        """What newly arrived."""
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
