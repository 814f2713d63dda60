"""A fake remote model that reads reviews: what it answers, or how it fails, is its model's name."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.inference.fake_server import Fake, Send, error

GOOD = ("great", "works", "well")


def is_good(review: str) -> bool:
    return any(word in review for word in GOOD)


@dataclass
class Labeller(Fake):
    """Answers "positive" to a review with a good word in it, "negative" otherwise. failing: how many requests are
    answered 500 or 429 before that ("flaky", "limited"), or before it dies ("dies"), or must be there before the first
    is answered ("crowd")."""

    failing: int = 2
    refused: int = 0
    ended: str = "stop"
    answer: Callable[[str], str] = field(
        default=lambda review: "positive" if any(g in review for g in GOOD) else "negative"
    )
    sure: Callable[[str], float] = field(default=lambda _: 0.8)
    """Probability of the answer's first token; the other label's is 0.1."""

    async def _answer(self, model: str, body: dict[str, Any], send: Send, receive: Any) -> None:
        if model == "flaky" and self.refused < self.failing:
            self.refused += 1
            await self._json(send, 500, error("tripped", "internal_error"))
        elif model == "limited" and self.refused < self.failing:
            self.refused += 1
            await self._json(send, 429, error("slow down", "rate_limit_exceeded"), {"retry-after": "0.05"})
        elif model == "dies" and len(self.requests) > self.failing:
            await self._json(send, 500, error("gone for good", "internal_error"))
        elif model == "unauthorised":
            await self._json(send, 401, error("no such key", "invalid_api_key"))
        elif model == "crowd":
            while len(self.requests) < self.failing:
                await asyncio.sleep(0.01)
            await self._json(send, 200, self._whole(self.answer(self._prompt(body)), body))
        elif model == "hangs":
            await asyncio.sleep(20)
        elif model == "prudish" and "terrible" in self._prompt(body):
            await self._json(send, 400, error("not about that", "content_filter"))
        elif model == "plain" and "logprobs" in body:
            await self._json(send, 400, error("logprobs are not offered", "unsupported_parameter", "logprobs"))
        elif model == "modern" and "max_tokens" in body:
            message = "use max_completion_tokens instead"
            await self._json(send, 400, error(message, "unsupported_parameter", "max_tokens"))
        elif model == "nonsense":
            await self._json(send, 200, self._whole("I would rather talk about the weather.", body))
        elif model == "page":
            await self._raw(send, 200, "text/html", b"<h1>welcome</h1>")
        else:
            await self._json(send, 200, self._whole(self.answer(self._prompt(body)), body))

    @staticmethod
    def _prompt(body: dict[str, Any]) -> str:
        return str(body["messages"][-1]["content"])

    def _whole(self, text: str, body: dict[str, Any]) -> dict[str, Any]:
        words = sum(len(message["content"].split()) for message in body["messages"])
        usage = {
            "prompt_tokens": 2 * words,
            "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": words},
        }
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": self.ended,
        }
        if body.get("logprobs"):
            opposite = "negative" if text == "positive" else "positive"
            top = [
                {"token": text, "logprob": math.log(self.sure(self._prompt(body)))},
                {"token": opposite[:3].title(), "logprob": math.log(0.1)},
                {"token": "The", "logprob": math.log(0.05)},
            ]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        return {"id": "x", "choices": [choice], "usage": usage}


def of_json(review: str) -> str:
    """An answer for a JSON task."""
    return json.dumps({"good": is_good(review)})
