"""A live server under mixed traffic: every answer is the one its request gets alone, and memory stays flat."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file
from tests.serving.conftest import make_skins
from tests.serving.process import Process, serving
from tests.tiny import NATIVE_SHAPE, write_tiny_base

from bedplate.core.files import sha256_file
from bedplate.models.checkpoints.base import load_base
from bedplate.skins.files import write_skin

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
WORKERS = 6
LIMITS = {"max_rows": 8, "max_waiting": 64, "adapters": 4, "prompt_skins": 4}
TEXTS = (
    "this product is great",
    "it broke after a day",
    "the answer is yes or no",
    "terrible <|im_end|> works",
    "ü 😀",
)


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def calls() -> list[tuple[str, dict[str, Any]]]:
    """Greedy requests of every kind that is asked over and over."""
    requests: list[tuple[str, dict[str, Any]]] = []
    for text in TEXTS:
        plain = {"model": "tiny", "messages": messages(text), "max_tokens": 24, "temperature": 0}
        requests += [
            (CHAT, plain),
            (CHAT, {**plain, "stream": True}),
            (CHAT, {**plain, "guided_regex": "[a-z]{3,9} [0-9]{2}"}),
            (CHAT, {**plain, "guided_json": {"type": "object", "properties": {"a": {"type": "boolean"}}}, "n": 2}),
            (COMPLETIONS, {"model": "tiny", "prompt": text, "max_tokens": 16, "temperature": 0, "logprobs": 2}),
            *((CHAT, {"model": skin, "messages": messages(text)}) for skin in ("prompted", "tuned", "probed")),
            (CHAT, {"model": "writer", "messages": messages(text), "temperature": 0}),
            (CHAT, {"model": "writer", "messages": messages(text), "temperature": 0, "stream": True}),
            (EMBEDDINGS, {"model": "tiny", "input": [text, text[::-1]]}),
        ]
    return requests


MALFORMED = (
    b"",
    b"{",
    b'{"model": NaN}',
    b"[" * 5000,
    b'{"model": "tiny", "messages": []}',
    b'{"model": "tiny"}',
)


def reply_content(reply: httpx.Response) -> Any:
    """What a reply says, without ids, times and counts of what was cached."""
    assert reply.status_code == 200, reply.text
    if reply.headers["content-type"].startswith("text/event-stream"):
        lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
        assert lines[-1] == "[DONE]", reply.text
        choices = [json.loads(line)["choices"] for line in lines[:-1]]
        return "".join(choice["delta"].get("content") or "" for event_choices in choices for choice in event_choices)
    body = reply.json()
    if "choices" in body:
        return [{key: value for key, value in choice.items() if key != "usage"} for choice in body["choices"]]
    return [record["embedding"] for record in body["data"]]


def nearly_equal(a: Any, b: Any) -> bool:
    """Equal, but for the last bits of numbers: sums in batches of different sizes."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(nearly_equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(nearly_equal, a, b))
    return a == (pytest.approx(b, rel=1e-2, abs=1e-4) if isinstance(b, float) else b)


MOVING = {"model": "moving", "messages": messages(TEXTS[0])}
"""Asks the skin that is replaced and unloaded all the time."""


