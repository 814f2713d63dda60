"""`bedplate pretrain`: trains a base as a run file says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllColumns, Overrides, output_directory
from bedplate.core.errors import RankError
from bedplate.core.tables import numbers, show

if TYPE_CHECKING:
    from bedplate.pretraining.run.pretrain import Pretrained

GOES_ON = "give the same command again to go on from the state that was saved last"


def pretrain(
    run: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file.", callback=paths.existing)],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, output_directory(help="The run's directory. Default: runs/NAME, where NAME is `run` in the file.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, memory, time and cost, and train nothing.")
    ] = False,
    all_columns: AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a base: from texts or a corpus, from nothing or further from a base (`base:` in the file).

    Everything lies in one directory: the resolved file, metrics, checkpoints, a page, and at the end the base in
    Hugging Face layout with its model card. The same command resumes a run that was stopped, to the same weights
    bit by bit; Ctrl-C and SIGTERM save first. Several processes (torchrun, a Slurm step) share one run as `parallel:`
    in the file says, and may be another number when it is resumed.

    \b
      bedplate pretrain examples/pretrain/stdlib.yaml
      bedplate pretrain run.yaml model.params=10M tokens=200M --dry-run
      torchrun --nproc-per-node 8 -m bedplate pretrain run.yaml
    """
    from bedplate.pretraining.runfile.file import look  # loads no torch, so that a typo is answered at once

    look(run, overrides or (), reads_data=not dry_run)
    from bedplate.pretraining.runfile.file import load_run

    run_config = load_run(run, overrides or ())
    if dry_run:
        from bedplate.pretraining.plan.dry_run import plan_run, show_plan

        plan = plan_run(run_config)
        print(json.dumps(plan, allow_nan=False)) if as_json else show_plan(plan)
        return
    from bedplate.inference.execution.threads import use_cores
    from bedplate.pretraining.run import pretrain as runs
    from bedplate.training.parallel.launch import process_of

    use_cores()
    try:
        pretrained = runs.pretrain(run_config, out)
    except RankError as error:
        if error.reported:
            raise typer.Exit(error.exit_code) from error
        raise
    if process_of(os.environ).rank:
        return  # the first process says it
    if as_json:
        print(json.dumps(_values(pretrained), allow_nan=False))
        return
    _show(pretrained)


def _values(pretrained: Pretrained) -> dict[str, Any]:
    result = pretrained.result
    return {
        "directory": str(pretrained.directory),
        "base": str(pretrained.base),
        "steps": result.steps,
        "tokens": pretrained.judged["tokens"],
        "seconds": result.seconds,
        "resumed_at": result.resumed_at,
        "held_out": pretrained.judged["held_out"],
        "suites": pretrained.judged["suites"],
        "baselines": pretrained.baselines,
    }


def _show(pretrained: Pretrained) -> None:
    from bedplate.pretraining.page.page import measure_of

    result = pretrained.result
    tokens, minutes = pretrained.judged["tokens"], result.seconds / 60
    print(f"{tokens:,} tokens in {result.steps:,} steps, {minutes:.1f} minutes of training")
    names = list(dict.fromkeys(name for scores in pretrained.baselines.values() for name in scores))
    rows: list[tuple[str, ...]] = []
    measure = ""
    for name, evaluation in pretrained.judged["held_out"].items():
        measure, value = measure_of(evaluation)
        scores = pretrained.baselines.get(name)
        rows.append(
            (name, f"{value:.3f}", *("" if scores is None else f"{scores[baseline]:.3f}" for baseline in names))
        )
    show(("held out", *numbers(measure, *names)), rows)
    for name, suite in pretrained.judged["suites"].items():
        print(f"{name}: {suite['measure']} {suite['value']:.3f} of {suite['n']} items")
    print(f"base: {pretrained.base}")
    print(f"page: {pretrained.directory / 'page.html'}")
