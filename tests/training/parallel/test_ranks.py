"""Training on two and four ranks (gloo): what one process does. One group of processes makes every check."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.forked import Command
from tests.logged_steps import steps_of, wait_for_steps
from tests.training.parallel import checks
from tests.training.parallel.worker import PHASES

from bedplate.training.parallel.sharded_states import DistributedStates
from bedplate.training.ranks import ALONE

SECONDS = 240
NAMES = [
    pytest.param(check.__name__, world, marks=pytest.mark.slow if check in slow_checks else ())
    for world, fast_checks, slow_checks in PHASES
    for check in (*fast_checks, *slow_checks)
    if check is not checks.killed_while_saving
]


@contextlib.contextmanager
def started(out: Path, *arguments: str) -> Generator[Command]:
    """All of the processes, of which none is left afterwards."""
    process = Command(out / "said", out, *arguments, main="tests.training.parallel.worker")
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended, or is no leader of a session yet
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()


@pytest.fixture(scope="module")
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes wrote. Those that take longer run where a slow test is to be passed."""
    out = tmp_path_factory.mktemp("ranks")
    slow = any(test.get_closest_marker("slow") for test in request.session.items if test.path == Path(__file__))
    with started(out, *(["all"] if slow else [])) as process:
        process.wait(SECONDS)
    return out


@pytest.mark.parametrize(("name", "world"), NAMES)
def test_ranks(name: str, world: int, group: Path) -> None:
    for rank in range(world):
        outcomes = json.loads((group / f"found-{rank}.json").read_text())
        assert name in outcomes, (group / "said" / "0.errors").read_text()[-2000:]
        assert outcomes[name] is None, f"rank {rank}: {outcomes[name]}"


def test_a_rank_that_is_killed_while_saving_leaves_the_last_state(group: Path) -> None:
    """And a single process goes on from there to the weights of one that did it all."""
    out = group / "killed"
    store = DistributedStates(out, ALONE)
    assert list((out / "states").glob("*.partial"))
    assert store.latest() == 1
    assert not list((out / "states").glob("*.partial"))
    weights, result = checks.run(out, checks.EXPERTS, checks.SAVED, None)
    assert result is not None
    assert result.resumed_at == 1
    expected, _ = checks.run(group / "not_killed", checks.EXPERTS, checks.SAVED, None)
    assert all(torch.allclose(weights[name], expected[name], 0, 1e-12) for name in expected)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    """At moments drawn at random, both ranks; bit by bit what an unbroken run learns."""
    outs = [tmp_path / name for name in ("whole", "killed")]
    for out in outs:
        out.mkdir()
    whole, killed = outs
    with started(whole, "long") as process:
        assert process.wait(SECONDS) == 0
    draw, log = random.Random(0), killed / "run/metrics.jsonl"
    for _ in range(20):
        target_steps = min(steps_of(log) + draw.randrange(3), steps_of(whole / "run/metrics.jsonl") - 4)
        with started(killed, "long") as process:
            wait_for_steps(process, log, target_steps)
            time.sleep(draw.random() * 0.02)
            assert process.poll() is None, "it ended before it was killed"
    with started(killed, "long") as process:
        assert process.wait(SECONDS) == 0
    expected, weights = (load_file(out / "weights.safetensors") for out in outs)
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    rows = [[json.loads(line)["loss"] for line in (out / "run/metrics.jsonl").read_text().splitlines()] for out in outs]
    assert rows[0] == rows[1]
