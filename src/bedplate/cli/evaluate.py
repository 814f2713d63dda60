"""`bedplate evaluate`: score a skin on a split of a task and show the number with its error bars."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bedplate.cli.options import AllowOtherWeights, JudgedKernel, JudgedWeights
from bedplate.core.progress import console

if TYPE_CHECKING:
    from bedplate.evaluation.harness import Evaluation
    from bedplate.evaluation.task import TaskData


def evaluate(
    skin: Annotated[str, typer.Argument(help="A skin's directory.", show_default=False)],
    task_file: Annotated[Path, typer.Argument(metavar="TASK.yaml", help="The task file.", show_default=False)],
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "valid",
    out: Annotated[Path | None, typer.Option(help="Write everything as JSON here, every row included.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value, over the task file.")] = None,
    weights: JudgedWeights = None,
    kernel: JudgedKernel = None,
    allow_other_weights: AllowOtherWeights = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, without the rows.")] = False,
) -> None:
    """Score a skin on a split of a task: estimate, interval, and where it is wrong."""
    from bedplate.core.files import atomic_write
    from bedplate.evaluation import harness
    from bedplate.evaluation.task import load_examples, load_task
    from bedplate.inference.predict import Predictor

    task = load_task(task_file, overrides or ())
    data = load_examples(task)
    loaded = harness.load_predictor(skin, weights=weights, kernel=kernel, allow_other_weights=allow_other_weights)
    if isinstance(loaded, Predictor):
        for warning in loaded.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    result = harness.evaluate(loaded, task, split=split, data=data)
    report = _report(result, data)
    if out is not None:
        atomic_write(out, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if as_json:
        print(json.dumps({key: value for key, value in report.items() if key != "rows"}, allow_nan=False))
        return
    _show(result, data)
    if out is not None:
        print(f"written to {out}")


def _report(result: Evaluation, data: TaskData) -> dict[str, Any]:
    from dataclasses import asdict

    from bedplate.evaluation.slices import calibration, slices

    measured = calibration(result)
    return {
        **result.to_json(),
        "coverage": result.coverage,
        "answered": result.answered,
        "slices": [asdict(part) for part in slices(result)],
        "calibration": None if measured is None else asdict(measured),
        "counts": dict(data.counts),
        "hashes": dict(data.hashes),
        "notes": list(data.notes),
    }


def _show(result: Evaluation, data: TaskData) -> None:
    from rich.markup import escape
    from rich.table import Table

    from bedplate.evaluation.slices import calibration, slices

    low, high = result.interval
    percent = f"{result.confidence:.0%}"
    print(f"{result.task}: {result.metric} {result.estimate:.3f} on {result.split}", end="")
    print(f", {percent} interval {low:.3f}-{high:.3f}")
    bound = result.reason
    if result.lower_bound is not None:
        bound = f"one-sided {percent} lower bound {result.lower_bound:.3f}"
    groups = f"{result.n} rows" + (f" in {result.groups} groups" if result.groups < result.n else "")
    print(f"{bound}; {groups}" + (f"; {result.unparsed} answers could not be parsed" if result.unparsed else ""))
    if result.coverage < 1:
        among = "" if result.answered is None else f"; row score among them {result.answered:.3f}"
        print(f"answered {result.coverage:.1%} of the rows and abstained on the rest{among}")
    measured = calibration(result)
    if measured is not None:
        print(f"expected calibration error {measured.error:.3f}")
    for note in data.notes:
        print(f"note: {note}")
    if result.split == "test":
        print("note: the ledger now has these test rows as opened; a later verdict of `adapt` on them is exploratory")
    table = Table("slice", "n", "row score", f"{percent} interval", box=None)
    for part in slices(result):
        low, high = part.interval
        name = escape(f"{part.by} {part.value}")
        table.add_row(name, str(part.n), f"{part.estimate:.3f}", f"{low:.3f}-{high:.3f}")
    console().print(table)
