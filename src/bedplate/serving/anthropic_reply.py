"""Replies of /v1/messages: the whole message, and the events that build it up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bedplate.inference.requests import Usage
from bedplate.serving.anthropic_fields import MessagesRequest
from bedplate.serving.calls import Call
from bedplate.serving.events import Event
from bedplate.serving.models import Answer
from bedplate.serving.turns import Part, extension_of

Json = dict[str, Any]


class MessageReply:
    """One reply in the making."""

    def __init__(self, call: Call, asked: MessagesRequest) -> None:
        self._call, self._asked = call, asked
        self._tokenizer = call.lease.engine.base.need_tokenizer()

    def whole(self, answer: Answer) -> Json:
        text: list[Json] = [{"type": "text", "text": answer.text}] if answer.text else []
        return {
            **self.base(),
            "content": text,
            **self.stop(answer),
            "usage": usage_of(answer.usage),
            **self.extension(answer),
        }

    def base(self) -> Json:
        """The message before it says anything."""
        return {
            "id": f"msg_{self._call.id}",
            "type": "message",
            "role": "assistant",
            "model": self._asked.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def stop(self, answer: Answer) -> Json:
        """Why the message ends; a stop sequence by name."""
        if answer.finish_reason == "length":
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        sequence = self._stop_sequence(answer)
        return {"stop_reason": "end_turn" if sequence is None else "stop_sequence", "stop_sequence": sequence}

    def extension(self, answer: Answer) -> Json:
        return extension_of(self._call, answer)

    def _stop_sequence(self, answer: Answer) -> str | None:
        """The text was cut before it: it is what the tokens go on with."""
        made, asked = answer.generation, self._asked.stop_sequences or ()
        if made is None or not asked:
            return None
        rest = self._tokenizer.decode(made.token_ids)[len(made.text) :]
        return next((sequence for sequence in asked if rest.startswith(sequence)), None)


def usage_of(usage: Usage) -> Json:
    """Tokens of the prompt that came from the cache are counted apart."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


class MessageEvents:
    """The events of one streamed message: each block begins, grows and stops before the next."""

    def __init__(self, reply: MessageReply) -> None:
        self._reply = reply
        self._blocks = 0
        self._open = False

    def opening(self, prompt_tokens: int) -> Iterator[Event]:
        """How much of the prompt is cached is not known yet: the last usage says."""
        message = {**self._reply.base(), "usage": usage_of(Usage(prompt_tokens))}
        yield _event("message_start", message=message)
        yield _event("ping")

    def part(self, part: Part) -> Iterator[Event]:
        """What newly arrived."""
        for piece in part.pieces:
            if not self._open:
                yield from self._begin({"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": piece.text})

    def ending(self, answer: Answer) -> Iterator[Event]:
        yield from self._stop()
        delta = self._reply.stop(answer)
        yield _event("message_delta", delta=delta, usage=usage_of(answer.usage), **self._reply.extension(answer))
        yield _event("message_stop")

    def _begin(self, block: Json) -> Iterator[Event]:
        yield from self._stop()
        self._open = True
        yield _event("content_block_start", index=self._blocks, content_block=block)

    def _delta(self, delta: Json) -> Event:
        return _event("content_block_delta", index=self._blocks, delta=delta)

    def _stop(self) -> Iterator[Event]:
        if self._open:
            yield _event("content_block_stop", index=self._blocks)
            self._open = False
            self._blocks += 1


def _event(kind: str, **fields: Any) -> Event:
    return Event({"type": kind, **fields}, kind)
