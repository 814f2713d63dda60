"""A tenant that takes far more of the interpreter than the others waits a little before each call, and they do not."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import socket
import time
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.attacks.conftest import attacked, head
from tests.serving.conftest import Files, Server

from bedplate.serving.request import preparation as module
from bedplate.serving.request.preparation import (
    LOOK_SECONDS,
    MAX_BEGUN_PER_ROUND,
    PART,
    REFUSED,
    SECONDS,
    TIMES,
    Door,
    Pacing,
)
from bedplate.serving.schemas.http_errors import LimitError


class Clocks:
    """Seconds that pass, and seconds of processor that the loop's thread uses."""

    def __init__(self) -> None:
        self.wall_time = self.used = 0.0

    def pacing(self) -> Pacing:
        return Pacing(lambda: self.wall_time, lambda: self.used)


usage = st.floats(0.001, 5.0)


@given(usage, st.lists(usage, min_size=1, max_size=6))
def test_who_has_had_more_than_its_part_waits_until_it_has_not(mine: float, rivals: list[float]) -> None:
    clocks = Clocks()
    pacing = clocks.pacing()
    for number, seconds in enumerate(rivals):
        pacing.spent(f"other-{number}", seconds)
    pacing.spent("mine", mine)
    wait = pacing.wait("mine")
    mean = sum(rivals) / len(rivals)
    if mine <= TIMES * mean or mine + sum(rivals) <= PART * SECONDS:
        assert wait == 0.0
    elif mine > max(TIMES * mean, PART) + 0.001:
        assert wait > 0.0
        decayed = mine * math.exp(-wait / SECONDS)
        assert decayed >= TIMES * mean - 1e-6  # nobody is held back below that
        # ... nor below an equal part, what the others leave of theirs included.
        assert decayed >= PART * SECONDS / (len(rivals) + 1) - 1e-5
    clocks.wall_time += 60.0
    pacing.wait("mine")
    pacing.spent("mine", mine)
    assert pacing.wait("mine") == 0.0  # the others have left


def test_equal_tenants_do_not_wait_however_much_they_ask() -> None:
    pacing = Clocks().pacing()
    for name in "abcdefgh":
        pacing.spent(name, 3.0)
    assert not any(pacing.wait(name) for name in "abcdefgh")


def test_what_the_loop_does_for_a_call_is_spent_on_its_tenant_and_thrice_if_it_comes_to_nothing() -> None:
    """Only what came before its first pause was: of a call that is prepared beside the loop, computed, and answered, a
    small part."""
    clocks = Clocks()
    pacing = clocks.pacing()

    async def call(tenant: str, seconds: float, refused: bool) -> None:
        await pacing.turn(tenant)
        for _ in range(4):
            await asyncio.sleep(0)
            clocks.used += seconds / 4
        if refused:
            clocks.used += seconds
            pacing.refused(tenant)

    async def somebody_else() -> None:
        for _ in range(10):
            clocks.used += 100.0
            await asyncio.sleep(0)

    async def calls() -> None:
        answered, refused = (
            pacing.metered(name, call(name, 0.2, name == "refused")) for name in ("answered", "refused")
        )
        await asyncio.gather(answered, refused, somebody_else())

    asyncio.run(calls())
    assert pacing.wait("answered") == 0.0
    wait_time = pacing.wait("refused")
    spent = 0.2 + REFUSED * 0.2 + (REFUSED - 1) * 0.05  # with what the loop did for it in the same moment
    assert wait_time == pytest.approx(SECONDS * math.log(spent / (TIMES * 0.2)))


def test_calls_that_come_at_once_are_paid_ahead() -> None:
    """All of them passed while none had spent anything, and the interpreter was theirs until they had."""
    clocks, seconds = Clocks(), 0.01
    pacing = clocks.pacing()

    async def call() -> None:
        clocks.used += seconds

    async def run() -> int:
        for _ in range(200):
            await pacing.metered("us", call())
        clocks.wall_time += 60.0
        pacing.wait("us")  # what was before is forgotten
        pacing.spent("us", 3 * seconds)
        turns = [asyncio.create_task(pacing.turn("them")) for _ in range(40)]
        for _ in range(200):
            await asyncio.sleep(0)
        passed = [turn for turn in turns if turn.done()]
        assert all(turn.result() == pytest.approx(seconds, rel=0.01) for turn in passed)
        wait = pacing.wait("them")
        for turn in passed:
            await pacing.metered("them", call(), turn.result())
        assert pacing.wait("them") == pytest.approx(wait, abs=0.01)  # what was paid ahead is not spent again
        for turn in turns:
            turn.cancel()
        return len(passed)

    assert 1 <= asyncio.run(run()) <= max(TIMES * 3, PART * SECONDS / seconds) + 1


