"""Peers in processes of their own: a crash is reported, and the rest is measured."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

import pytest

PLACE = Path(__file__).parent.parent.parent / "benchmarks"
PEER = """
import os, signal

class Peer:
    def __init__(self, fails=""):
        if fails == "building":
            raise MemoryError("no room")
        self.calls = 0
    def work(self, amount):
        self.calls += 1
        return os.getpid(), self.calls, amount
    def refuse(self):
        raise ValueError("a shape that it does not take")
    def crash(self):
        os.kill(os.getpid(), signal.SIGILL)

def added(a, b):
    return a + b
"""


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Modules of benchmarks/ by name; other processes find the module `peer_of_test` too."""
    (tmp_path / "peer_of_test.py").write_text(PEER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.syspath_prepend(str(PLACE))
    return import_module


def test_calls_run_in_one_other_process(benchmarks):
    peer = benchmarks("apart").PeerProcess("peer_of_test:Peer")
    first, second = peer.work(3), peer.work([4])
    peer.close()
    assert first[0] == second[0] != os.getpid()
    assert (first[1:], second[1:]) == ((1, 3), (2, [4]))
    assert benchmarks("apart").call_in_process("peer_of_test:added", 2, 3) == 5


def test_an_error_of_a_call_leaves_the_peer_usable(benchmarks):
    apart = benchmarks("apart")
    peer = apart.PeerProcess("peer_of_test:Peer")
    with pytest.raises(apart.PeerError, match="Peer: ValueError: a shape that it does not take"):
        peer.refuse()
    assert peer.work(1)[1] == 1
    peer.close()


def test_a_peer_that_cannot_be_built_fails_at_each_call(benchmarks):
    apart = benchmarks("apart")
    peer = apart.PeerProcess("peer_of_test:Peer", "building")
    for _ in range(2):
        with pytest.raises(apart.PeerError, match="Peer: MemoryError: no room"):
            peer.work(1)
    peer.close()


def test_a_crash_is_reported_and_the_rest_is_measured(
    benchmarks, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    comparison, apart = benchmarks("comparison"), benchmarks("apart")
    monkeypatch.delenv(comparison.JSON_VARIABLE, raising=False)
    crashing, working = apart.PeerProcess("peer_of_test:Peer"), apart.PeerProcess("peer_of_test:Peer")
    turns: list[int] = []
    runs = {"ours": lambda: turns.append(0), "A": crashing.crash, "B": lambda: working.work(1)}
    seconds = comparison.interleaved(runs, repeats=2)
    assert (len(turns), working.work(1)[1]) == (3, 4)
    assert math.isnan(seconds["A"])
    assert seconds["B"] > 0
    assert comparison.best_seconds(crashing.crash) == math.inf
    rows = [comparison.Row("decode", 2.0, 1 / seconds[peer], "tokens/s", peer, "1.0", goal=2.0) for peer in ("A", "B")]
    comparison.report(rows)
    output = capsys.readouterr().out
    assert output.count(f"A FAILED: Peer died of {signal.SIGILL.name}") == 1
    assert "decode: ours 2 tokens/s, A 1.0 NOT MEASURED: it failed" in output
    failed, measured = json.loads(output.splitlines()[-1])
    assert (failed["peer"], failed["ratio"], measured["ratio"] > 0) == (None, None, True)
    assert benchmarks("table").cell(failed) == "2 tok/s / the peer failed"
    working.close()
