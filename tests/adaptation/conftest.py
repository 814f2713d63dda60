"""A tiny random base, and a small task whose words decide its labels."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import jsonschema_rs
import pytest
import yaml
from matplotlib.figure import Figure
from tests.tiny import NATIVE_SHAPE, write_tiny_base

from bedplate.adaptation import ladder
from bedplate.adaptation.context import context, outcome, throughput
from bedplate.adaptation.postprocess import compare_skins
from bedplate.adaptation.report.report import Report, write_report
from bedplate.adaptation.rungs import from_scratch
from bedplate.adaptation.rungs.lora import DORA, LORA
from bedplate.adaptation.rungs.soft_prompt import SOFT_PROMPT
from bedplate.adaptation.rungs.tuning import TuningRung
from bedplate.adaptation.verdict import gate
from bedplate.report import plots
from bedplate.report.schema import report_schema

OF_P95 = ("test_ladder.py", "test_gate.py", "test_call_limits.py", "test_advice.py", "test_requirements.py")
GOOD, BAD = ("great", "works", "well"), ("terrible", "broke", "quality")


@pytest.fixture(scope="session", autouse=True)
def published() -> Iterator[None]:
    """Every report that a test's ladder writes is of the published schema."""
    check = jsonschema_rs.Draft202012Validator(report_schema())

    def written(report: Report, out: Path, skins: Iterable[str]) -> None:
        write_report(report, out, skins)
        check.validate(json.loads((out / "report.json").read_text("utf-8")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder, "write_report", written)
        yield


@pytest.fixture(scope="session", autouse=True)
def fewest_calls() -> Iterator[None]:
    """Latency is read off a few calls, not of up to 64."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (context, compare_skins, from_scratch):
            patch.setattr(module, "LATENCY_CALLS", 6)
        yield


@pytest.fixture(scope="module", autouse=True)
def fewest_slow_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where a limit of p95 is not what a module tests, the 80th percentile stands for it: a quarter of the calls show
    that it is kept, as surely."""
    with pytest.MonkeyPatch.context() as patch:
        for module in () if request.path.name in OF_P95 else (context, outcome, gate):
            patch.setattr(module, "SLOW", 0.8)
        yield


@pytest.fixture(scope="module", autouse=True)
def fewest_readings(request: pytest.FixtureRequest) -> Iterator[None]:
    """The speed that a ladder plans with is read off fewer rows where no plan is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name != "budgets":
            patch.setattr(throughput, "BATCH", 16)
            patch.setattr(throughput, "CALLS", 4)
        yield


def use_one_seed(patch: pytest.MonkeyPatch, *rungs: TuningRung) -> None:
    for rung in rungs:
        patch.setattr(rung, "recipe", replace(rung.recipe, seeds=1))


@pytest.fixture(scope="module", autouse=True)
def fewest_seeds() -> Iterator[None]:
    """Rungs that train weights are fitted once, not from up to three seeds: `test_ladder` chooses among those."""
    with pytest.MonkeyPatch.context() as patch:
        use_one_seed(patch, LORA, DORA, SOFT_PROMPT)
        yield


@pytest.fixture(scope="module", autouse=True)
def quick_pictures() -> Iterator[Callable[..., str]]:
    """A ladder's pictures are made and not drawn, nor are their labels placed, which would take a tenth of its time
    each; gives what draws them, without a look at the room around them, for the ladder of all rungs. `tests.report`
    draws each as it is."""
    drawing = plots.svg_of

    def undrawn(_: Figure, label: str) -> str:
        return f'<svg role="img" aria-label="{label}"></svg>'

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "LAYOUT", None)
        patch.setattr(plots, "_place", lambda *_: None)
        patch.setattr(plots, "svg_of", undrawn)
        yield drawing


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny", layers=2, **NATIVE_SHAPE)


def write_rows(path: Path, groups: int = 150, rows_per_group: int = 2, noise: float = 0.05, seed: int = 0) -> Path:
    """Rows with a label that a word gives away, in groups."""
    generator = random.Random(seed)
    lines: list[str] = []
    for group in range(groups):
        for number in range(rows_per_group):
            good = generator.random() < 0.55
            word = generator.choice(GOOD if good else BAD)
            if generator.random() < noise:
                good = not good
            text = f"this product {word} number {group} {number} {generator.choice('abcdefgh')}"
            label = "positive" if good else "negative"
            lines.append(json.dumps({"id": f"{group}_{number}", "text": text, "label": label, "group": f"g{group}"}))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_task(directory: Path, base: Path, *, rows: Path | None = None, groups: int = 64, **adapt: object) -> Path:
    """A task file with its rows beside it: these, or two in each of so many groups."""
    directory.mkdir(parents=True, exist_ok=True)
    data = write_rows(directory / "rows.jsonl", groups) if rows is None else rows
    task = {
        "task": "toy-sentiment",
        "inputs": {"review": {"column": "text", "kind": "text"}},
        "output": {"kind": "label", "labels": ["negative", "positive"]},
        "instructions": "Say whether the review is positive or negative.",
        "data": {
            "source": str(data),
            "target": "label",
            "group_by": "group",
            "split": {"train": 0.5, "valid": 0.25, "test": 0.25},
        },
        "metric": "accuracy",
        "adapt": {
            "bases": [str(base)],
            "target": {"value": 0.75, "confidence": 0.9},
            "budget": {"p95_ms": 60000, "max_prompt_tokens": 400},
            "machine": {"usd_per_hour": 0.1, "as_of": "2026-11-24"},
            **adapt,
        },
    }
    path = directory / "task.yaml"
    path.write_text(yaml.safe_dump(task, sort_keys=False))
    return path


@pytest.fixture
def toy_task(tmp_path: Path, tiny_base: Path) -> Path:
    return write_task(tmp_path / "task", tiny_base, groups=40)
