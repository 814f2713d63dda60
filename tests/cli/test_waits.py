"""Waits of more than two seconds on a terminal: what is done, how much of it, and the time that is left."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tiny import write_tiny_base

from bedplate.models.checkpoints.base import load_base
from bedplate.skins.files import write_skin
from bedplate.skins.output import LabelOutput
from bedplate.skins.phrasings import default_continuations, default_prompt
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, Skin

LABELS = ("negative", "positive")
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
# Each step of an engine and each measurement is made to take as long as on a large base; a ladder of one rung.
CODE = """
import json, sys, time
from pathlib import Path
import bedplate.adaptation.ladder as ladder
from bedplate.adaptation.context.clock import Stopwatch
from bedplate.cli.main import main
from bedplate.core.errors import UsageError
from bedplate.core.executor import Job, LocalExecutor
from bedplate.inference.engine import steps
from bedplate.inference.measure import speeds

step = steps.Steps.step
def slow(self, *given, **named):
    time.sleep(0.3)
    return step(self, *given, **named)
steps.Steps.step = slow
speeds._BYTES, speeds._SIZE, speeds._SECONDS = 1 << 20, 64, 0.2

def fit():
    time.sleep(1.3)

def climbed(*given, **named):
    sys.modules["here"] = sys.modules["__main__"]
    list(LocalExecutor().run([Job("lora", "here:fit", {})]))
    with Stopwatch().timed("tests", "lora"):
        time.sleep(1.3)
    raise UsageError("far enough")
ladder.adapt = climbed

for words in json.loads(sys.argv[1]):
    print("===", *words[:2], file=sys.stderr, flush=True)
    try:
        main(words)
    except SystemExit as ended:
        print(f"=== code {ended.code}", file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("waits")
    base = load_base(write_tiny_base(root / "base"))
    skin = Skin(
        name="sentiment",
        bases={"main": BaseReference.of(str(root / "base"), "llama", base.identity)},
        inputs={"review": InputField()},
        output=LabelOutput(labels=LABELS, continuations=default_continuations(LABELS)),
        prompt=default_prompt("reviews", "Decide.", ["review"], LABELS),
        evaluated_with=EvaluatedWith(weights="float32"),
    )
    write_skin(skin, root / "skin")
    rows = [f"review number {i} of them,{LABELS[i % 2]}" for i in range(300)]
    (root / "rows.csv").write_text("\n".join(["review,label", *rows]) + "\n")
    (root / "in.jsonl").write_text("".join(json.dumps({"review": f"number {i}"}) + "\n" for i in range(200)))
    (root / "task.yaml").write_text(TASK)
    return root


def on_terminal(place: Path, commands: list[list[str]]) -> str:
    """What a terminal gets on stderr."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", CODE, json.dumps(commands)],
        cwd=place,
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "BEDPLATE_HOME": str(place / "home")},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 1 << 16)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    child.wait(timeout=60)
    return shown.decode("utf-8", "replace")


def test_each_long_wait_shows_what_is_done_and_the_time_left(place: Path) -> None:
    commands = {
        "evaluate": (["evaluate", "skin", "task.yaml"], ("answers", "/60", "left")),
        "predict": (["predict", "skin", "in.jsonl", "--out", "out.jsonl"], ("predict", "/200 rows", "left")),
        "calibrate": (["plan", "calibrate"], ("this machine", "/4 measurements", "left")),
        "adapt": (
            ["adapt", "task.yaml", "--out", "run"],
            ("adapt: time limit", "/3,600 s", "lora", "tests: lora", "left"),
        ),
    }
    shown = on_terminal(place, [words for words, _ in commands.values()])
    for part, (words, wanted) in zip(shown.split("=== ")[1::2], commands.values(), strict=True):
        assert part.startswith(" ".join(words[:2])), shown
        for one in wanted:
            assert one in part, (one, part)
