"""`bedplate adapt`: climbs the ladder of adaptations of a base to a task, to one verdict and the skins."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bedplate.adaptation.task.rung_table import RUNG_TABLE
from bedplate.cli import paths
from bedplate.cli.options import AllColumns, Overrides, output_directory, output_file, program
from bedplate.core.errors import UsageError
from bedplate.core.progress import console
from bedplate.core.quantities import parse_count, parse_seconds
from bedplate.core.tables import Column, numbers
from bedplate.core.tables import show as table
from bedplate.report.formatting import calibration_remark, costs, made_smaller, shown_estimate, timing_remark

if TYPE_CHECKING:
    from bedplate.adaptation.report.report import Report


GOES_ON = "give the same command again to go on: what is finished is kept"
EXIT_CODES = {"PASS": 0, "FAIL": 3, "INSUFFICIENT_DATA": 4, "OUT_OF_BUDGET": 5}
"""The exit code of each verdict. 1 and 2 are those of errors, where there is no verdict."""

HELP = (files("bedplate.cli") / "adapt.txt").read_text("utf-8")


def adapt(
    task_file: Annotated[Path, typer.Argument(metavar="TASK.yaml", help="The task file.", callback=paths.existing)],
    out: Annotated[Path, output_directory(help="The run's directory; the same command resumes the run there.")],
    overrides: Overrides = None,
    rungs: Annotated[str | None, typer.Option(help="Only these, as a,b,c. By default what the task file says.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Wall-clock time for the whole ladder, such as 10m. Default: train_minutes.")
    ] = None,
    curve: Annotated[
        str | None, typer.Option(help="Learning curves over these numbers of labels, such as 50,100,200,500.")
    ] = None,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Leave nothing out for a budget or by a rule of thumb.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Decides every random choice.")] = 0,
    parent: Annotated[
        str | None,
        typer.Option(
            help="A skin that the new ones take over from, on newer data: a directory, or a name or id.",
            callback=paths.catalog_target,
        ),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "float64"] | None,
        typer.Option(help="What bases are loaded and trained in. Default: adapt.dtype, else the measured faster."),
    ] = None,
    weights: Annotated[
        Literal["auto", "float32", "bfloat16", "int8", "int4"] | None,
        typer.Option(help="What products read. Default: adapt.weights, else weights in that dtype."),
    ] = None,
    kernel: Annotated[
        Literal["auto", "torch", "native"] | None,
        typer.Option(help="What computes. Default: adapt.kernel, else the measured faster."),
    ] = None,
    junit: Annotated[Path | None, output_file(metavar="FILE", help="Also write JUnit XML, for builds.")] = None,
    markdown: Annotated[Path | None, output_file(metavar="FILE", help="Also write a summary in Markdown.")] = None,
    label_budget: Annotated[
        int | None, typer.Option(metavar="N", help="Buy at most N labels, in files to be filled in; below.")
    ] = None,
    isolate: Annotated[bool, typer.Option("--isolate", help="Fit each rung in a process of its own.")] = False,
    all_columns: AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json, without the rows.")] = False,
) -> int:
    if label_budget is not None and (curve is not None or parent is not None or isolate):
        raise UsageError("--label-budget does not go with --curve, --parent or --isolate; add these after a verdict")
    execution = {"dtype": dtype, "weights": weights, "kernel": kernel}
    common: dict[str, Any] = {  # with and without a label budget
        "rungs": None if rungs is None else [name.strip() for name in rungs.split(",") if name.strip()],
        "budget": None if budget is None else parse_seconds("--budget", budget),
        "seed": seed,
        "overrides": [
            *(overrides or ()),
            *(f"adapt.{name}={value}" for name, value in execution.items() if value is not None),
        ],
        "exhaustive": exhaustive,
    }
    sizes, directory = () if curve is None else _sizes(curve), None
    from bedplate.adaptation.task.task_file import check_task_file  # loads no torch, so that a typo is answered at once

    check_task_file(task_file, common["overrides"], common["rungs"])
    from bedplate.inference.execution.threads import use_cores

    use_cores()
    if parent is not None:
        from bedplate.skins.catalog import Catalog

        with Catalog.open() as catalog:
            directory = catalog.skin_directory(parent)
    messages, file = tuple[str, ...](), None
    if label_budget is None:
        from bedplate.adaptation.ladder import adapt as climb
        from bedplate.core.executor import ProcessExecutor

        executor = ProcessExecutor() if isolate else None
        report = climb(task_file, out, **common, curve=sizes, parent=directory, executor=executor)
    else:
        from bedplate.adaptation.label_budget import adapt_with_labels

        step = adapt_with_labels(task_file, out, label_budget, **common)
        report, messages, file = step.report, step.messages, step.file
    if report is None:
        values = {"verdict": None, "file": file and str(file), "says": messages}
        print(json.dumps(values) if as_json else "\n".join(messages))
        return EXIT_CODES["INSUFFICIENT_DATA"]
    for path, written in ((junit, "junit"), (markdown, "summary")):
        if path is not None:
            from bedplate.core.files import atomic_write
            from bedplate.report import summary

            atomic_write(path, getattr(summary, written)(report.data))
    if as_json:
        print(json.dumps({key: value for key, value in report.data.items() if key != "rows"}, allow_nan=False))
    else:
        show(report, task_file.parent)
        print("\n".join(messages), end="\n" if messages else "")
    return EXIT_CODES[report.verdict["status"]]


_WIDTH = max(map(len, RUNG_TABLE))
_RUNGS = "\n".join(f"  {name:<{_WIDTH}}  {row.line}" for name, row in RUNG_TABLE.items())
adapt.__doc__ = HELP.replace("RUNG_TABLE", _RUNGS)


def _sizes(text: str) -> list[int]:
    """Numbers of labels, as in 50,100,1k."""
    sizes = [parse_count("--curve", part) for part in text.split(",")]
    if any(size != int(size) for size in sizes):
        raise UsageError(f"--curve {text!r}: write whole numbers of labels, such as 50,100,200,500")
    return [int(size) for size in sizes]


def show(report: Report, directory: Path = Path()) -> None:
    """Prints the table, the findings, the verdict, and what to do next. directory: where the task file lies."""
    from rich.markup import escape

    data = report.data
    extra = numbers("n", "groups", extra=True)
    times = (*numbers("$/1k calls"), Column("p50 ms", right=True, extra=True), *numbers("p95 ms"))
    columns = (*numbers(data["target"]["metric"], "interval"), *extra, *times, Column("fit s", right=True, extra=True))
    table(("rung", "split", *columns), [_cells(data, row) for row in report.rungs])
    screen = console()
    for line in _findings(report):
        screen.print(line, markup=False)
    if data["curve"] is not None:
        show_curve(data)
    screen.print()
    screen.print(f"[bold]{data['verdict']['status']}[/bold]: {escape(data['verdict']['reason'])}")
    _next(report, directory)


def _findings(report: Report) -> Iterator[str]:
    """Lines on what was left out, on requirements, guards, formats, groups, rules of thumb, seeds, the comparison."""
    data = report.data
    yield from (f"{row['rung']} {row['status']}: {row['reason']}" for row in report.rungs if row["status"] != "done")
    smaller = made_smaller(data)
    for part in data["not_tried"]:
        if part["what"] == "part":
            yield f"{'* ' if part['rung'] in smaller else ''}{part['rung']}: {part['reason']}"
    for rung, checks in (data.get("requirements") or {}).items():
        for check in checks:
            status = {True: "is met", False: "is not met", None: "is undecided"}[check["holds"]]
            yield f"{rung}: a requirement {status}: {check['reason']}"
    for rung, guards in data["guards"].items():
        for guard in guards:
            status = {True: "holds", False: "is broken", None: "is undecided"}[guard["holds"]]
            yield f"{rung}: the {guard['guard']} guard {status}: {guard['reason']}"
    for rung, chosen in data["formats"].items():
        served = f"Kept {rung} in {chosen['weights'] or 'its own weights'}"
        if chosen["kept"]:
            served = f"{rung} is served in {chosen['kept']} instead of {chosen['weights']}"
        yield f"{served}: {chosen['reason']}"
    yield from groups_said(data["data"])
    yield from (f"note: {note}" for note in (data["ledger"] or {}).get("notes", ()))
    for prediction in data["predictions"]:
        if prediction["held"] in ("true", "false"):
            outcome = "held" if prediction["held"] == "true" else "did not hold"
            yield f"rule of thumb ({prediction['rule']}), that {prediction['prediction']}: {outcome}"
    yield from filter(None, (calibration_remark(data), timing_remark(data)))
    if data["data"].get("second_labels"):
        yield data["data"]["second_labels"]["said"]
    for row in report.rungs:
        if len(row["seeds"]) > 1:
            values = ", ".join(shown_estimate(data, seed["estimate"]) for seed in row["seeds"])
            yield f"{row['rung']}: seeds on valid {values}"
    if report.comparison is not None:
        c = report.comparison
        digits = 4 if costs(data) else 3
        difference, low, high = (f"{value:+.{digits}f}" for value in (c["difference"], *c["interval"]))
        yield f"on test, {c['a']} minus {c['b']}: {difference} ({low} to {high}), p = {c['p_value']:.2g}"


def groups_said(data: Mapping[str, Any]) -> list[str]:
    """Which rows are kept together, and what looks like groups and is not declared."""
    grouping = data.get("grouping")
    if grouping is None:
        return []
    columns = " or ".join(grouping["columns"])
    because = f"rows are independent, as the task file says: {grouping['ungrouped_because']}"
    lines = [f"groups: rows of one {columns} stay together" if columns else f"groups: {because}"]
    for finding in grouping["found"]:
        answer = "" if finding["answer"] is None else f"; not a group, as the task file says: {finding['answer']}"
        if finding["kind"] != "column" or finding["design_effect"] > 1 or answer:
            lines.append(f"groups: {finding['says']}{answer}")
    return lines


def _cells(report: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["status"] != "done":
        return (row["rung"], row["status"], *[""] * 8)
    low, high = row["interval"]
    return (
        row["rung"] + ("*" if row["rung"] in made_smaller(report) else ""),
        row["split"],
        shown_estimate(report, row["estimate"]),
        f"{shown_estimate(report, low)}-{shown_estimate(report, high)}",
        str(row["n"]),
        str(row["groups"]),
        *(
            "" if row[name] is None else f"{row[name]:.{digits}f}"
            for name, digits in (("usd_per_1k_calls", 4), ("p50_ms", 1), ("p95_ms", 1), ("train_seconds", 1))
        ),
    )


def show_curve(report: Mapping[str, Any]) -> None:
    """Quality by rung and number of labels, what was left out, and the crossover."""
    screen, curve = console(), report["curve"]
    sizes = sorted({point["size"] for point in curve["points"]})
    cells: dict[str, dict[int, str]] = {}
    for point in curve["points"]:
        cells.setdefault(point["rung"], {})[point["size"]] = _with_interval(report, point)
    for flat in curve["flat"]:
        cells[flat["rung"]] = dict.fromkeys(sizes, _with_interval(report, flat))
    rows = [(rung, *(by_size.get(size, "") for size in sizes)) for rung, by_size in cells.items()]
    screen.print()
    table(("rung", *numbers(*(f"{size:,}" for size in sizes))), rows, title=f"{curve['metric']} on valid, by labels")
    for line in (*curve["left_out"], *curve["says"]):
        screen.print(line, markup=False)


def _with_interval(report: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    estimate, low, high = (shown_estimate(report, value) for value in (point["estimate"], *point["interval"]))
    return f"{estimate} ({low}-{high})"


def _from_here(base: str, directory: Path) -> str:
    """A base that the task file in `directory` names by a path, which begins there."""
    place = directory / base
    return os.path.relpath(place) if not Path(base).exists() and place.exists() else base


def _next(report: Report, directory: Path) -> None:
    """Where things lie, and the command that serves the skin that passed; no other is recommended."""
    data = report.data
    skins = {row["skin"] for row in report.rungs if row["skin"] is not None}
    print(f"report  {report.directory / 'report.html'}")
    for skin in sorted(skins):
        print(f"skin    {report.directory / skin}")
    passed = report.skin
    row = None if passed is None else report.row(data["verdict"]["rung"])
    if passed is None or row is None:
        print("serve   no skin to recommend: none has passed")
        return
    base, needs_base = "", bool(row["base"]) or _needs_base(passed)
    if needs_base:
        names = [record["name"] for record in data["lineage"]["bases"]]
        base = f" {_from_here(row['base'] if row['base'] in names else names[0], directory)}"
    print(f"serve   {program()} serve{base} --skin {passed}")


def _needs_base(skin: Path) -> bool:
    """Whether a server needs a base for the skin: not for a classical one, nor for a cascade of two."""
    from bedplate.skins.files import parts_of, read_card

    card = read_card(skin)
    return any(part.base is not None for part in parts_of(card) or [card])
