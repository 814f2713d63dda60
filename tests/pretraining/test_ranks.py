"""`torchrun -m bedplate pretrain`: two processes that share a run, from the command line, killed and gone on with."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.logged_steps import steps_of, wait_for_steps
from tests.pretraining.test_killed import STEPS, learned, new_run

from bedplate.core.files import read_jsonl
from bedplate.models.checkpoints.base import load_base
from bedplate.pretraining.run.pretrain import pretrain

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@contextlib.contextmanager
def torchrun(directory: Path, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """All of its processes, of which none is left afterwards."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bedplate"]
    command = [sys.executable, *launcher, "pretrain", str(directory / "run.yaml"), *arguments]
    with (directory / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        try:
            yield process
        finally:
            for pid in (*descendants(process.pid), process.pid):  # torchrun gives each worker a session of its own
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.communicate()


def descendants(pid: int) -> list[int]:
    pids: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            for child in map(int, children.read_text().split()):
                pids += [child, *descendants(child)]
    return pids


def finished(directory: Path, out: Path) -> str:
    with torchrun(directory, "--out", str(out)) as process:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, (directory / "errors.txt").read_text()
    return output


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in read_jsonl(out / "metrics.jsonl")]


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    output = finished(tmp_path, tmp_path / "two")
    assert output.count("base: ") == 1
    pretrained = pretrain(run, tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(learned(pretrained)[1], rel=1e-6)


def test_a_mistake_is_told_once_and_ends_all(tmp_path: Path) -> None:
    new_run(tmp_path)
    with torchrun(tmp_path, "batch.tokens=32", "tokens=320", "--out", str(tmp_path / "out")) as process:
        process.communicate(timeout=120)
        assert process.returncode != 0
    assert (tmp_path / "errors.txt").read_text().count("error: batch.tokens gives steps of 1 rows") == 1


@pytest.mark.timeout(1500)
def test_twenty_kills_of_two_processes_change_nothing(tmp_path: Path) -> None:
    new_run(tmp_path)
    finished(tmp_path, tmp_path / "whole")
    out, draw = tmp_path / "out", random.Random(0)
    for _ in range(20):
        before = steps_of(out / "metrics.jsonl")
        with torchrun(tmp_path, "--out", str(out)) as process:
            wait_for_steps(process, out / "metrics.jsonl", min(before + draw.randrange(3), STEPS - 4))
            time.sleep(draw.random() * 0.02)
            assert process.poll() is None, "it ended before it was killed"
    assert not (out / "base").exists()
    finished(tmp_path, out)
    assert losses(out) == losses(tmp_path / "whole")
    weights_id, expected_id = (
        load_base(directory / "base").identity.weights_id for directory in (out, tmp_path / "whole")
    )
    assert weights_id == expected_id
