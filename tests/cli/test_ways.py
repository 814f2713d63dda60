"""--dtype, --weights and --kernel: what becomes of them, verb by verb, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import write_tiny_base

from bedplate.adaptation import ladder
from bedplate.adaptation.context.bases import Bases
from bedplate.adaptation.task.task_file import load_adapt_task
from bedplate.cli.main import main
from bedplate.core.errors import ConfigError
from bedplate.core.executor import ProcessExecutor
from bedplate.inference.native.library import load
from bedplate.inference.predict.opening import OpenOptions

SIZES: dict[str, Any] = {"hidden_size": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "feedforward_size": 96}
native_only = pytest.mark.skipif(isinstance(load(), str), reason=f"no native kernel here: {load()}")

TASK = """
task: t
inputs: {text: {column: text, kind: text}}
output: {kind: label, labels: [a, b]}
instructions: Say a or b.
data:
  {source: rows.jsonl, target: label, group_by: null, ungrouped_because: made up,
   split: {train: 0.6, valid: 0.2, test: 0.2}, seed: 0}
metric: accuracy
adapt:
  bases: [base]
  target: {value: 0.8}
  machine: {usd_per_hour: 0.1, as_of: 2026-01-01}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "base", dtype=torch.bfloat16, **SIZES)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@native_only
@pytest.mark.parametrize(
    ("options", "weights", "kernel"),
    [
        (["--kernel", "torch", "--dtype", "float32"], "float32", "torch"),
        (["--weights", "bfloat16", "--kernel", "native"], "bfloat16", "native"),
        (["--weights", "int4"], "int4", "native"),
        (["--weights", "int8", "--kernel", "torch"], "int8", "torch"),
    ],
)
def test_generate_runs_as_it_is_asked_to(
    directory: Path, capsys: pytest.CaptureFixture[str], options: list[str], weights: str, kernel: str
) -> None:
    code, out, _ = run(capsys, "generate", directory, "the", "--max-tokens", 2, "--json", *options)
    facts = json.loads(out)
    assert (code, facts["weights"], facts["kernel"]) == (0, weights, kernel)


def test_what_cannot_be_is_one_line(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--weights", "int4", "--kernel", "native", "--dtype", "float16")
    code, _, error = run(capsys, "generate", directory, "the", *options)
    assert code == 2
    assert error.startswith(f"error: {directory}: the native kernel makes int4 weights from bfloat16 or float32")
    code, _, error = run(capsys, "generate", directory, "the", "--dtype", "float8")
    assert code == 2
    assert "--dtype" in error
    code, _, error = run(capsys, "chat", directory, "--weights", "bfloat16", "--dtype", "float32")
    assert code == 2
    assert "read from a base of that dtype" in error


def test_adapts_options_are_written_over_the_task_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded_overrides: list[list[str]] = []
    executors: list[object] = []

    def fake(*_: object, overrides: list[str], executor: object, **__: object) -> None:
        recorded_overrides.append(overrides)
        executors.append(executor)
        raise ConfigError("far enough")

    monkeypatch.setattr(ladder, "adapt", fake)
    (tmp_path / "task.yaml").write_text(TASK)
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "base").mkdir()
    line = ["adapt", tmp_path / "task.yaml", "--out", tmp_path / "out"]
    run(capsys, *line, "--dtype", "float32", "--kernel", "torch", "metric=macro_f1")
    run(capsys, *line, "--weights", "int4", "--isolate")
    assert recorded_overrides == [
        ["metric=macro_f1", "adapt.dtype=float32", "adapt.kernel=torch"],
        ["adapt.weights=int4"],
    ]
    assert [type(executor) for executor in executors] == [type(None), ProcessExecutor]


def test_a_task_file_says_how_bases_are_held(tmp_path: Path, directory: Path) -> None:
    (tmp_path / "task.yaml").write_text(TASK)
    task, spec = load_adapt_task(tmp_path / "task.yaml")
    assert spec.opening(task) == OpenOptions(use="score", quantised=False)
    task, spec = load_adapt_task(tmp_path / "task.yaml", ["adapt.dtype=float32", "adapt.kernel=torch"])
    bases = Bases(["base"], [str(directory)], spec.opening(task))
    try:
        facts = bases.all[0].facts
        assert (facts.dtype, facts.weights, facts.kernel) == ("float32", "float32", "torch")
        child = bases.all[0].child(directory)  # whatever it is stored in, it is held as its parent
        assert (child.facts.dtype, child.facts.kernel) == ("float32", "torch")
    finally:
        bases.close()
    with pytest.raises(ConfigError, match=r"adapt.weights"):
        load_adapt_task(tmp_path / "task.yaml", ["adapt.weights=int3"])
