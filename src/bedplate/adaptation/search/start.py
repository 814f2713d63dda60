"""How a ladder starts: a context for each base, everything checked before time is spent, and one candidate climbed.

The fit of a rung is a job that travels: names and paths go in, files come out. A context is not sent: the other process
rebuilds it from the run's task file and directory, and reads there what was finished before (`fit_planned`)."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.bases import Bases, source_of
from bedplate.adaptation.context.clock import Clock
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import Climbed, RungOutcome
from bedplate.adaptation.rungs import RUNGS, chosen_rungs
from bedplate.adaptation.search import rung_files
from bedplate.adaptation.search.base_format import restore_formats
from bedplate.adaptation.search.candidates import Candidate, candidates_of, place_of
from bedplate.adaptation.search.guards import guarding_of
from bedplate.adaptation.search.run_rung import abstaining, climb
from bedplate.adaptation.task.parent import Parent, read_parent
from bedplate.adaptation.task.spec import AdaptSpec
from bedplate.adaptation.task.task_file import load_adapt_task
from bedplate.adaptation.task.task_prompt import check_answers, check_lengths
from bedplate.core.config import dump_config
from bedplate.core.errors import DataError, UsageError
from bedplate.core.executor import Executor
from bedplate.core.files import atomic_write, file_lock, sha256_json
from bedplate.evaluation.examples import SPLITS, TaskData, load_examples
from bedplate.evaluation.leaks.seen_rows import write_splits
from bedplate.evaluation.task import Task
from bedplate.inference.native.library import load
from bedplate.models.precision import resolve_device
from bedplate.skins.records import RUN_FILE, SETTINGS_FILE, Run

log = logging.getLogger("bedplate.adaptation")

LOCK_FILE = ".lock"
"""Held by the process that writes into a run's directory."""
LABELS = "labels"
"""Where files of rows to label lie, below a run's directory."""


def set_up(spec: AdaptSpec) -> None:
    """Has the CPU kernel compiled where bases may run on it, which takes about a minute, once on a machine."""
    if spec.kernel != "torch" and resolve_device("auto").type == "cpu":
        load()


@contextmanager
def opened(
    task: Task,
    spec: AdaptSpec,
    data: TaskData,
    out: Path,
    clock: Clock,
    *,
    seed: int,
    exhaustive: bool = False,
    parent: Parent | None = None,
    executor: Executor | None = None,
) -> Generator[list[Context]]:
    """A context for each base of the task, the first in front, which share what was climbed and the clock; the bases
    leave memory in the end. executor: runs the fits of rungs elsewhere."""
    bases = Bases(spec.bases, [source_of(base, task) for base in spec.bases], spec.opening(task))
    shared: dict[str, Any] = {"climbed": dict[str, Climbed](), "likely": list[str](), "climb": climb}
    shared |= {"exhaustive": exhaustive, "parent": parent, "executor": executor, "run_directory": out}
    rows = data.train, data.valid, data.hashes, data.test.n
    with closing(bases), ExitStack() as stack:
        contexts: list[Context] = []
        for at in bases.all:
            place, suffix = place_of(out, at.suffix), at.suffix
            contexts.append(Context(task, spec, at, *rows, place, clock, seed, suffix=suffix, **shared))
            stack.callback(contexts[-1].close)
        yield contexts


def begin(contexts: Sequence[Context], data: TaskData, out: Path, task_file: Path) -> None:
    """Write down what the run in `out` is asked for, and which rows are in which split."""
    first = contexts[0]
    parent = first.parent
    # a label budget's rows grow from call to call
    earlier = Run.read(out).data if (out / RUN_FILE).is_file() and not (out / LABELS).is_dir() else {}
    if earlier and any(earlier.get(name) != first.hashes[name] for name in SPLITS):
        log.warning(
            "%s holds a run on other rows: its report is replaced, and skins of it that this run does not make again "
            "stay beside the new ones; to keep the two apart, give another directory",
            out,
        )
    atomic_write(out / SETTINGS_FILE, dump_config(first.task))
    Run(
        id=sha256_json({"run": str(out.absolute()), **rung_files.fingerprint(first)}),
        task=first.task.task,
        task_file=str(task_file.absolute()),
        seed=first.seed,
        rungs=chosen_rungs(first.spec),
        budget_seconds=first.clock.seconds,
        exhaustive=first.exhaustive,
        parent=None if parent is None else str(parent.skin.directory),
        parent_id=None if parent is None else parent.id,
        bases=tuple(context.at.facts.identity.weights_id for context in contexts),
        data=dict(first.hashes),
        environment=rung_files.environment(),
    ).write(out)
    write_splits(out, data)


