"""The fit of one rung as a job that travels: names and paths go in, files come out.

A context is not sent: the process rebuilds it from the run's task file and directory. What was finished before (the
prompt that the base chose, the skins that a cascade is made of) is read from there too.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.clock import Clock
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.search.abstention import abstaining
from bedplate.adaptation.search.candidates import Candidate, candidates_of
from bedplate.adaptation.search.rung_files import config_of, read_plan, read_result, write_result
from bedplate.adaptation.search.start import opened
from bedplate.adaptation.task.parent import read_parent
from bedplate.adaptation.task.task_file import load_adapt_task
from bedplate.core.errors import DataError, UsageError
from bedplate.evaluation.examples import load_examples
from bedplate.skins.run import SETTINGS_FILE, Run


def fit_planned(run: str, suffix: str, rung: str) -> dict[str, Any]:
    """Fit a rung whose plan lies in its directory, and leave the result beside it.

    run: the run's directory; suffix: of the base (or endpoint), as `Context.suffix`. Returns what was written, as JSON:
    the result's file has everything else. UsageError where the plan is not one of this configuration.
    """
    with reopened(Path(run)) as contexts:
        candidate = _restored(candidates_of(contexts, Run.read(Path(run)).rungs), suffix, rung)
        context, config = candidate.context, config_of(candidate.context, candidate.rung)
        plan = read_plan(candidate.directory, config)
        if plan is None:
            raise UsageError(
                f"{candidate.directory} holds no plan of {candidate.name} as this process would fit it: its base, rows "
                "or settings are others than where it was planned"
            )
        start = time.perf_counter()
        result = abstaining(context, candidate.rung.fit(context, plan, candidate.directory))
        seconds = time.perf_counter() - start
        write_result(candidate.directory, config, seconds, result)
        return {"directory": str(candidate.directory), "seconds": seconds, "skin_id": result.skin_id}


@contextmanager
def reopened(run_directory: Path) -> Generator[list[Context]]:
    """The contexts of a run that has begun (`start.begin`), one for each base. DataError where its rows have
    changed."""
    run = Run.read(run_directory)
    settings, task_file = run_directory / SETTINGS_FILE, Path(run.task_file)
    task, spec = load_adapt_task(settings, rungs=run.rungs, anchor_file=task_file)
    parent = None if run.parent is None else read_parent(run.parent, task)
    data = load_examples(task, None if parent is None else parent.assigned)
    if dict(data.hashes) != run.data:
        raise DataError(f"{run_directory}: the rows of {task_file} are no longer those that the run began with")
    clock = Clock(run.budget_seconds, usd=spec.budget.train_usd, usd_per_hour=spec.machine.usd_per_hour)
    with opened(
        task, spec, data, run_directory, clock, seed=run.seed, exhaustive=run.exhaustive, parent=parent
    ) as contexts:
        yield contexts


def _restored(candidates: Sequence[Candidate], suffix: str, rung: str) -> Candidate:
    """The candidate, once what was finished before it can be built on."""
    match: Candidate | None = None
    for candidate in candidates:
        if candidate.context.suffix == suffix and candidate.rung.name == rung:
            match = candidate
            continue
        finished = read_result(candidate.directory, config_of(candidate.context, candidate.rung))
        if finished is not None:
            candidate.rung.remember(candidate.context, finished[0])
            candidate.finish(finished[0])
    if match is None:
        raise UsageError(f"the run has no rung {rung!r} on the base {suffix or 'that is named first'!r}")
    return match
