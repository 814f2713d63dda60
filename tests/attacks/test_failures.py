"""What fails in a way that nobody foresaw fails alone, and what is to end ends."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from tests.tiny import write_tiny_base

from bedplate.core.errors import need_failure
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.grammar import Matcher
from bedplate.inference.engine.requests import Generate, Grammar, Sampling
from bedplate.models.checkpoints.base import load_base
from bedplate.serving.durable.feedback_service import Latest
from bedplate.serving.request.server_state import Exchange
from bedplate.serving.server import monitoring
from bedplate.serving.server.monitoring import Telemetry
from bedplate.serving.settings.server_config import TelemetryConfig


class PanicException(BaseException):
    """As libraries written in Rust raise it: no Exception, and in no module."""


PANIC = Grammar("choice", '["panic"]')


@pytest.mark.parametrize("method", ["fill", "advance", "forced"])
def test_a_panic_fails_the_request_that_it_was_met_in(tmp_path, monkeypatch, method):
    def panics(self: Matcher, *args: object) -> object:
        raise PanicException("index out of bounds")

    with Engine(load_base(write_tiny_base(tmp_path / "tiny")), kernel="torch", speculate=method == "forced") as engine:
        sampling = Sampling(max_tokens=30, ignore_eos=True)
        monkeypatch.setattr(Matcher, method, panics)
        honest = engine.submit(Generate((20, 7, 9), sampling=sampling))
        bad = engine.submit(Generate((21, 7, 9), sampling=Sampling(max_tokens=30), grammar=PANIC))
        with pytest.raises(RuntimeError, match="index out of bounds"):
            bad.result(20)
        assert len(honest.result(20).token_ids) == 30
        assert engine.alive
        assert len(engine.submit(Generate((22, 7), sampling=sampling)).result(20).token_ids) == 30


def test_a_wish_to_end_is_no_failure():
    need_failure(PanicException())
    need_failure(ValueError())
    for wish in (KeyboardInterrupt(), SystemExit(), asyncio.CancelledError(), GeneratorExit()):
        with pytest.raises(type(wish)):
            need_failure(wish)


def test_the_latest_replies_are_remembered_and_no_more():
    latest: Latest[str] = Latest(3, characters=10)
    for i in range(1000):
        latest.note(f"r{i}", "abc")
        if i % 7 == 0:
            latest.forget(f"r{i - 1}")
        latest.note(f"r{i}", "abcd")
        assert len(latest) <= 2
    assert list(latest) == ["r998", "r999"]
    latest.note("large", "x" * 11)
    assert not latest
    owners: Latest[int] = Latest(3)
    for i in range(10):
        owners.note(str(i), i)
    assert list(owners) == ["7", "8", "9"]


SLOW_WORK = """
import asyncio, threading
from bedplate.serving.request.preparation import Preparation

async def main():
    begun = threading.Event()
    def work():
        begun.set()
        threading.Event().wait()
    task = asyncio.create_task(Preparation(1000).run("them", 1, work))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    print("stopped", flush=True)

asyncio.run(main())
"""


def test_work_for_clients_that_have_gone_keeps_no_process(tmp_path):
    line = [sys.executable, "-c", SLOW_WORK]
    ended = subprocess.run(line, capture_output=True, text=True, env=os.environ, timeout=60, check=True)
    assert ended.stdout == "stopped\n"


class Dead(SpanExporter):
    """A collector that takes nothing and says nothing."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def export(self, spans: object) -> SpanExportResult:
        self.go.wait(60)
        return SpanExportResult.FAILURE


def test_a_dead_collector_does_not_keep_the_server(monkeypatch, caplog):
    monkeypatch.setattr(monitoring, "CLOSE_SECONDS", 0.05)
    collector = Dead()
    traced = Telemetry(TelemetryConfig(endpoint="http://127.0.0.1:9/v1/traces"), collector)
    facts = {"model": "tiny", "endpoint": "chat"}
    exchange = Exchange("1", "c", "POST", "/", "/", 200, 0.0, 1.0, None, facts)

    async def serve() -> bool:
        async with traced.running(lambda *_: asyncio.sleep(0)):
            traced.watch(exchange)
        return collector.go.is_set()

    try:
        assert not asyncio.run(serve())
        assert "did not take them" in caplog.text
    finally:
        collector.go.set()
