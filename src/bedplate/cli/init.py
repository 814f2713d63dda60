"""`bedplate init`: profiles a file of rows and writes a task file for it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllColumns, Overwrite, duration, program, to_seconds
from bedplate.core.errors import UsageError
from bedplate.core.progress import console
from bedplate.core.tables import Column, numbers, show

if TYPE_CHECKING:
    from bedplate.adaptation.task.draft import TaskDraft
    from bedplate.data.profile import Profile
    from bedplate.data.rows import SourceRows
    from bedplate.evaluation.examples import TaskData


def init(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA.csv",
            help="The rows: .csv, .tsv, .jsonl or .parquet, with a column of texts and one of answers.",
            callback=paths.existing,
        ),
    ],
    bases: Annotated[
        list[str] | None, typer.Argument(metavar="BASE", help="Bases to adapt. Default: smollm2-135m.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The task file to write.", callback=paths.new_file, show_default="task.yaml")
    ] = Path("task.yaml"),
    target: Annotated[str | None, typer.Option(help="The column of answers.")] = None,
    text: Annotated[
        list[str] | None, typer.Option("--input", help="A column of what is asked with. Repeatable.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="A column of what rows belong to and must not be split over, or none.")
    ] = None,
    instructions: Annotated[str | None, typer.Option(help="What the base is told to do.")] = None,
    name: Annotated[str | None, typer.Option(help="The task's name. Default: the data file's.")] = None,
    bar: Annotated[float | None, typer.Option(help="What the metric must be shown to reach (the threshold).")] = None,
    budget: Annotated[float | None, duration(help="What the whole search may take. Default: 10m.")] = None,
    usd_per_hour: Annotated[float, typer.Option(min=0, help="What an hour of this machine costs.")] = 0.10,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take what is guessed and said.")] = False,
    overwrite: Overwrite = False,
    all_columns: AllColumns = False,
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
    if budget is not None and not budget > 0:
        raise UsageError("--budget must be above 0")
    chosen = bases or ["smollm2-135m"]
    for base in chosen:
        paths.base(base)
    from bedplate.adaptation.task import draft, proposal
    from bedplate.data.profile import profiles
    from bedplate.data.sources import read_rows

    rows = read_rows(str(data.absolute()))
    columns = profiles(rows)
    interactive = not yes and not as_json and sys.stdin.isatty() and sys.stdout.isatty()
    if not as_json:
        _show_columns(rows, columns, data)
    inputs, grouped = list(text or ()), group != "none"
    group = group if grouped else None
    if interactive:
        if target is None:
            target = _prompt_column("Which column is the answer?", draft.guess_target(columns, inputs), columns)
        if not inputs:
            guessed = draft.guess_inputs(columns, target or "", group)
            inputs = [_prompt_column("Which column is it asked with?", guessed[0] if guessed else None, columns) or ""]
        if group is None and grouped:
            guess = draft.guess_group(columns, (*inputs, target or ""))
            group = _prompt_column("Which column says what rows belong together (none)?", guess, columns, optional=True)
            grouped = group is not None
    task_draft = draft.draft(rows, inputs=inputs, target=target, group=group, grouped=grouped)
    if interactive and instructions is None:
        instructions = typer.prompt(
            "What is to be done, in a sentence?", default=draft.default_instructions(task_draft)
        )
    if interactive and bar is None:
        question = f"Which {task_draft.metric} must be shown for a PASS (the bar)?"
        bar = typer.prompt(question, default=task_draft.bar, value_proc=_share)
    if interactive and budget is None:
        budget = typer.prompt("How long may the whole search take?", default="10m", value_proc=to_seconds)
    minutes = proposal.DEFAULT_MINUTES if budget is None else budget / 60
    how: dict[str, Any] = {"name": name, "instructions": instructions, "bases": chosen, "usd_per_hour": usd_per_hour}
    task_draft, split, findings = proposal.write_task(task_draft, rows, data, out, bar=bar, minutes=minutes, **how)
    if as_json:
        print(json.dumps(_values(task_draft, split, out), ensure_ascii=False))
        return
    screen = console()
    screen.print()
    for line in proposal.summary(task_draft, split, out, minutes):
        screen.print(line, markup=False)
    if findings:  # else the next command would stop at once
        reasons = json.dumps(dict.fromkeys((finding.name for finding in findings), "..."), ensure_ascii=False)
        print(f"first: in {out}, under data, say which rows belong together (group_by), or not_groups: {reasons}")
    print(f"next: {program()} adapt {out} --out runs/{out.stem if out.stem != 'task' else 'first'}")


def _share(reply: str | float) -> float:
    try:
        share = float(reply)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise typer.BadParameter(f"{reply} does not lie between 0 and 1")
    return share


def _prompt_column(
    question: str, guess: str | None, columns: Mapping[str, Profile], *, optional: bool = False
) -> str | None:
    """A column's name, asked for until it is one."""
    while True:
        reply = typer.prompt(question, default=guess or ("none" if optional else None)).strip()
        if reply in columns:
            return reply
        if optional and reply in ("none", ""):
            return None
        print(f"There is no column {reply!r}; the columns are {', '.join(columns)}")


def _values(task_draft: TaskDraft, split: TaskData, out: Path) -> dict[str, Any]:
    names = ("inputs", "target", "group", "kind", "labels", "metric", "bar", "rows", "usable", "notes")
    splits = {"train": len(split.train), "valid": len(split.valid), "test": split.test.n}
    return {"task_file": str(out), **{name: getattr(task_draft, name) for name in names}, "splits": splits}


def _show_columns(rows: SourceRows, columns: Mapping[str, Profile], data: Path) -> None:
    cells: list[tuple[str, ...]] = []
    for profile in columns.values():
        median, p95, longest = profile.characters
        commonest = ((_shortened(value), count) for value, count in profile.commonest[:4])
        values = ", ".join(f"{value} ({count:,})" if count > 1 else value for value, count in commonest)
        counts = f"{profile.distinct:,}", f"{profile.empty:,}", f"{median:,} / {p95:,} / {longest:,}"
        cells.append((profile.name, profile.column_type, *counts, values))
    lengths = Column("characters, median / 95% / most", right=True, extra=True)
    frequent = Column("most frequent", prose=True, extra=True)
    columns_shown = ("column", "values", *numbers("different", "empty"), lengths, frequent)
    show(columns_shown, cells, title=f"{data}: {len(rows.rows):,} rows")


def _shortened(value: str) -> str:
    """A value as an example of its column: whole words from its beginning."""
    text = " ".join(value.split())
    return text if len(text) <= 30 else text[:30].rpartition(" ")[0] + " …" if " " in text[:30] else text[:29] + "…"
