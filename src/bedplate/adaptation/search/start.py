"""How a ladder starts: a context for each base, everything checked before time is spent, and one candidate climbed."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from bedplate.adaptation.context.bases import Bases, source_of
from bedplate.adaptation.context.clock import Clock
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.environment import environment
from bedplate.adaptation.context.outcome import Climbed, RungOutcome
from bedplate.adaptation.rungs import RUNGS, chosen_rungs
from bedplate.adaptation.search.candidates import Candidate, place_of
from bedplate.adaptation.search.guards import guarding_of
from bedplate.adaptation.search.run_rung import climb
from bedplate.adaptation.search.rung_files import fingerprint
from bedplate.adaptation.task.parent import Parent
from bedplate.adaptation.task.spec import AdaptSpec
from bedplate.adaptation.task.task_prompt import check_answers
from bedplate.core.config import dump_config
from bedplate.core.errors import DataError, UsageError
from bedplate.core.executor import Executor
from bedplate.core.files import atomic_write, sha256_json
from bedplate.evaluation.examples import TaskData
from bedplate.evaluation.leaks.seen_rows import write_splits
from bedplate.evaluation.task import Task
from bedplate.skins.prompt import answer_text, prompt_and_longest_answer
from bedplate.skins.run import RUN_FILE, SETTINGS_FILE, Run

log = logging.getLogger("bedplate.adaptation")

LOCK_FILE = ".lock"
"""Held by the process that writes into a run's directory."""
LABELS = "labels"
"""Where files of rows to label lie, below a run's directory."""


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
    climbed: dict[str, Climbed] = {}
    likely: list[str] = []
    with closing(bases), ExitStack() as stack:
        contexts = [
            Context(
                task,
                spec,
                at,
                data.train,
                data.valid,
                data.hashes,
                data.test.n,
                place_of(out, at.suffix),
                clock,
                seed,
                climbed=climbed,
                likely=likely,
                suffix=at.suffix,
                exhaustive=exhaustive,
                parent=parent,
                climb=climb,
                executor=executor,
                run_directory=out,
            )
            for at in bases.all
        ]
        for context in contexts:
            stack.callback(context.close)
        yield contexts


def begin(contexts: Sequence[Context], data: TaskData, out: Path, task_file: Path) -> None:
    """Write down what the run in `out` is asked for, and which rows are in which split."""
    first = contexts[0]
    parent = first.parent
    _tell_of_other_rows(out, first)
    atomic_write(out / SETTINGS_FILE, dump_config(first.task))
    Run(
        id=sha256_json({"run": str(out.absolute()), **fingerprint(first)}),
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
        environment=environment(),
    ).write(out)
    write_splits(out, data)


def _tell_of_other_rows(out: Path, context: Context) -> None:
    """Says what becomes of a run on other rows that `out` holds. A label budget's rows grow from call to call."""
    if not (out / RUN_FILE).is_file() or (out / LABELS).is_dir() or Run.read(out).data == dict(context.hashes):
        return
    log.warning(
        "%s holds a run on other rows: its report is replaced, and skins of it that this run does not make again stay "
        "beside the new ones; to keep the two apart, give another directory",
        out,
    )


def check_bases(contexts: Sequence[Context]) -> None:
    """Every base is loaded once before anything is written: there, able, and with room for the rows."""
    weights: dict[str, str] = {}
    for context in contexts:
        facts = context.at.facts
        if facts.identity.weights_id in weights:
            raise UsageError(
                f"{facts.name} and {weights[facts.identity.weights_id]} are the same base (equal weights); name it once"
            )
        weights[facts.identity.weights_id] = facts.name
    first = next((context for context in contexts if not context.is_encoder), None)
    if first is not None:
        check_answers(first.task, first.model.engine, (*first.train, *first.valid))
    check_lengths(contexts)
    chosen = [RUNGS[name] for name in chosen_rungs(contexts[0].spec)]
    for rung in chosen:
        rung.settings(first or contexts[0])  # reads what the rung will read beside the rows
    if any(rung.traits.makes_child for rung in chosen):
        guarding_of(contexts[0]).check_files()


def check_output(out: Path) -> None:
    """Refuse an output directory that holds something else, or that cannot be written, before time is spent."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out wants a directory")
    if (
        out.is_dir()
        and not (out / SETTINGS_FILE).is_file()
        and any(path.name not in (LOCK_FILE, LABELS) for path in out.iterdir())
    ):
        raise UsageError(f"{out} holds other files and no run of `adapt`; choose a new directory")
    place = out.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {out}: {place} does not allow it; choose a place that can be written")


def climb_candidate(candidate: Candidate) -> RungOutcome:
    """What became of a candidate, under its name; what is finished can be built on by those after it."""
    unfit = candidate.unfit
    if unfit is not None:
        return RungOutcome(candidate.name, "skipped", unfit, skip="impossible")
    outcome = climb(candidate.context, candidate.rung.name, candidate.directory)
    result = None if outcome.result is None else candidate.finish(outcome.result)
    return replace(outcome, rung=candidate.name, result=result)


def check_lengths(contexts: Sequence[Context]) -> None:
    """DataError for a train or valid row that does not fit the context of the base. Where there are several bases, one
    that a row does not fit is left out, with that as the reason, unless no other remains."""
    for context in contexts:
        context.unfit = too_long(context)
    if all(context.unfit is not None for context in contexts):
        raise DataError(contexts[0].unfit or "")


def too_long(context: Context) -> str | None:
    """The first train or valid row that does not fit, as a sentence; None where all do."""
    if context.is_encoder and not context.task.output.labels:
        return f"{context.at.base_name} is an encoder, which writes no answer of kind {context.task.output.kind}"
    prompt, output = context.default_prompt()
    spec, tokenizer = context.at.facts, context.model.tokenizer
    base = context.model.base
    limit = base.spec.context_length
    for example in (*context.train, *context.valid):
        if output.answered_by == "score" and sum(map(len, example.texts.values())) < limit // 5:
            continue  # no token is shorter than a byte and no character longer than four; the prompt is short
        if context.is_encoder:
            prompt_tokens, max_answer = context.model.text_tokens(str(prompt.text(example.inputs))), 0
        else:
            prompt_tokens, max_answer = prompt_and_longest_answer(prompt, tokenizer, example.inputs, output)
            if output.answered_by == "generate":
                answer = answer_text(prompt, output, example.target)
                max_answer = max(max_answer, len(tokenizer.encode(answer, parse_special=False)) + 1)
        if len(prompt_tokens) > base.prompt_room(max_answer):
            answer_note = f" and its answer up to {max_answer:,}" if max_answer else ""
            limit_note = f"more than the context of {spec.name} holds ({limit:,})"
            if tokenizer.answers_apart:
                limit_note = f"but {spec.name} reads {limit:,} at most and writes {base.spec.main.context_length:,}"
            return (
                f"row {example.id}: its prompt has {len(prompt_tokens):,} tokens{answer_note}, {limit_note}; shorten "
                "or remove the row (nothing is cut off silently)"
            )
    return None
