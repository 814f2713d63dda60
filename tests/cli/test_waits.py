"""Waits of more than two seconds on a terminal: what is done, how much of it, and the time that is left."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import random
import signal
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.forked import Command
from tests.homes import new_home
from tests.made_skin import LABELS, label_skin
from tests.terminals import shown_on

TASK = """
task: t
inputs: {review: {column: review}}
output: {kind: label, labels: [negative, positive]}
data:
  {source: rows.csv, target: label, group_by: null, ungrouped_because: made up,
   split: {train: 0.6, valid: 0.2, test: 0.2}}
metric: accuracy
adapt:
  bases: [base]
  target: {value: 0.8}
  budget: {train_minutes: 60}
  machine: {usd_per_hour: 0.1, as_of: 2026-01-01}
"""
WHEEL = "toy_pack-1.0-py3-none-any.whl"
THIS_MODULE = "tests.cli.test_waits"
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "evaluate": (("skin", "task.yaml"), ("answers", "/60", "left")),
    "predict": (("skin", "in.jsonl", "--batch", "16", "--out", "out.jsonl"), ("predict", "/96 rows", "left")),
    "plan": (("calibrate",), ("this machine", "/4 measurements", "left")),
    "adapt": (("task.yaml", "--out", "run"), ("adapt: time limit", "/3,600 s", "lora", "tests: lora", "left")),
    "pull": (("toy",), (WHEEL, "/2 MB", "left")),
    "serve": (("base", "--port", "0", "--grace", "0.1s"), ("starting the server", "loading base")),
}


def slowed() -> None:
    """`bedplate ...` as with a large base: each step of an engine, a measurement, a load and a part of a download takes
    its time, the ladder has one rung, and a server stops once it is there. First argument: where it works."""
    os.chdir(sys.argv.pop(1))
    from bedplate.adaptation import ladder
    from bedplate.cli.main import main
    from bedplate.hub import index
    from bedplate.inference.engine import steps
    from bedplate.inference.measure import speeds
    from bedplate.models.checkpoints import base
    from bedplate.serving.server import app

    step, write, load, serve = steps.Steps.step, index.write_checked, base._load, app.serve

    def slow_step(self: steps.Steps, *args: Any, **named: Any) -> Any:
        time.sleep(0.25)
        return step(self, *args, **named)

    def slow_parts(chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            time.sleep(0.2)
            yield chunk

    def slow_load(*args: Any, **named: Any) -> Any:
        time.sleep(0.8)
        return load(*args, **named)

    def stopping(*args: Any, on_ready: Any, **named: Any) -> Any:
        def ready(*ready_args: Any) -> None:
            on_ready(*ready_args)
            os.kill(os.getpid(), signal.SIGTERM)

        return serve(*args, on_ready=ready, **named)

    steps.Steps.step = slow_step  # type: ignore[method-assign]
    speeds._BYTES, speeds._SIZE, speeds._SECONDS = 1 << 20, 64, 0.3
    index.write_checked = lambda chunks, *args: write(slow_parts(chunks), *args)
    base._load = slow_load if sys.argv[1] == "serve" else load
    app.serve, ladder.rows_of, ladder.check_bases = stopping, _rows, _climbed
    if Path("links").is_dir():
        _offer(Path("links") / WHEEL)
    main()


def _rows(*args: Any) -> Any:
    return SimpleNamespace(train=(), valid=(), hashes={}, test=SimpleNamespace(n=400, groups=400))


def _climbed(*args: Any) -> None:
    from bedplate.adaptation.context.clock import Stopwatch
    from bedplate.core.errors import UsageError
    from bedplate.core.executor import Job, LocalExecutor

    list(LocalExecutor().run([Job("lora", f"{THIS_MODULE}:fit", {})]))
    with Stopwatch().timed("tests", "lora"):
        fit()
    raise UsageError("far enough")


def fit() -> None:
    time.sleep(0.8)


def _offer(wheel: Path) -> None:
    """A row `toy` of the catalogue, whose download is this wheel."""
    from bedplate.hub.catalog import CATALOG, Artifact

    content = wheel.read_bytes()
    CATALOG["toy"] = Artifact(
        name="toy",
        artifact_type="base",
        description="a toy",
        licence="Toy-1.0",
        source="pypi:toy-pack==1.0",
        filename=wheel.name,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        members=("toy_pack/model.gguf",),
        licence_file="toy_pack-1.0.dist-info/LICENSE",
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("waits")
    label_skin(root)
    rows = [f"review number {i} of them,{LABELS[i % 2]}" for i in range(300)]
    (root / "rows.csv").write_text("\n".join(["review,label", *rows]) + "\n")
    (root / "in.jsonl").write_text("".join(json.dumps({"review": f"number {i}"}) + "\n" for i in range(96)))
    (root / "task.yaml").write_text(TASK)
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy_pack/model.gguf", random.Random(0).randbytes(1_600_000))
        archive.writestr("toy_pack-1.0.dist-info/LICENSE", "You may.")
    (root / "links").mkdir()
    (root / "links" / WHEEL).write_bytes(wheel.getvalue())
    return root


@pytest.fixture(scope="module")
def shown(place: Path) -> dict[str, str]:
    """What a terminal gets on stderr, of commands that run side by side: they sleep for the most part."""

    def on_terminal(verb: str) -> str:
        ours, theirs = pty.openpty()
        output_dir, home = place / "said" / verb, new_home(place / "homes" / verb)
        environment = {"TERM": "xterm", "COLUMNS": "100", "BEDPLATE_HOME": str(home), "PIP_NO_INDEX": "1"}
        environment |= {"PIP_FIND_LINKS": str(place / "links"), "PIP_CONFIG_FILE": "/dev/null"}
        words = (str(place), verb, *COMMANDS[verb][0])
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(shown_on, ours)
            command = Command(
                output_dir, *words, main=f"{THIS_MODULE}:slowed", terminal=os.ttyname(theirs), **environment
            )
            command.wait()
            os.close(theirs)
            return reading.result()

    with ThreadPoolExecutor(len(COMMANDS)) as pool:
        return dict(zip(COMMANDS, pool.map(on_terminal, COMMANDS), strict=True))


@pytest.mark.parametrize("verb", COMMANDS)
def test_each_long_wait_shows_what_is_done_and_the_time_left(shown: dict[str, str], verb: str) -> None:
    for expected_text in COMMANDS[verb][1]:
        assert expected_text in shown[verb], (expected_text, shown[verb])
