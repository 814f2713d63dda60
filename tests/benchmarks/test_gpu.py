"""The comparison on a GPU, in small and on the processor: each part runs, and none spoils the page of the others."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
import torch

PLACE = Path(__file__).parent.parent.parent / "benchmarks/gpu"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A module of benchmarks/gpu/, which is no package."""
    monkeypatch.syspath_prepend(str(PLACE))
    return import_module


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("part", "speeds", "checks"),
    [
        ("numerics", 0, 6),
        ("training", 2, 1),
        pytest.param("engine", 4, 0, marks=pytest.mark.slow),
        pytest.param("adapters", 3, 0, marks=pytest.mark.slow),
    ],
)
def test_a_part_runs_in_small_on_the_processor(
    load, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, speeds: int, checks: int
) -> None:
    results, file = load("results"), tmp_path / "results.jsonl"
    arguments = ["--device", "cpu", "--small", "--models", str(models), "--results", str(file)]
    monkeypatch.setattr(sys, "argv", [part, *arguments])
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        load(part).main()
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    measurements = results.read(file)
    assert (
        sum(isinstance(measurement, results.Speed) and measurement.ours > 0 for measurement in measurements) == speeds
    )
    assert [measurement.passed for measurement in measurements if isinstance(measurement, results.Check)] == [
        True
    ] * checks


def test_a_part_that_fails_or_takes_too_long_stops_no_other(
    load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = load("bench")
    scripts = {
        "good": "add(Speed('decode', 20.0, 'tokens/s', 10.0, 'peer 1.0'))",
        "broken": "add(Check('logits', 0.5, 0.1)); raise ValueError('a | b')",
        "slow": "add(Skipped('x', 'y')); __import__('time').sleep(60)",
        "late": "",
    }
    for name, text in scripts.items():
        lines = f"import sys; sys.path.append({str(PLACE)!r}); from results import *; add = Part().add; {text}\n"
        (tmp_path / f"{name}.py").write_text(lines)
    monkeypatch.setattr(bench, "SCRIPTS", tmp_path)
    monkeypatch.setattr(bench, "PARTS", {"good": 30.0, "broken": 30.0, "slow": 2.0, "late": 0.0})
    monkeypatch.setattr(sys, "argv", ["bench.py", "--device", "cpu", "--small", "--out", str(tmp_path / "out")])
    bench.main()
    page = (tmp_path / "out/results.md").read_text()
    assert "| good | decode | 20 tokens/s | peer 1.0 10 | 2.00 |" in page
    assert "| broken | logits | 0.5 | 0.1 | **too much**" in page
    assert "- broken: the rest: it failed with 1: … " in page
    assert "ValueError: a / b" in page
    assert "- slow: x: y\n- slow: the rest: it took longer than 2 s" in page
    assert "- late: all of it: no time was left" in page
    saved_results = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["kind"] for row in saved_results["results"]] == ["speed", "check", "left", "left", "left", "left"]
    assert saved_results["about"]["torch"] == version("torch")
