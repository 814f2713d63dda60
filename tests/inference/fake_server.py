"""A tiny server of the API that misbehaves on demand: each model name is a way to answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.servers.threaded import served

Send = Callable[[Mapping[str, Any]], Awaitable[None]]
ODD = "line\u2028sep \u0085 ü 😀 \x1b[31mred\x0b"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}}
SCORES = {"negative": -2.302585, "positive": -0.105361}


def chunk(text: str = "", reason: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": reason, **fields}
    return {"choices": [choice]}


def error(message: str, code: str = "x", param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "t", "param": param, "code": code}}


WHOLE = (
    chunk("Hel"),
    chunk("lo"),
    chunk(reason="stop"),
    {"choices": [], "usage": USAGE, "bedplate": {"cost_usd": 0.5}},
)


@dataclass
class Fake:
    """requests: the bodies of chats in their order, with the authorization header under "key"."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    times: list[float] = field(default_factory=list[float])
    disconnected: threading.Event = field(default_factory=threading.Event)
    models: list[str] = field(
        default_factory=lambda: ["ok", "echo", "label", "pair", "slow", "full", "long", "odd", "broken", "busy-once"]
    )

    async def __call__(self, scope: Mapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        if scope["path"] == "/v1/models":
            facts = {"label": {"inputs": ["review"]}, "pair": {"inputs": ["question", "answer"]}}
            data = [{"id": name, "bedplate": facts.get(name, {"kind": "base"})} for name in self.models]
            await self._json(send, 200, {"data": data})
            return
        content = b""
        while True:
            message = await receive()
            content += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        body = json.loads(content)
        self.requests.append({**body, "key": headers.get("authorization")})
        self.times.append(time.monotonic())
        await self._answer(body["model"], body, send, receive)

    async def _answer(self, model: str, body: dict[str, Any], send: Send, receive: Any) -> None:
        if model == "busy" or (model == "busy-once" and len(self.times) < 2):
            await self._json(send, 503, error("queue full"), {"retry-after": "0.2"})
        elif model == "busy-long":
            await self._json(send, 429, error("quota"), {"retry-after": "3600"})
        elif model == "html":
            await self._raw(send, 500, "text/html", b"<h1>oops</h1>")
        elif model == "failed":
            await self._json(send, 500, error("the engine tripped", "internal_error"))
        elif model == "refused":
            await self._json(send, 400, error("temperature: too hot", "invalid_value", "temperature"))
        elif model == "full":
            await self._json(send, 400, error("9 tokens do not fit 8", "context_length_exceeded", "messages"))
        elif model == "none":
            await self._json(send, 404, error("no model 'none'", "model_not_found", "model"))
        elif model == "secret":
            await self._json(send, 401, error("no key", "invalid_api_key"))
        elif model == "garbage":
            await self._raw(send, 200, "text/event-stream", b"data: {not json\n\n")
        elif model == "unfinished":
            await self._events(send, (chunk("Hel"),))
        elif model == "stumbles":
            await self._events(send, (chunk("Hel"), error("the engine tripped")))
        elif model == "broken":
            await self._start(send)
            await self._event(send, chunk("Hel"))
            await asyncio.sleep(0.05)
            raise RuntimeError("the connection breaks")
        elif model == "silent":
            await asyncio.sleep(20)
        elif model == "slow":
            await self._slowly(send, receive)
        else:
            await self._events(send, self._content(model, body))

    def _content(self, model: str, body: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        prompt = body["messages"][-1]["content"]
        texts = {"echo": json.dumps(body["messages"]), "odd": ODD, "pair": prompt}
        if model == "label":
            fields = {"bedplate": {"label": "positive", "scores": SCORES}}
            return (chunk("positive"), chunk(reason="stop", **fields), *WHOLE[3:])
        if model == "long":
            return (chunk("too long"), chunk(reason="length"), *WHOLE[3:])
        return WHOLE if model not in texts else (chunk(texts[model]), *WHOLE[2:])

    async def _slowly(self, send: Send, receive: Any) -> None:
        await self._start(send)
        leaves = asyncio.ensure_future(receive())
        for number in range(400):
            if leaves.done():
                self.disconnected.set()
                return
            await self._event(send, chunk(f"word{number} "))
            await asyncio.sleep(0.05)

    async def _events(self, send: Send, events: tuple[dict[str, Any], ...]) -> None:
        await self._start(send)
        for event in events:
            await self._event(send, event)
        if "error" not in events[-1] and len(events) > 1:
            await send({"type": "http.response.body", "body": b"data: [DONE]\r\n\r\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _start(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})

    async def _event(self, send: Send, content: dict[str, Any]) -> None:
        """In two writes, cut within a character where there is one of several bytes; with a comment and CR LF."""
        data = b": hi\r\n\r\ndata: " + json.dumps(content, ensure_ascii=False).encode() + b"\r\n\r\n"
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            await send({"type": "http.response.body", "body": part, "more_body": True})

    async def _json(self, send: Send, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
        await self._raw(send, status, "application/json", json.dumps(content).encode(), headers)

    async def _raw(
        self, send: Send, status: int, content_type: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        extra_headers = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", content_type.encode()), *extra_headers],
            }
        )
        await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def fake_server(fake: Fake | None = None) -> Iterator[Fake]:
    """The server, running in a thread."""
    fake = Fake() if fake is None else fake
    with served(fake, lifespan="off") as port:
        fake.url = f"http://127.0.0.1:{port}"
        yield fake