class Soak:
    """The traffic of one run, and what was wrong about its answers."""

    def __init__(self, live: Process, seconds: float) -> None:
        self.live, self.seconds = live, seconds
        self.calls = calls()
        self.counts: Counter[str] = Counter()
        self.wrong: list[Any] = []
        self.rss: list[tuple[float, int]] = []
        self.swapped: dict[str, Any] = {}

    def alone(self) -> None:
        """Asks everything once, one at a time."""
        self.expected = [reply_content(self.live.request("POST", path, json=body)) for path, body in self.calls]
        for source in ("first", "second"):
            assert self.publish(source) in {200, 201}
            self.swapped[source] = reply_content(self.live.request("POST", CHAT, json=MOVING))
        assert not nearly_equal(self.swapped["first"], self.swapped["second"])

    def publish(self, source: str) -> int:
        body = {"source": source, "name": "moving", "replace": True}
        return self.live.request("POST", "/admin/skins", "admin", json=body).status_code

    async def run(self) -> None:
        self.begin = time.monotonic()
        async with httpx.AsyncClient(trust_env=False, timeout=60, base_url=self.live.url) as client:
            self.client = client
            background = (self.swap, self.vanish, self.malformed, self.batch, self.watch)
            async with asyncio.TaskGroup() as group:
                for number in range(WORKERS):
                    group.create_task(self.repeat(self.send_request, random.Random(number)))
                for number, work in enumerate(background):
                    group.create_task(self.repeat(work, random.Random(100 + number)))

    async def repeat(self, work: Callable[[random.Random], Awaitable[None]], draw: random.Random) -> None:
        while time.monotonic() < self.begin + self.seconds:
            await work(draw)

    async def post(self, path: str, draw: random.Random, **options: Any) -> httpx.Response:
        return await self.client.post(path, headers=self.live.head(draw.choice(("one", "two"))), **options)

    async def send_request(self, draw: random.Random) -> None:
        if draw.random() < 0.1:
            reply = await self.post(CHAT, draw, json=MOVING)
            good = reply.status_code == 404 or any(
                nearly_equal(reply_content(reply), answer) for answer in self.swapped.values()
            )
            self.record("moving", good, reply.text)
            return
        number = draw.randrange(len(self.calls))
        path, body = self.calls[number]
        content = reply_content(await self.post(path, draw, json=body))
        self.record(path, nearly_equal(content, self.expected[number]), (body, content, self.expected[number]))

    def record(self, category: str, good: bool, detail: Any) -> None:
        self.counts[category] += 1
        if not good:
            self.wrong.append((category, detail))

    async def swap(self, draw: random.Random) -> None:
        head = self.live.head("admin")
        if draw.random() < 0.25:
            reply = await self.client.delete("/admin/skins/moving", headers=head)
            good = reply.status_code in {200, 404}
        else:
            body = {"source": draw.choice(("first", "second")), "name": "moving", "replace": True}
            reply = await self.client.post("/admin/skins", json=body, headers=head)
            good = reply.status_code in {200, 201}
        self.record("swap", good, reply.text)
        await asyncio.sleep(0.15)

    async def vanish(self, draw: random.Random) -> None:
        body = {"model": "tiny", "messages": messages("hi"), "max_tokens": 400, "ignore_eos": True, "stream": True}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(draw.random() * 0.2):
                await self.post(CHAT, draw, json=body | {"stream": draw.random() < 0.5})
        self.counts["vanish"] += 1
        await asyncio.sleep(0.2)

    async def malformed(self, draw: random.Random) -> None:
        reply = await self.post(CHAT, draw, content=draw.choice(MALFORMED))
        self.record("malformed", reply.status_code == 400 and "error" in reply.json(), reply.text)
        await asyncio.sleep(0.05)

    async def batch(self, draw: random.Random) -> None:
        """Rows of one tenant, done beside everything else: each once, and as asked directly."""
        head = self.live.head("one")
        numbers = [n for n, (path, body) in enumerate(self.calls) if path == CHAT and "stream" not in body]
        chosen = draw.sample(numbers, 6)
        rows = [{"custom_id": str(n), "method": "POST", "url": CHAT, "body": self.calls[n][1]} for n in chosen]
        content = "\n".join(map(json.dumps, rows)).encode()
        sent = await self.client.post(
            "/v1/files", headers=head, files={"file": ("rows.jsonl", content)}, data={"purpose": "batch"}
        )
        fields = {"input_file_id": sent.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
        job = (await self.client.post("/v1/batches", headers=head, json=fields)).json()
        end = time.monotonic() + 60
        while job["status"] not in {"completed", "failed", "cancelled", "expired"}:
            assert time.monotonic() < end, job
            await asyncio.sleep(0.1)
            job = (await self.client.get(f"/v1/batches/{job['id']}", headers=head)).json()
        self.record("batch", job["status"] == "completed" and job["request_counts"]["completed"] == 6, job)
        output = await self.client.get(f"/v1/files/{job['output_file_id']}/content", headers=head)
        answered = {row["custom_id"]: row["response"]["body"] for row in map(json.loads, output.text.splitlines())}
        self.record("batch", answered.keys() == {str(n) for n in chosen}, answered.keys())
        for n in chosen:
            self.record("row", nearly_equal(answered[str(n)]["choices"], self.expected[n]), (n, answered[str(n)]))
        for name in (job["input_file_id"], job["output_file_id"]):
            assert (await self.client.delete(f"/v1/files/{name}", headers=head)).status_code == 200
        await asyncio.sleep(0.5)

    async def watch(self, draw: random.Random) -> None:
        self.rss.append((time.monotonic() - self.begin, self.live.rss()))
        await asyncio.sleep(0.2)

    def growth(self) -> float:
        """Resident memory of the second half over the first half's, after the warm-up (the first 40%, at most 60 s)."""
        warm = min(0.4 * self.seconds, 60.0)
        middle = (warm + self.seconds) / 2
        first = [size for at, size in self.rss if warm <= at < middle]
        second = [size for at, size in self.rss if at >= middle]
        return statistics.median(second) / statistics.median(first)


def negated(source: Path, target: Path) -> None:
    """The skin with other weights."""
    weights = Path(shutil.copytree(source, target)) / "adapter_model.safetensors"
    save_file({name: -3 * value for name, value in load_file(weights).items()}, weights)
    card = json.loads((target / "skin.json").read_text())
    card["files"][weights.name] = sha256_file(weights)
    (target / "skin.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(3.0, id="short"),
        pytest.param(1800.0, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(2400)]),
    ],
)
def test_every_answer_is_that_of_its_request_alone_and_memory_stays_flat(tmp_path: Path, seconds: float) -> None:
    base = write_tiny_base(tmp_path / "tiny", **NATIVE_SHAPE)
    skins = {skin.name: write_skin(skin, tmp_path / skin.name) for skin in make_skins(load_base(base))}
    with serving(base, list(skins.values()), tmp_path, limits=LIMITS) as live:
        shutil.copytree(skins["tuned"], live.shelf / "first")
        negated(skins["tuned"], live.shelf / "second")
        soak = Soak(live, seconds)
        soak.alone()
        asyncio.run(soak.run())
        print(
            dict(soak.counts),
            f"memory {soak.growth():.3f}",
            [size >> 20 for _, size in soak.rss][:: len(soak.rss) // 9],
        )
        assert soak.wrong == []
        assert live.idle()
        assert soak.growth() < 1.05
        categories = {CHAT, COMPLETIONS, EMBEDDINGS, "moving", "swap", "vanish", "malformed", "batch", "row"}
        assert soak.counts.keys() == categories
        assert live.process.poll() is None
