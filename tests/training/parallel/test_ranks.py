"""Training on two and four ranks (gloo): what one process does. One group of processes makes every check."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.training.parallel import checks
from tests.training.parallel.worker import PHASES

from bedplate.training.parallel.states import States
from bedplate.training.ranks import ALONE

ROOT = Path(__file__).parents[3]
SECONDS = 240
NAMES = [(check.__name__, world) for world, wanted in PHASES for check in wanted if check != checks.killed_while_saving]


def free_port(count: int) -> int:
    """The first of so many that are free now."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
        if port + count < 65_536:
            return port


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    port = str(free_port(len(PHASES)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    command = [sys.executable, "-m", "tests.training.parallel.worker"]
    processes = [
        subprocess.Popen([*command, str(n), port, str(out)], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        for n in range(4)
    ]
    try:
        for process in processes:
            process.wait(SECONDS)
    finally:
        for process in processes:
            process.kill()
            if process.stderr is not None:
                (out / f"stderr-{process.pid}").write_bytes(process.stderr.read())
                process.stderr.close()
    return out


@pytest.mark.parametrize(("name", "world"), NAMES)
def test_ranks(name: str, world: int, group: Path) -> None:
    for rank in range(world):
        found = json.loads((group / f"found-{rank}.json").read_text())
        assert name in found, [one.read_text()[-2000:] for one in group.glob("stderr-*")]
        assert found[name] is None, f"rank {rank}: {found[name]}"


def test_a_rank_that_is_killed_while_saving_leaves_the_last_state(group: Path) -> None:
    """And a single process goes on from there to the weights of one that did it all."""
    out = group / "killed"
    store = States(out, ALONE)
    assert list((out / "states").glob("*.partial"))
    assert store.latest() == 1
    assert not list((out / "states").glob("*.partial"))
    found, result = checks.run(out, checks.EXPERTS, checks.SAVED, None)
    assert result is not None
    assert result.resumed_at == 1
    expected, _ = checks.run(group / "not_killed", checks.EXPERTS, checks.SAVED, None)
    assert all(torch.allclose(found[name], expected[name], 0, 1e-12) for name in expected)