def test_what_was_paid_ahead_and_not_used_is_given_back() -> None:
    """Otherwise a tenant whose calls take long would make those of the others dearer."""
    clocks = Clocks()
    pacing = clocks.pacing()

    async def call(seconds: float) -> None:
        clocks.used += seconds

    async def run() -> None:
        await pacing.metered("us", call(0.01), prepaid=0.0)
        pacing.spent("us", 1.0)
        await pacing.metered("us", call(0.01), prepaid=1.0)

    asyncio.run(run())
    pacing.spent("others", 0.04)
    assert pacing.wait("us") == 0.0


@contextlib.contextmanager
def unfinished_call(server: Server, tenant: str) -> Generator[None]:
    """A call of the tenant whose body has not arrived, and for which the server has computed a second."""
    url = urlsplit(server.url)
    fields = {**head(tenant), "host": "localhost", "content-type": "application/json", "content-length": "9"}
    lines = ["POST /v1/chat/completions HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.sendall("\r\n".join(lines).encode())
        while tenant not in server.state.pacing.under_way:
            time.sleep(0.001)
        server.state.pacing.spent(tenant, 1.0)
        yield


def test_a_call_that_waits_for_its_turn_has_read_nothing(files: Files, tmp_path: Path) -> None:
    with (
        attacked(files, tmp_path) as server,
        httpx.Client(base_url=server.url, trust_env=False) as client,
        unfinished_call(server, "us"),
    ):
        server.state.pacing.spent("them", 50.0)
        assert client.get("/v1/models", headers=head("us")).status_code == 200
        hurried = head("them") | {"x-request-timeout-seconds": "0.1"}
        late = client.post("/v1/nothing", content=b"x" * 1000, headers=hurried)
        assert late.status_code == 429
        assert int(late.headers["retry-after"]) >= 1


def test_a_metered_call_is_cancelled_and_fails_like_any_other() -> None:
    pacing, seen = Clocks().pacing(), list[str]()

    async def fails() -> int:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise ValueError("its own") from None
        return 1

    async def run() -> None:
        task = asyncio.ensure_future(pacing.metered("us", fails()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(ValueError, match="its own"):
            await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await pacing.metered("us", asyncio.sleep(60))
        assert await pacing.metered("us", asyncio.sleep(0.001, 7)) == 7

    asyncio.run(run())
    assert seen == ["cancelled"]


@pytest.mark.parametrize("rival", ["leaves", "is idle", "stays"])
def test_a_tenant_beyond_its_part_waits_only_while_others_are_served(rival: str) -> None:
    """Otherwise a busy tenant loses two thirds of its calls beside one that asks now and then."""

    async def run() -> bool:
        pacing = Pacing()
        pacing.spent("busy", 50.0)
        pacing.spent("light", 0.0 if rival == "is idle" else 1.0)
        call = asyncio.ensure_future(pacing.metered("light", asyncio.sleep(60)))
        await asyncio.sleep(0)
        turn = asyncio.create_task(pacing.turn("busy"))
        await asyncio.sleep(0.02)
        assert turn.done() == (rival == "is idle")
        if rival == "leaves":
            call.cancel()
        await asyncio.wait([turn], timeout=LOOK_SECONDS / 2)  # it is woken: it does not look so soon
        passed = turn.done()
        call.cancel()
        turn.cancel()
        return passed

    assert asyncio.run(run()) == (rival != "stays")


def test_calls_that_nobody_else_delays_pass_no_faster_than_they_are_worked_on() -> None:
    """Who comes next finds few of them before its own."""
    clocks, seconds = Clocks(), 0.05
    pacing = clocks.pacing()

    async def call() -> None:
        clocks.used += seconds

    async def run() -> int:
        for _ in range(200):
            await pacing.metered("busy", call())
        pacing.spent("light", 0.01)
        turns = [asyncio.create_task(pacing.turn("busy")) for _ in range(20)]
        begin = time.monotonic()
        await asyncio.wait(turns, timeout=4 * seconds)
        most = 1 + (time.monotonic() - begin) / seconds
        passed = sum(turn.done() for turn in turns)
        for turn in turns:
            turn.cancel()
        assert passed <= most
        return passed

    assert asyncio.run(run()) >= 1


def test_calls_of_one_tenant_wait_one_behind_the_other_and_no_more_than_so_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED_CALLS", 3)
    clocks, order = Clocks(), list[int]()
    pacing = clocks.pacing()
    pacing.spent("them", 2.0)
    pacing.spent("us", 0.01)

    async def passing(seconds: float) -> None:
        clocks.wall_time += seconds

    async def call(number: int) -> None:
        await pacing.turn("them")
        order.append(number)
        pacing.spent("them", 1.0)

    async def calls() -> None:
        tasks = [asyncio.create_task(call(number)) for number in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(LimitError, match="too many of your requests"):
            await pacing.turn("them")
        await pacing.turn("us")  # at once
        sleep: Callable[[float], object] = asyncio.sleep
        monkeypatch.setattr(asyncio, "sleep", passing)
        await asyncio.gather(*tasks)
        monkeypatch.setattr(asyncio, "sleep", sleep)

    asyncio.run(calls())
    assert order == [0, 1, 2]
    assert pacing.lines == {}


def test_a_server_makes_only_the_one_wait_that_has_had_too_much(files: Files, tmp_path: Path) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    with (
        attacked(files, tmp_path) as server,
        httpx.Client(base_url=server.url, trust_env=False) as client,
        unfinished_call(server, "us"),
    ):
        server.state.pacing.spent("them", 50.0)
        path = "/v1/chat/completions"
        assert client.post(path, json=body, headers=head("us")).status_code == 200
        late = client.post(path, json=body, headers=head("them") | {"x-request-timeout-seconds": "0.1"})
        assert late.status_code == 429
        assert "turn" in late.json()["error"]["message"]
        for _ in range(3):
            assert client.post(path, json=body, headers=head("us")).status_code == 200


def test_a_server_counts_all_that_its_loop_does_for_a_call(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that the loop goes on with it takes a second, on this clock."""
    ticks, spent = itertools.count(), Counter[str]()
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    with attacked(files, tmp_path) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        pacing = server.state.pacing
        monkeypatch.setattr(pacing, "_used", lambda: float(next(ticks)))
        monkeypatch.setattr(pacing, "spent", lambda tenant, seconds: spent.update({tenant: round(seconds)}))
        assert client.post("/v1/chat/completions", json=body, headers=head("us")).status_code == 200
        assert client.get("/health").status_code == 200
    assert spent.keys() == {"us"}
    assert spent["us"] >= 3  # when its prompt was made, when its answer was there, and at the beginning


def test_requests_that_come_at_once_begin_a_few_in_a_round_of_the_loop_and_callers_take_turns() -> None:
    """A burst of one caller leaves the loop to everything else between two of its requests."""
    begun: list[str] = []
    rounds = 0

    async def run() -> None:
        nonlocal rounds
        door = Door()

        async def call(caller: str) -> None:
            await door.enter(caller)
            begun.append(caller)

        burst = [asyncio.create_task(call("them")) for _ in range(400)]
        given_up = burst.pop(200)
        await asyncio.sleep(0)
        given_up.cancel()
        ours = [asyncio.create_task(call("us")) for _ in range(3)]
        while not all(task.done() for task in (*burst, *ours)):
            before = len(begun)
            await asyncio.sleep(0)
            rounds += 1
            assert len(begun) - before <= MAX_BEGUN_PER_ROUND

    asyncio.run(run())
    assert begun.count("them") == 399
    assert max(place for place, caller in enumerate(begun) if caller == "us") <= 4 * MAX_BEGUN_PER_ROUND
    assert rounds <= len(begun) / MAX_BEGUN_PER_ROUND + 10


def test_probes_wait_for_no_requests(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    with attacked(files, tmp_path) as server:
        monkeypatch.setattr(server.state.door, "enter", never)
        assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{server.url}/v1/models", headers=head("us"), timeout=0.2, trust_env=False)
        monkeypatch.undo()
