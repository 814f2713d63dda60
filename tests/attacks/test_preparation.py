"""What strangers' texts take of memory, threads and the event loop is bounded, and shared between tenants."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serving.conftest import Server

from bedplate.serving.request.preparation import BODIES, THREADS, WAITING_BODIES, Preparation
from bedplate.serving.schemas import strict_json
from bedplate.serving.schemas.http_errors import LimitError
from bedplate.serving.schemas.strict_json import Rows, dump_in_pieces, dump_json

from .conftest import at_once, attacked, head

BODY = 1000


class Blocker:
    """Work that lasts until it is let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go = threading.Event()

    def work(self, name: str) -> Callable[[], str]:
        def blocked() -> str:
            self.begun.append(name)
            assert self.go.wait(20)
            return name

        return blocked

    async def count(self, expected: int) -> int:
        end = time.monotonic() + 5
        while len(self.begun) < expected and time.monotonic() < end:
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.02)
        return len(self.begun)


async def at_rest(turns: Preparation) -> bool:
    """Whether all places are given back, as soon as the threads have said that they are done."""
    end = time.monotonic() + 5
    while turns.under_way and time.monotonic() < end:
        await asyncio.sleep(0.002)
    return turns.under_way == 0


def test_one_tenant_has_half_of_the_threads_and_bytes_and_others_do_not_wait_for_it():
    async def attack(size: int, max_running: int) -> None:
        blocker, turns = Blocker(), Preparation(BODY)
        tasks = [asyncio.create_task(turns.run("them", size, blocker.work("them"))) for _ in range(WAITING_BODIES)]
        assert await blocker.count(max_running) == max_running
        ours = asyncio.create_task(turns.run("us", size, blocker.work("us")))
        assert await blocker.count(max_running + 1) == max_running + 1
        assert blocker.begun[-1] == "us"
        blocker.go.set()
        assert await asyncio.gather(ours, *tasks) == ["us"] + ["them"] * WAITING_BODIES
        assert turns.under_way == 0

    asyncio.run(attack(1, THREADS // 2))
    asyncio.run(attack(BODY, BODIES // 2))


def test_threads_are_divided_by_all_who_have_asked_lately():
    """One tenant had half of them, and the interpreter went round all of them before it came to the event loop."""

    async def attack() -> None:
        blocker, turns = Blocker(), Preparation(BODY, tenants=lambda: 7)
        tasks = [asyncio.create_task(turns.run("them", 1, blocker.work("them"))) for _ in range(THREADS)]
        part = THREADS // 8
        assert await blocker.count(part) == part
        ours = asyncio.create_task(turns.run("us", 1, blocker.work("us")))
        assert await blocker.count(part + 1) == part + 1
        blocker.go.set()
        await asyncio.gather(ours, *tasks)

    asyncio.run(attack())


def test_what_waits_of_one_tenant_is_bounded():
    async def attack() -> None:
        blocker, turns = Blocker(), Preparation(BODY)
        tasks = [
            asyncio.create_task(turns.run("them", BODY, blocker.work("them")))
            for _ in range(WAITING_BODIES + BODIES // 2)
        ]
        await blocker.count(BODIES // 2)
        with pytest.raises(LimitError):
            await turns.run("them", BODY, blocker.work("them"))
        ours = asyncio.create_task(turns.run("us", BODY, blocker.work("us")))
        blocker.go.set()
        await asyncio.gather(ours, *tasks)

    asyncio.run(attack())


def test_work_whose_caller_has_left_counts_until_it_ends():
    async def attack() -> None:
        blocker, turns = Blocker(), Preparation(BODY)
        leaving = [asyncio.create_task(turns.run("them", BODY, blocker.work("them"))) for _ in range(BODIES)]
        await blocker.count(BODIES // 2)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        assert turns.under_way == BODIES // 2
        later = asyncio.create_task(turns.run("them", BODY, blocker.work("later")))
        assert await blocker.count(BODIES // 2) == BODIES // 2  # those that waited have gone
        blocker.go.set()
        assert await later == "later"
        assert await at_rest(turns)

    asyncio.run(attack())


def test_one_that_leaves_in_the_moment_of_its_turn_takes_no_place_with_it():
    async def attack() -> None:
        blocker, turns = Blocker(), Preparation(BODY)
        max_running = THREADS // 2
        tasks = [asyncio.create_task(turns.run("them", 1, blocker.work("them"))) for _ in range(max_running + 3)]
        await blocker.count(max_running)
        blocker.go.set()
        time.sleep(0.1)  # the loop is kept: that places are free is already waiting to be told when these leave
        for task in tasks[max_running:]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[:max_running] == ["them"] * max_running
        assert all(isinstance(result, asyncio.CancelledError) for result in results[max_running:])
        assert await at_rest(turns)

    asyncio.run(attack())


def test_what_was_computed_already_is_not_refused():
    async def attack() -> None:
        blocker, turns = Blocker(), Preparation(BODY)
        full = WAITING_BODIES + BODIES // 2
        tasks = [asyncio.create_task(turns.run("them", BODY, blocker.work("them"))) for _ in range(full)]
        await blocker.count(BODIES // 2)
        with pytest.raises(LimitError):
            await turns.run("them", BODY, blocker.work("them"))
        reply = asyncio.create_task(turns.run("them", BODY, blocker.work("reply"), refused=False))
        await asyncio.sleep(0)
        blocker.go.set()
        assert await reply == "reply"
        await asyncio.gather(*tasks)

    asyncio.run(attack())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON, st.integers(0, 3), st.integers(1, 4))
def test_json_in_pieces_is_the_same_json(value, levels, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_json, "PIECE", piece)
        assert b"".join(dump_in_pieces(value, levels)) == dump_json(value)


@given(st.lists(JSON), st.integers(0, 3))
def test_rows_that_are_made_while_they_are_written_are_an_array(values, levels):
    rows = {"rows": Rows(lambda: (value for value in values))}
    assert b"".join(dump_in_pieces(rows, levels)) == dump_json(rows) == dump_json({"rows": values})


def test_a_row_is_gone_before_the_next_is_made():
    alive = 0

    class Row(dict[str, int]):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def rows() -> Iterator[Row]:
        nonlocal alive
        for number in range(3):
            assert not alive
            alive += 1
            yield Row(number=number)

    assert b"".join(dump_in_pieces([Rows(rows)])) == b'[[{"number":0},{"number":1},{"number":2}]]'


def test_no_piece_of_a_long_list_is_long():
    for levels in (1, 5):
        pieces = dump_in_pieces({"tokens": list(range(100_000))}, levels)
        assert max(map(len, pieces)) < 7 * strict_json.PIECE


def test_large_bodies_of_one_tenant_are_worked_on_a_few_at_a_time(files, tmp_path, monkeypatch):
    """Eight large texts at once: never more than its part of them in work, and a probe is answered meanwhile."""
    with attacked(files, tmp_path, body_bytes=64 * 1024) as target:
        crowd(target, monkeypatch)


def crowd(target: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    peak, running, lock, answered = [0], [0], threading.Lock(), threading.Event()
    from bedplate.serving.api import tokens

    original = tokens._tokens

    def counted(*arguments: Any) -> list[int]:
        with lock:
            running[0] += 1
            peak[0] = max(peak[0], running[0])
        try:
            assert answered.wait(20)  # what is asked beside them does not wait for them
            return original(*arguments)
        finally:
            with lock:
                running[0] -= 1

    monkeypatch.setattr(tokens, "_tokens", counted)
    limit = target.state.config.limits.body_bytes
    body = json.dumps({"model": "tiny", "prompt": "a b " * (limit // 5)}).encode()

    def call(i: int) -> httpx.Response:
        if i:
            return target.post("/tokenize", content=body, headers=head("them"))
        end = time.monotonic() + 10
        while running[0] < BODIES // 2 and time.monotonic() < end:
            time.sleep(0.002)
        with httpx.Client(trust_env=False, timeout=30) as client:
            reply = client.get(target.url + "/health")
        answered.set()
        return reply

    replies = at_once(8, call)
    assert peak[0] == BODIES // 2
    assert replies[0].status_code == 200
    assert {reply.status_code for reply in replies[1:]} <= {200, 429}
    assert 200 in {reply.status_code for reply in replies[1:]}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize"])
def test_large_bodies_are_read_beside_the_loop(target, monkeypatch, path):
    from bedplate.serving.request import lifecycle

    threads: list[str] = []
    for name in ("parse_object", "read_fields"):
        original = getattr(lifecycle, name)

        def recorded(*arguments: Any, original: Any = original) -> Any:
            threads.append(threading.current_thread().name)
            return original(*arguments)

        monkeypatch.setattr(lifecycle, name, recorded)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}] * 2000, "prompt": "x" * 50_000}
    fields_by_path = {"/v1/chat/completions": ("model", "messages"), "/v1/completions": ("model", "prompt")}
    target.post(
        path, json={name: body[name] for name in fields_by_path.get(path, ("model", "prompt"))}, headers=head("them")
    )
    assert len(threads) == 2
    assert all(name.startswith("bedplate-preparing") for name in threads)


def test_other_threads_run_while_a_long_text_is_encoded(target):
    """Counted, not timed: how often another thread comes to its turn meanwhile."""
    tokenizer, text = target.tokenizer, "a " * 100_000
    whole = tokenizer._backend.encode(text, add_special_tokens=False).ids
    encodings: list[list[int]] = []
    encoding, turns = threading.Thread(target=lambda: encodings.append(tokenizer.encode(text))), 0
    encoding.start()
    while encoding.is_alive():
        time.sleep(0.001)
        turns += 1
    assert encodings == [whole]
    assert turns > 10
