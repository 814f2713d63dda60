"""Replies of /v1/responses: the whole object, and the events that build it up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from bedplate.inference.requests import Step
from bedplate.serving.calls import Call
from bedplate.serving.events import Event
from bedplate.serving.models import Answer
from bedplate.serving.replies import steps_of, token_entry
from bedplate.serving.responses_fields import ChatMessage, ResponsesRequest
from bedplate.serving.turns import Part, extension_of

Json = dict[str, Any]


class ResponseReply:
    """One reply in the making. Items have ids from the start, so that events and the whole agree."""

    def __init__(self, call: Call, asked: ResponsesRequest, keeps: bool) -> None:
        self._call, self._asked, self.keeps = call, asked, keeps
        self._tokenizer = call.lease.engine.base.need_tokenizer()
        self._created = int(time.time())

    def message(self, answer: Answer) -> ChatMessage:
        """The turn as a message of the conversation."""
        return {"role": "assistant", "content": answer.text}

    def whole(self, answer: Answer) -> Json:
        cut = answer.finish_reason == "length"
        return {
            **self.base("incomplete" if cut else "completed"),
            "output": self.output(answer),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": answer.usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": answer.usage.cached_tokens},
                "output_tokens": answer.usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": answer.usage.prompt_tokens + answer.usage.completion_tokens,
            },
            **extension_of(self._call, answer),
        }

    def base(self, status: str) -> Json:
        """The reply without what it says."""
        asked = self._asked
        form = None if asked.text is None else asked.text.format
        return {
            "id": f"resp_{self._call.id}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": asked.model,
            "output": [],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "store": self.keeps,
            "temperature": asked.temperature,
            "text": {"format": form or {"type": "text"}},
            "tool_choice": asked.tool_choice or "auto",
            "tools": asked.tools or [],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    def output(self, answer: Answer) -> list[Json]:
        cut = answer.finish_reason == "length"
        logprobs = [] if answer.generation is None else self.logprobs(steps_of(answer.generation))
        return [self.text_item(0, "incomplete" if cut else "completed", answer.text, logprobs)]

    def text_item(self, index: int, status: str, text: str | None, logprobs: Sequence[Json] = ()) -> Json:
        """text: None before it has begun."""
        content = [] if text is None else [text_part(text, logprobs)]
        head = {"id": f"msg_{self._call.id}_{index}", "type": "message", "status": status, "role": "assistant"}
        return {**head, "content": content}

    def logprobs(self, steps: Sequence[Step]) -> list[Json]:
        if not self._asked.includes_logprobs:
            return []
        found: list[Json] = []
        for step in steps:
            if step.token_id is not None and step.logprob is not None:
                top = [token_entry(self._tokenizer, token, logprob) for token, logprob in step.top_logprobs]
                found.append({**token_entry(self._tokenizer, step.token_id, step.logprob), "top_logprobs": top})
        return found


def text_part(text: str, logprobs: Sequence[Json] = ()) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


class ResponseEvents:
    """The events of one streamed reply, numbered: each item is added, built up and done, one after the other."""

    def __init__(self, reply: ResponseReply) -> None:
        self._reply = reply
        self._numbers = count()
        self._text: list[str] | None = None
        self._logprobs: list[Json] = []

    def opening(self) -> Iterator[Event]:
        base = self._reply.base("in_progress")
        yield self._event("response.created", response=base)
        yield self._event("response.in_progress", response=base)

    def part(self, part: Part) -> Iterator[Event]:
        """What newly arrived."""
        logprobs = self._reply.logprobs(part.steps)
        for piece in part.pieces:
            yield from self._open_text()
            assert self._text is not None
            self._text.append(piece.text)
            self._logprobs += logprobs
            place = self._place(0)
            yield self._event("response.output_text.delta", **place, delta=piece.text, logprobs=logprobs)
            logprobs = []

    def ending(self, answer: Answer) -> Iterator[Event]:
        """What is still open is closed, and the whole is sent."""
        whole = self._reply.whole(answer)
        yield from self._open_text()
        yield from self._close_text(whole["output"][0]["status"])
        yield self._event(f"response.{whole['status']}", response=whole)

    def _open_text(self) -> Iterator[Event]:
        if self._text is not None:
            return
        self._text = []
        item = self._reply.text_item(0, "in_progress", None)
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **self._place(0), part=text_part(""))

    def _close_text(self, status: str) -> Iterator[Event]:
        text = "".join(self._text or ())
        place = self._place(0)
        yield self._event("response.output_text.done", **place, text=text, logprobs=self._logprobs)
        yield self._event("response.content_part.done", **place, part=text_part(text, self._logprobs))
        item = self._reply.text_item(0, status, text, self._logprobs)
        yield self._event("response.output_item.done", output_index=0, item=item)

    def _place(self, index: int) -> Json:
        item = self._reply.text_item(index, "in_progress", None)["id"]
        return {"item_id": item, "output_index": index, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> Event:
        return Event({"type": kind, "sequence_number": next(self._numbers), **fields}, kind)
