"""A run that is killed ends, gone on with, in the same weights as one that was not: bit by bit, wherever it was."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tests.forked import Command
from tests.logged_steps import wait_for_steps
from tests.pretraining.runs import tiny_run, write_text

from bedplate.core.files import read_jsonl
from bedplate.models.checkpoints.base import load_base
from bedplate.pretraining.run.directory import read_record
from bedplate.pretraining.run.pretrain import Pretrained, pretrain
from bedplate.pretraining.runfile.file import RunFile
from bedplate.training.state import StateFile

STEPS = 20
RUN: dict[str, Any] = {
    "checkpoints": {"every": 0.5, "seconds": 0.03},
    "tokens": 256 * STEPS,
    "evaluation": {"baselines": False},
    "log_steps": 1,
}


def new_run(directory: Path) -> RunFile:
    directory.mkdir(exist_ok=True)
    write_text(directory / "text.txt")
    return tiny_run(directory, **RUN)


def learned(pretrained: Pretrained) -> tuple[str, list[float]]:
    """The base's weights, and every step's loss."""
    rows = read_jsonl(pretrained.directory / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return load_base(pretrained.base).identity.weights_id, [row["loss"] for row in rows]


def killed_at(directory: Path, step: int, later: float, how: signal.Signals = signal.SIGKILL) -> int | None:
    """Begins the run, or goes on with it, and kills it some time after so many steps; the step that its state is of."""
    out = directory / "out"
    command = Command(directory / "said", "pretrain", directory / "run.yaml", "--out", out)
    wait_for_steps(command, out / "metrics.jsonl", step)
    time.sleep(later)
    assert command.poll() is None, f"it ended before it was killed: {command.errors}"
    command.send_signal(how)
    assert command.wait() in (130, -how), command.errors  # 130: it ended by itself, with its state saved
    return StateFile(out).latest()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[float]]:
    """What an unbroken run learns."""
    directory = tmp_path_factory.mktemp("whole")
    return learned(pretrain(new_run(directory), directory / "out"))


def test_killed_twice(tmp_path: Path, whole: tuple[str, list[float]]) -> None:
    """Each time further on than before, the state that it is gone on from being that of a step between."""
    run = new_run(tmp_path)
    resume_steps = [killed_at(tmp_path, step, 0.005) for step in (4, 12)]
    assert resume_steps[-1] is not None
    assert 0 < resume_steps[-1] < STEPS
    pretrained = pretrain(run, tmp_path / "out")
    assert pretrained.result.resumed_at == resume_steps[-1]
    assert learned(pretrained) == whole


@pytest.mark.slow
def test_killed_at_twenty_moments(tmp_path: Path, whole: tuple[str, list[float]]) -> None:
    """Twice in a row each, every fourth time asked to end first."""
    draw = random.Random(0)
    midway_kills = 0
    for number in range(20):
        directory = tmp_path / str(number)
        run = new_run(directory)
        first = draw.randrange(STEPS // 2)
        killed_at(directory, first, draw.random() * 0.05)
        how = signal.SIGKILL if number % 4 else signal.SIGTERM
        resume_step = killed_at(directory, draw.randrange(first + 1, STEPS - 4), draw.random() * 0.03, how)
        pretrained = pretrain(run, directory / "out")
        midway_kills += resume_step is not None and 0 < resume_step < STEPS
        assert pretrained.result.resumed_at == resume_step
        assert learned(pretrained) == whole
        assert read_record(directory / "out")["status"] == "finished"
    assert midway_kills >= 15, "most of them are to be killed between a save and the end"
