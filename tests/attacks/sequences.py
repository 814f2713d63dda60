"""A hostile tenant whose requests are harmless one by one: sequences over all routes, drawn from a seed.

A sequence is a long prompt and then many short ones, uploads that are left open, batches that are made, cancelled and
deleted, feedback that is given and withdrawn, and so on. Between them come single requests as `Besieger` draws them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from tests.tiny import NATIVE_SHAPE

from bedplate.serving.request.preparation import BODIES, HELD_BODIES

from .crowd import Scenario
from .firing import Manner, Outcome, Shot
from .siege import BODY_BYTES, SETTINGS, Besieger

CHAT, EMBEDDINGS, FILES, BATCHES, FEEDBACK = (
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/files",
    "/v1/batches",
    "/v1/feedback",
)
CONTEXT = 8192
"""Tokens of the base that such a server has."""
Json = Mapping[str, Any]


def chat(text: str, **fields: Any) -> Json:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}


class SequenceBesieger(Besieger):
    """One that mostly sends sequences. Each request of a sequence is checked and counted as a shot is."""

    async def _fire_shot(self, number: int) -> None:
        draw = random.Random(f"{self._seed}/{number}")
        if number % 2:
            await super()._fire_shot(number // 2)
        else:
            await draw.choice(SEQUENCES)(self, draw)

    async def ask(
        self,
        draw: random.Random,
        method: str,
        path: str,
        body: Json | bytes | None = None,
        manner: Manner = "whole",
    ) -> Outcome:
        content_type = ("content-type", "multipart/form-data; boundary=b" if isinstance(body, bytes) else JSON_TYPE)
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        headers = [*self._identity, *([] if body is None else [content_type])]
        shot = Shot(method, path, headers, content, manner)
        return await self.send(shot, draw, f"{method} {path}", 0)

    @property
    def _identity(self) -> list[tuple[str, str]]:
        secret = next(iter(self._secrets.values()))
        return [("host", f"{self._host}:{self._port}"), ("authorization", f"Bearer {secret}")]

    async def post(self, draw: random.Random, path: str, body: Json | bytes) -> Json:
        """The object of an answer; {} where there is none."""
        outcome = await self.ask(draw, "POST", path, body)
        with contextlib.suppress(ValueError):
            answer = json.loads(outcome.body)
            return answer if isinstance(answer, dict) else {}
        return {}

    async def at_once(self, count: int, work: Callable[[int], Awaitable[object]]) -> None:
        await asyncio.gather(*(work(number) for number in range(count)))

    async def left_open(self, draw: random.Random, count: int, head: bytes) -> None:
        """So many connections that have sent the beginning of a request, for a while."""
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(count):
                with contextlib.suppress(ConnectionError):
                    _, writer = await asyncio.open_connection(self._host, self._port)
                    stack.callback(writer.transport.abort)
                    writer.write(head)
            await asyncio.sleep(draw.uniform(0.5, 5.0))

    def head(self, path: str, length: int, content_type: str) -> bytes:
        headers = [*self._identity, ("content-length", str(length)), ("content-type", content_type)]
        return "\r\n".join([f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]).encode()

    async def upload(self, draw: random.Random, lines: Sequence[str]) -> str:
        """The id of a new file of these lines; "" where it was refused."""
        content = "\n".join(lines).encode()
        part = b'--b\r\ncontent-disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
        form = part % (b"purpose", b"", b"batch") + part % (b"file", b'; filename="x"', content) + b"--b--\r\n"
        return (await self.post(draw, FILES, form)).get("id", "")

    async def begin_batch(self, draw: random.Random, lines: Sequence[str]) -> tuple[str, str]:
        file = await self.upload(draw, lines)
        fields = {"input_file_id": file or "file-0", "endpoint": CHAT, "completion_window": "24h"}
        return file, (await self.post(draw, BATCHES, fields)).get("id", "")


JSON_TYPE = "application/json"


def _line(number: int, body: Any) -> str:
    return json.dumps({"custom_id": str(number), "method": "POST", "url": CHAT, "body": body})


async def _long_then_short(by: SequenceBesieger, draw: random.Random) -> None:
    """One prompt of the whole context, then many of one token."""
    path = draw.choice((EMBEDDINGS, "/v1/completions"))
    long = "ü " * (CONTEXT // draw.choice((4, 6, 8)))
    field = "input" if path == EMBEDDINGS else "prompt"
    await by.post(draw, path, {"model": "tiny", field: long, **({} if path == EMBEDDINGS else {"max_tokens": 1})})
    await by.at_once(draw.choice((16, 64, 256)), lambda _: by.post(draw, EMBEDDINGS, {"model": "tiny", "input": "a"}))


async def _long_beside_short(by: SequenceBesieger, draw: random.Random) -> None:
    """Generations behind prompts of very different lengths."""
    lengths = [draw.choice((1, 10, 100, 1000)) for _ in range(24)]
    await by.at_once(
        24, lambda i: by.post(draw, CHAT, chat(f"{i} " + "a " * lengths[i], max_tokens=lengths[i] // 2 + 1))
    )


async def _many_inputs(by: SequenceBesieger, draw: random.Random) -> None:
    texts = ["a " * draw.choice((1, 5, 50)) for _ in range(draw.choice((8, 64, 200)))]
    await by.post(draw, EMBEDDINGS, {"model": "tiny", "input": texts})
    await by.post(draw, "/rerank", {"model": "tiny", "query": "a", "documents": texts})
    await by.post(draw, "/classify", {"model": "probed", "input": texts})


async def _open_uploads(by: SequenceBesieger, draw: random.Random) -> None:
    part = b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
    content = part + b"a" * draw.choice((0, 0, 60_000, 500_000))
    await by.left_open(draw, 40, by.head(FILES, 900_000, "multipart/form-data; boundary=b") + content)


async def _open_bodies(by: SequenceBesieger, draw: random.Random) -> None:
    content = b'{"model": "tiny", "messages": [' + b" " * draw.choice((0, 1000, 100_000))
    await by.left_open(draw, 40, by.head(CHAT, 200_000, JSON_TYPE) + content)


async def _batch_and_delete(by: SequenceBesieger, draw: random.Random) -> None:
    """A batch of good rows, looked at, cancelled or not, and its files deleted while it runs."""
    lines = [_line(i, chat(f"row {i}", max_tokens=draw.choice((1, 30)))) for i in range(draw.choice((5, 100)))]
    file, batch = await by.begin_batch(draw, lines)
    await asyncio.sleep(draw.random())
    await by.ask(draw, "GET", f"{BATCHES}/{batch or 'batch_0'}")
    if draw.random() < 0.7:
        await by.post(draw, f"{BATCHES}/{batch or 'batch_0'}/cancel", {})
    await by.ask(draw, "GET", f"{FILES}/{file or 'file-0'}/content")
    await by.ask(draw, "DELETE", f"{FILES}/{file or 'file-0'}")


async def _bad_batches(by: SequenceBesieger, draw: random.Random) -> None:
    """Files of rows with large errors, each as several batches, and what is kept of them listed."""
    key = "k" * draw.choice((10, 16_000))
    file = await by.upload(draw, [_line(i, {**chat("a"), key: 1}) for i in range(draw.choice((20, 60)))])
    fields = {"input_file_id": file or "file-0", "endpoint": CHAT, "completion_window": "24h"}
    await by.at_once(draw.choice((1, 10, 30)), lambda _: by.post(draw, BATCHES, fields))
    await by.at_once(3, lambda _: by.ask(draw, "GET", f"{BATCHES}?limit=100"))
    await by.ask(draw, "DELETE", f"{FILES}/{file or 'file-0'}")


async def _feedback(by: SequenceBesieger, draw: random.Random) -> None:
    """Answers that are judged, some again and again, and withdrawn, all at once."""
    ids: list[str] = []

    async def ask(number: int) -> None:
        id_ = (await by.post(draw, CHAT, chat(f"what {number}", max_tokens=1))).get("id")
        if id_ is not None:
            ids.append(id_)
            for score in range(draw.choice((1, 5))):
                await by.post(draw, FEEDBACK, {"id": id_, "rating": ("good", "bad")[score % 2]})

    await by.at_once(16, ask)
    await by.at_once(len(ids), lambda i: by.ask(draw, "DELETE", f"{FEEDBACK}/{ids[i]}"))


async def _responses(by: SequenceBesieger, draw: random.Random) -> None:
    """A conversation that grows, and is deleted from its middle."""
    ids: list[str] = []
    for turn in range(draw.choice((2, 10))):
        body: dict[str, Any] = {"model": "tiny", "input": f"turn {turn} " + "a " * 50, "max_output_tokens": 4}
        id_ = (await by.post(draw, "/v1/responses", body | ({"previous_response_id": ids[-1]} if ids else {}))).get(
            "id"
        )
        ids += [] if id_ is None else [id_]
    draw.shuffle(ids)
    for id_ in ids:
        await by.ask(draw, "GET", f"/v1/responses/{id_}/input_items")
        await by.ask(draw, "DELETE", f"/v1/responses/{id_}")


async def _left_streams(by: SequenceBesieger, draw: random.Random) -> None:
    """Long generations that are streamed, and left soon after they have begun."""
    body = chat("go on", max_tokens=2000, stream=True, ignore_eos=True)
    await by.at_once(8, lambda _: by.ask(draw, "POST", CHAT, body, "slow"))


async def _large_replies(by: SequenceBesieger, draw: random.Random) -> None:
    fields = {"n": 8, "max_tokens": 64, "logprobs": True, "top_logprobs": 20, "ignore_eos": True}
    await by.at_once(draw.choice((1, 8)), lambda _: by.post(draw, CHAT, chat("all", **fields)))
    await by.at_once(4, lambda _: by.post(draw, "/tokenize", {"model": "tiny", "prompt": "a b " * 20_000}))


async def _skins_in_turn(by: SequenceBesieger, draw: random.Random) -> None:
    """Skins that come and go, behind one prompt each."""
    names = ("prompted", "tuned", "probed", "writer", "pair", "several", "worded", "nobody")
    for _ in range(draw.choice((1, 4))):
        await by.at_once(16, lambda i: by.post(draw, CHAT, chat(f"{i % 3}", model=names[i % len(names)])))


async def _grammars(by: SequenceBesieger, draw: random.Random) -> None:
    """A new grammar for each answer."""
    words = [f"w{draw.randrange(10**6)}" for _ in range(16)]
    await by.at_once(16, lambda i: by.post(draw, CHAT, chat("say", max_tokens=16, guided_choice=[words[i], "é🙂"])))


SEQUENCES: tuple[Callable[[SequenceBesieger, random.Random], Awaitable[None]], ...] = (
    _long_then_short,
    _long_beside_short,
    _many_inputs,
    _open_uploads,
    _open_bodies,
    _batch_and_delete,
    _bad_batches,
    _feedback,
    _responses,
    _left_streams,
    _large_replies,
    _skins_in_turn,
    _grammars,
)


LIMITS = {**SETTINGS["limits"], "slot_bytes": 128 * 2**20, "cache_bytes": 32 * 2**20}
ENCODING = 200
"""Bytes that a byte of a text may take while it is encoded (docs/operations.md)."""
REPLY_BYTES, NOISE_BYTES = 64 * 2**20, 64 * 2**20
"""What replies that wait may take, and what allocators keep for themselves."""


def most_memory(limits: Mapping[str, int] = LIMITS) -> int:
    """Bytes that requests may take in all, by what the server's file says."""
    kept = sum(limits[name] for name in ("slot_bytes", "cache_bytes", "prefix_bytes"))
    kept += SETTINGS["responses"]["bytes_in_all"] + REPLY_BYTES
    return kept + BODY_BYTES * (HELD_BODIES + ENCODING * BODIES) + NOISE_BYTES


def sequences(tenants: int = 7) -> Scenario:
    """Honest tenants beside one that sends sequences, at a server of a base that takes long prompts."""
    feedback = {"keep": {"*": {"requests": True, "replies": True}}}
    spec = {**NATIVE_SHAPE, "context_length": CONTEXT, "kv_heads": 4, "head_dim": 64}
    return Scenario(SequenceBesieger, tenants, {**SETTINGS, "limits": LIMITS, "feedback": feedback}, spec)
