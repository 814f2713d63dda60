"""Real kills of a real process: whatever the moment, the same command ends with the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from tests.forked import Command

from bedplate.training.state import STATE_FILE, StateFile

STEPS = 20


def _start(out: Path, *arguments: object) -> Command:
    return Command(out.parent / f"{out.name}-said", out, *map(str, arguments), main="tests.faults.training_run")


def _run(out: Path, *arguments: object) -> tuple[int, str]:
    """Its exit code, and what it said on stderr."""
    command = _start(out, *arguments)
    return command.wait(), command.errors


def _finish(out: Path) -> tuple[str, int | None]:
    """Runs to the end; the weights' hash, and the step it resumed at."""
    process = _start(out)
    assert process.wait() == 0, process.errors
    weights, steps, resumed, lines = process.output.split()
    assert (int(steps), int(lines)) == (STEPS, STEPS)
    numbers = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert numbers == list(range(1, STEPS + 1))
    return weights, None if resumed == "None" else int(resumed)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> str:
    weights, resumed = _finish(tmp_path_factory.mktemp("unbroken"))
    assert resumed is None
    return weights


def test_killed_in_a_step_in_a_save_and_after_a_save(unbroken: str, tmp_path: Path) -> None:
    """Four kills of one run, of which each resumes the one before (so it is resumed more than twice)."""
    for arguments in (
        ("--at-step", 14),  # micro-batches are counted here: in the middle of a step
        ("--kill-in-save", 1),
        ("--kill-after-save", 2),
        ("--at-step", 9),
    ):
        assert _run(tmp_path, *arguments)[0] == -signal.SIGKILL
    weights, resumed = _finish(tmp_path)
    assert resumed is not None
    assert resumed >= 6
    assert weights == unbroken
    assert _finish(tmp_path) == (unbroken, STEPS)  # a finished run is only loaded
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "metrics.jsonl", STATE_FILE]


def test_killed_at_random_moments(unbroken: str, tmp_path: Path) -> None:
    draw = random.Random(int.from_bytes(os.urandom(4)))
    for _ in range(2):
        process = _start(tmp_path)
        limit = time.monotonic() + 60
        while not (tmp_path / STATE_FILE).exists() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
    assert _finish(tmp_path)[0] == unbroken


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_interrupted_at_a_steps_end(name: str, unbroken: str, tmp_path: Path) -> None:
    code, output = _run(tmp_path, "--signal", name, "--at-step", 13)
    assert code != 0
    assert "KeyboardInterrupt" in output
    assert "stops after this step, with its state saved; a second Ctrl-C stops it at once" in output
    step = StateFile(tmp_path).latest()
    assert step is not None
    assert StateFile(tmp_path).load(step).values["tally"]["step"] == step
    assert 0 < step < STEPS
    assert step % 3 != 0  # it was saved for the signal, not for save_steps
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == step
    assert _finish(tmp_path) == (unbroken, step)


def test_another_runs_state_is_refused_naming_what_changed(tmp_path: Path) -> None:
    assert _run(tmp_path, "--signal", "SIGINT", "--at-step", 4)[0] != 0
    before = (tmp_path / STATE_FILE).read_bytes()
    for arguments, message in (
        (("--learning-rate", 0.02), "changed: config.learning_rate: 0.01 before, 0.02 now"),
        (("--first-word", 9), "changed: source.examples: "),
    ):
        code, output = _run(tmp_path, *arguments)
        assert code != 0
        assert "TrainingError" in output
        assert message in output
    assert (tmp_path / STATE_FILE).read_bytes() == before
    (tmp_path / STATE_FILE).write_bytes(before[: len(before) // 2])
    assert "not a training state that can be read" in _run(tmp_path)[1]
    (tmp_path / STATE_FILE).write_bytes(before)
    (tmp_path / "metrics.jsonl").unlink()
    assert "is shorter (0 bytes) than when the state was saved" in _run(tmp_path)[1]