def check_bases(contexts: Sequence[Context]) -> None:
    """Every base is loaded once before anything is written: there, able, and with room for the rows. Where there are
    several, one that a row does not fit is left out, with that as the reason, unless no other remains."""
    weights: dict[str, str] = {}
    for context in contexts:
        facts = context.at.facts
        if facts.identity.weights_id in weights:
            raise UsageError(
                f"{facts.name} and {weights[facts.identity.weights_id]} are the same base (equal weights); name it once"
            )
        weights[facts.identity.weights_id] = facts.name
    first = next((context for context in contexts if context.backbone.writes), None)
    if first is not None:
        check_lengths(first.task, first.written, len(first.train))
        check_answers(first.task, first.model.engine, (*first.train, *first.valid))
    for context in contexts:
        context.unfit = too_long(context)
    if all(context.unfit is not None for context in contexts):
        raise DataError(contexts[0].unfit or "")
    chosen = [RUNGS[name] for name in chosen_rungs(contexts[0].spec)]
    for rung in chosen:
        rung.settings(first or contexts[0])  # reads what the rung will read beside the rows
    if any(rung.traits.makes_child for rung in chosen):
        guarding_of(contexts[0]).check_files()


def check_output(out: Path) -> None:
    """Refuse an output directory that holds something else, that another process writes, or that cannot be written,
    before time is spent."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out wants a directory")
    others = [] if not out.is_dir() else [path for path in out.iterdir() if path.name not in (LOCK_FILE, LABELS)]
    if others and not (out / SETTINGS_FILE).is_file():
        raise UsageError(f"{out} holds other files and no run of `adapt`; choose a new directory")
    if (out / LOCK_FILE).is_file():
        with file_lock(out / LOCK_FILE, wait=False):
            pass
    place = out.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {out}: {place} does not allow it; choose a place that can be written")


@contextmanager
def claimed(out: Path) -> Generator[None]:
    """Keep other processes out of a run's directory; what was made for it goes again where nothing was written."""
    made = [path for path in (out, *out.parents) if not path.exists()]
    with file_lock(out / LOCK_FILE, wait=False):
        try:
            yield
        finally:
            if made and [path.name for path in out.iterdir()] == [LOCK_FILE]:
                (out / LOCK_FILE).unlink()
                with suppress(OSError):  # a parent that somebody else writes into by now
                    for path in made:
                        path.rmdir()


def climb_candidate(candidate: Candidate) -> RungOutcome:
    """What became of a candidate, under its name; what is finished can be built on by those after it."""
    unfit = candidate.unfit
    if unfit is not None:
        return RungOutcome(candidate.name, "skipped", unfit, skip="impossible")
    outcome = climb(candidate.context, candidate.rung.name, candidate.directory)
    result = None if outcome.result is None else candidate.finish(outcome.result)
    return replace(outcome, rung=candidate.name, result=result)


def too_long(context: Context) -> str | None:
    """The first train or valid row that does not fit, as a sentence; None where all do."""
    backbone, base = context.backbone, context.model.base
    if backbone.unfit is not None:
        return backbone.unfit
    prompt, output = context.default_prompt()
    limit = base.spec.context_length
    for example in (*context.train, *context.valid):
        if output.answered_by == "score" and sum(map(len, example.texts.values())) < limit // 5:
            continue  # no token is shorter than a byte and no character longer than four; the prompt is short
        prompt_tokens, max_answer = backbone.row_tokens(prompt, output, example)
        if prompt_tokens > base.prompt_room(max_answer):
            answer_note = f" and its answer up to {max_answer:,}" if max_answer else ""
            return (
                f"row {example.id}: its prompt has {prompt_tokens:,} tokens{answer_note}, {backbone.capacity}; shorten "
                "or remove the row (nothing is cut off silently)"
            )
    return None


# --- the fit of a rung as a job


def fit_planned(run: str, suffix: str, rung: str, used: float = 0.0) -> dict[str, Any]:
    """Fit a rung whose plan lies in its directory, and leave the result beside it.

    run: the run's directory; suffix: of the base (or endpoint), as `Context.suffix`; used: seconds of the run's
    budget. Returns what was written, as JSON: the result's file has everything else. UsageError where the plan is not
    one of this configuration.
    """
    with reopened(Path(run)) as contexts:
        candidate = _restored(candidates_of(contexts, Run.read(Path(run)).rungs), suffix, rung)
        candidate.context.clock.add(used)
        context, config = candidate.context, rung_files.config_of(candidate.context, candidate.rung)
        plan = rung_files.read_plan(candidate.directory, config)
        if plan is None:
            raise UsageError(
                f"{candidate.directory} holds no plan of {candidate.name} as this process would fit it: its base, rows "
                "or settings are others than where it was planned"
            )
        start = time.perf_counter()
        result = abstaining(context, candidate.rung.fit(context, plan, candidate.directory))
        seconds = time.perf_counter() - start
        rung_files.write_result(candidate.directory, config, seconds, result)
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
        restore_formats(contexts)
        yield contexts


def _restored(candidates: Sequence[Candidate], suffix: str, rung: str) -> Candidate:
    """The candidate, once what was finished before it can be built on."""
    match: Candidate | None = None
    for candidate in candidates:
        if candidate.context.suffix == suffix and candidate.rung.name == rung:
            match = candidate
            continue
        context = candidate.context
        config = rung_files.config_of(context, candidate.rung)
        finished = rung_files.read_result(candidate.directory, config, context.valid)
        if finished is not None:
            candidate.rung.remember(context, finished[0])
            candidate.finish(finished[0])
    if match is None:
        raise UsageError(f"the run has no rung {rung!r} on the base {suffix or 'that is named first'!r}")
    return match
