"""A build as a process of its own, killed at random moments, on several processors: the same corpus in the end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bedplate.data.corpus.shards import Corpus

RECIPE = """
corpus: library
preset: code
part_mb: 0.3
sources: [{name: json, kind: code, path: LIBRARY, languages: [Python]}]
tokenizer: {train: {vocab_size: 1000, sample_mb: 0.5}}
"""


def command(place: Path, out: str, processes: int) -> list[str]:
    words = ["data", "build", str(place / "recipe.yaml"), "--out", str(place / out), "--processes", str(processes)]
    return [sys.executable, "-m", "bedplate.cli.main", *words]


@pytest.mark.slow
def test_killed_at_random_moments_and_in_any_number_of_processes(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("LIBRARY", str(Path(os.__file__).parent / "asyncio")))
    whole = time.monotonic()
    subprocess.run(command(tmp_path, "whole", 1), check=True, capture_output=True)
    whole = time.monotonic() - whole
    draw, interrupted = random.Random(5), 0
    for _ in range(6):
        running = subprocess.Popen(
            command(tmp_path, "killed", 2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while not (tmp_path / "killed/.work").exists() and running.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, whole / 8))
        interrupted += running.poll() is None
        with contextlib.suppress(ProcessLookupError):  # it may have ended
            os.killpg(running.pid, signal.SIGKILL)  # its workers too
        running.wait()
        if (tmp_path / "killed/corpus.json").exists():
            break
    assert interrupted > 1, "a build that nobody interrupts shows nothing"
    subprocess.run(command(tmp_path, "killed", 2), check=True, capture_output=True)
    assert Corpus.open(tmp_path / "killed", verify="hashes").sha256 == Corpus.open(tmp_path / "whole").sha256
    leftovers = [p.name for p in (tmp_path / "killed").rglob("*") if p.suffix == ".part"]
    assert leftovers == []
