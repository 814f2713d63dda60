"""`bedplate init`: a look at a file of rows, and a task file for it."""

from __future__ import annotations

import datetime
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bedplate.cli import paths
from bedplate.cli.options import Overwrite, Wide, duration, program
from bedplate.core.errors import UsageError
from bedplate.core.progress import console
from bedplate.core.tables import Column, numbers, show

if TYPE_CHECKING:
    from bedplate.adaptation.task.draft import Draft
    from bedplate.data.profile import Profile
    from bedplate.data.rows import Rows
    from bedplate.evaluation.examples import TaskData


def init(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA.csv",
            help="The rows: .csv, .tsv, .jsonl or .parquet, with a column of texts and one of answers.",
            show_default=False,
            callback=paths.existing,
        ),
    ],
    bases: Annotated[
        list[str] | None,
        typer.Argument(metavar="BASE", help="Bases to adapt. Default: smollm2-135m.", show_default=False),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The task file to write.", callback=paths.new_file, show_default="task.yaml")
    ] = Path("task.yaml"),
    target: Annotated[str | None, typer.Option(help="The column of answers.", show_default=False)] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--input", help="A column of what is asked with. Repeatable.", show_default=False),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="A column of what rows belong to and must not be split over, or none.", show_default=False),
    ] = None,
    instructions: Annotated[str | None, typer.Option(help="What the base is told to do.", show_default=False)] = None,
    name: Annotated[
        str | None, typer.Option(help="The task's name. Default: the data file's.", show_default=False)
    ] = None,
    bar: Annotated[
        float | None,
        typer.Option(help="What the metric must be shown to reach (the threshold).", show_default=False),
    ] = None,
    budget: Annotated[float, duration(help="What the whole search may take. Default: 10m.")] = 600.0,
    usd_per_hour: Annotated[float, typer.Option(min=0, help="What an hour of this machine costs.")] = 0.10,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take what is guessed and said.")] = False,
    overwrite: Overwrite = False,
    wide: Wide = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; asks nothing.")] = False,
) -> None:
    """Look at a file of rows (columns, labels, groups, duplicates, lengths) and write a commented task file for it.

    On a terminal it asks about what it guessed; otherwise options say it. Nothing leaves this machine, and no base is
    loaded.

    \b
      bedplate init tickets.csv
      bedplate init tickets.csv --target category --input message --group customer_id --yes
      bedplate adapt task.yaml --out runs/tickets
    """
    paths.free(out, overwrite)
    if bar is not None and not 0 < bar < 1:
        raise UsageError(f"--bar is {bar:g}; it lies between 0 and 1")
    if not budget > 0:
        raise UsageError("--budget must be above 0")
    chosen = bases or ["smollm2-135m"]
    for one in chosen:
        paths.base(one)
    from bedplate.adaptation.task.draft import draft, guess_group, guess_inputs, guess_target, task_text
    from bedplate.core.files import atomic_write
    from bedplate.data.profile import profiles
    from bedplate.data.sources import read_rows

    rows = read_rows(str(data.absolute()))
    found = profiles(rows)
    asks = not yes and not as_json and sys.stdin.isatty() and sys.stdout.isatty()
    if not as_json:
        _show_columns(rows, found, data)
    inputs, grouped = list(text or ()), group != "none"
    group = group if grouped else None
    if asks:
        if target is None:
            target = _ask("Which column is the answer?", guess_target(found, inputs), found)
        if not inputs:
            guessed = guess_inputs(found, target or "", group)
            inputs = [_ask("Which column is it asked with?", guessed[0] if guessed else None, found) or ""]
        if group is None and grouped:
            guess = guess_group(found, (*inputs, target or ""))
            group = _ask("Which column says what rows belong together (none)?", guess, found, optional=True)
            grouped = group is not None
    made = draft(rows, inputs=inputs, target=target, group=group, grouped=grouped)
    if asks and instructions is None:
        from bedplate.adaptation.task.draft import default_instructions

        instructions = typer.prompt("What is to be done, in a sentence?", default=default_instructions(made))
    content = task_text(
        made,
        name=name or re.sub(r"[^A-Za-z0-9._-]+", "-", data.stem).strip("-._") or "task",
        source=_from(data, out),
        instructions=instructions,
        bases=chosen,
        bar=bar,
        minutes=budget / 60,
        usd_per_hour=usd_per_hour,
        today=datetime.date.today(),
    )
    split, seen = _checked(content, data, out)
    made = replace(made, notes=(*made.notes, *seen))
    atomic_write(out, content)
    if as_json:
        print(json.dumps(_values(made, split, out), ensure_ascii=False))
        return
    _show(made, split, out)


