"""A run that is killed ends, gone on with, in the same weights as one that was not."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.pretraining.runs import tiny_run, write_text

from bedplate.models.checkpoints.base import load_base
from bedplate.pretraining.run.directory import read_record
from bedplate.pretraining.run.pretrain import pretrain

ENTRY = "import sys; from bedplate.cli.main import main; main(sys.argv[1:])"
STEPS = {"checkpoints": {"every": 0.1, "seconds": 0.05}, "tokens": 5120, "evaluation": {"baselines": False}}


def begin(directory: Path) -> subprocess.Popen[bytes]:
    command = ["pretrain", str(directory / "run.yaml"), "--out", str(directory / "out")]
    return subprocess.Popen([sys.executable, "-c", ENTRY, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the file is there, or the process has ended."""
    until = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)


def whole(directory: Path) -> str:
    """What an unbroken run ends in."""
    directory.mkdir()
    write_text(directory / "text.txt")
    return load_base(pretrain(tiny_run(directory, **STEPS), directory / "out").base).identity.weights_id


def test_killed_once_and_stopped_once(tmp_path: Path) -> None:
    wanted = whole(tmp_path / "whole")
    write_text(tmp_path / "text.txt")
    run = tiny_run(tmp_path, **STEPS)
    process = begin(tmp_path)
    wait_for(tmp_path / "out" / "state.safetensors", process)
    process.kill()
    process.communicate()
    found = pretrain(run, tmp_path / "out")
    assert found.result.resumed_at
    assert load_base(found.base).identity.weights_id == wanted


@pytest.mark.slow
def test_killed_at_twenty_moments(tmp_path: Path) -> None:
    wanted = whole(tmp_path / "whole")
    draw = random.Random(0)
    for number in range(20):
        directory = tmp_path / str(number)
        directory.mkdir()
        write_text(directory / "text.txt")
        run = tiny_run(directory, **STEPS)
        for kill in (signal.SIGKILL, signal.SIGKILL if number % 2 else signal.SIGTERM):
            process = begin(directory)
            wait_for(directory / "out" / "pretraining.json", process)
            time.sleep(draw.random() * 3)
            process.send_signal(kill)
            process.communicate()
        found = pretrain(run, directory / "out")
        assert load_base(found.base).identity.weights_id == wanted
        assert read_record(directory / "out")["status"] == "finished"
