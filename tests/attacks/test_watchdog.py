"""A loop that is late is measured, and what it does instead is written down while it does it."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time

import httpx
import pytest

from bedplate.serving.server import monitoring
from bedplate.serving.server.monitoring import NAMES, Watchdog


def keeps_the_loop(until: threading.Event) -> None:
    until.wait(20)
    time.sleep(0.05)  # later still, but told already


def test_the_stack_of_a_late_loop_is_written_down_once(monkeypatch, caplog):
    monkeypatch.setattr(monitoring, "LATE_SECONDS", 0.02)
    monkeypatch.setattr(monitoring, "BEAT_SECONDS", 0.005)
    logged, dog = threading.Event(), Watchdog()

    class Telling(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "keeps_the_loop" in record.getMessage():  # on a busy machine it may be late before
                logged.set()

    async def serve() -> None:
        async with dog.running(lambda *_: asyncio.sleep(0)):
            await asyncio.sleep(0.02)
            keeps_the_loop(logged)
            await asyncio.sleep(0.02)

    handler = Telling()
    monitoring.log.addHandler(handler)
    try:
        with caplog.at_level(logging.WARNING, monitoring.log.name):
            asyncio.run(serve())
    finally:
        monitoring.log.removeHandler(handler)
    assert logged.is_set()
    [record] = [log_record for log_record in caplog.records if "keeps_the_loop" in log_record.getMessage()]
    assert "the event loop is" in record.getMessage()
    assert dog.lags._sums[()] > 0.02


def test_a_loop_that_is_always_late_does_not_fill_the_log(monkeypatch, caplog):
    monkeypatch.setattr(monitoring, "LATE_SECONDS", 0.01)
    monkeypatch.setattr(monitoring, "BEAT_SECONDS", 0.001)
    dog = Watchdog()

    async def serve() -> None:
        async with dog.running(lambda *_: asyncio.sleep(0)):
            while dog._suppressed < 3:
                await asyncio.sleep(0.002)
                time.sleep(0.02)
            dog._quiet_until = 0.0
            before = len(caplog.records)
            while len(caplog.records) == before:
                await asyncio.sleep(0.002)
                time.sleep(0.02)

    with caplog.at_level(logging.WARNING, monitoring.log.name):
        asyncio.run(serve())
    messages = [record.getMessage() for record in caplog.records if "the event loop is" in record.getMessage()]
    assert 2 <= len(messages) <= 3  # on a busy machine a quiet spell may end by itself
    assert "more times since the last such message" in messages[-1]


def test_lags_are_counted_into_their_buckets():
    dog = Watchdog()
    for lag in (0.0005, 0.2, 99.0):
        dog.lags.observe(lag)
    family, earlier = dog.collect()
    assert (family.name, earlier.name) == NAMES
    buckets = {sample.labels.get("le"): sample.value for sample in family.samples if sample.name.endswith("_bucket")}
    assert (buckets["0.001"], buckets["0.1"], buckets["0.25"], buckets["10.0"], buckets["+Inf"]) == (1, 1, 2, 2, 3)


@pytest.mark.parametrize("name", [f"{NAMES[0]}_count", f"{NAMES[0]}_sum"])
def test_a_live_server_gives_the_metric(target, name):
    until = time.monotonic() + 30
    with httpx.Client(trust_env=False) as client:
        while True:  # the first beat may be late on a busy machine
            match = re.search(rf"^{name} (\S+)$", client.get(f"{target.url}/metrics").text, re.MULTILINE)
            assert match is not None
            if name == f"{NAMES[0]}_sum" or float(match[1]) > 0:
                return
            assert time.monotonic() < until
            time.sleep(0.1)


def test_a_loop_that_only_waits_is_not_blamed():
    loop = asyncio.new_event_loop()
    waiting = threading.Thread(target=loop.run_forever)
    waiting.start()
    try:
        limit = time.monotonic() + 20
        while "other work on this machine" not in monitoring._stack_of(waiting.ident) and time.monotonic() < limit:
            time.sleep(0.001)
        assert (
            monitoring._stack_of(waiting.ident)
            == "  its wait for work, which other work on this machine kept from ending"
        )
    finally:
        loop.call_soon_threadsafe(loop.stop)
        waiting.join()
        loop.close()
    assert monitoring._stack_of(waiting.ident) == "(its thread has ended)"