def _ask(question: str, guess: str | None, found: Mapping[str, Profile], *, optional: bool = False) -> str | None:
    """A column's name, asked for until it is one."""
    while True:
        said = typer.prompt(question, default=guess or ("none" if optional else None)).strip()
        if said in found:
            return said
        if optional and said in ("none", ""):
            return None
        print(f"There is no column {said!r}; the columns are {', '.join(found)}")


def _from(data: Path, out: Path) -> str:
    """The data file as from beside the task file."""
    return os.path.relpath(data.absolute(), out.absolute().parent)


def _checked(content: str, data: Path, out: Path) -> tuple[TaskData, list[str]]:
    """The rows as the task file will have them read, so that what cannot work is said now, and what looks like groups
    beside those it names. ConfigError, DataError."""
    from bedplate.core.config import parse_config
    from bedplate.evaluation.examples import load_examples
    from bedplate.evaluation.leaks.answered import sources_of
    from bedplate.evaluation.leaks.hidden import hidden_groups
    from bedplate.evaluation.leaks.table import table_of
    from bedplate.evaluation.task import Task

    # beside the task file there may be no directory yet
    task = parse_config(content, Task, str(out), [f"data.source={json.dumps(str(data.absolute()))}"])
    sources = sources_of(task)
    found, _ = hidden_groups(table_of(task, sources))
    seen = [f"`adapt` will ask: {one.says}." for one in found if one.strong]
    return load_examples(task, given=sources), seen


def _values(made: Draft, split: TaskData, out: Path) -> dict[str, Any]:
    return {
        "task_file": str(out),
        "inputs": list(made.inputs),
        "target": made.target,
        "group": made.group,
        "kind": made.kind,
        "labels": list(made.labels),
        "metric": made.metric,
        "bar": made.bar,
        "rows": made.rows,
        "usable": made.usable,
        "splits": {"train": len(split.train), "valid": len(split.valid), "test": split.test.n},
        "notes": list(made.notes),
    }


def _show_columns(rows: Rows, found: Mapping[str, Profile], data: Path) -> None:
    cells: list[tuple[str, ...]] = []
    for one in found.values():
        median, most, longest = one.characters
        values = ", ".join(
            f"{_shortened(value)} ({count:,})" if count > 1 else _shortened(value) for value, count in one.commonest[:4]
        )
        lengths = f"{median:,} / {most:,} / {longest:,}"
        cells.append((one.name, one.kind, f"{one.distinct:,}", f"{one.empty:,}", lengths, values))
    counts = numbers("different", "empty")
    lengths = Column("characters, median / 95% / most", right=True, extra=True)
    show(
        ("column", "values", *counts, lengths, Column("most frequent", prose=True, extra=True)),
        cells,
        title=f"{data}: {len(rows.rows):,} rows",
    )


def _shortened(value: str) -> str:
    """A value as an example of its column: whole words from its beginning."""
    text = " ".join(value.split())
    return text if len(text) <= 30 else text[:30].rpartition(" ")[0] + " …" if " " in text[:30] else text[:29] + "…"


def _show(made: Draft, split: TaskData, out: Path) -> None:
    screen = console()
    answers = f"one of {len(made.labels)} labels" if made.kind == "label" else made.kind
    screen.print(f"\nasked with {', '.join(made.inputs)}; the answer is {made.target} ({answers})", markup=False)
    counts = f"{len(split.train):,} train, {len(split.valid):,} valid, {split.test.n:,} test"
    screen.print(f"{made.usable:,} of {made.rows:,} rows can be used: {counts}", markup=False)
    for note in made.notes:
        screen.print(f"- {note}", markup=False)
    read = f"read it through, above all the instructions and the bar ({made.metric} {made.bar:g})"
    screen.print(f"\nwritten to {out}; {read}", markup=False)
    print(f"next: {program()} adapt {out} --out runs/{_name(out)}")


def _name(out: Path) -> str:
    return out.stem if out.stem != "task" else "first"
