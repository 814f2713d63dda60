"""`bedplate adapt`: every way to adapt a base to a task, one verdict, and the skins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bedplate.cli.options import Overrides
from bedplate.core.progress import console

if TYPE_CHECKING:
    from bedplate.adaptation.report.report import Report


EXIT_CODES = {"PASS": 0, "FAIL": 3, "INSUFFICIENT_DATA": 4, "OUT_OF_BUDGET": 5}
"""What a verdict makes the command exit with. 1 and 2 are those of errors, where there is no verdict."""


def adapt(
    task_file: Annotated[Path, typer.Argument(metavar="TASK.yaml", help="The task file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The run's directory; the same command goes on in it.", show_default=False)],
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
            show_default=False,
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
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the verdict as JUnit XML, too.", show_default=False)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a summary in Markdown, too.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json, without the rows.")] = False,
) -> int:
    """Find the cheapest adaptation of a base that provably meets the bar.

    Climbs the ladder (majority, from_scratch, zero_shot, few_shot, probe, lora), tunes each rung on valid, nominates at
    most three skins that fit the budget, opens the test rows once, and decides. Ctrl-C is safe: the same command goes
    on where it stopped.

    \b
    exit code  verdict
      0        PASS: a skin clears the bar
      3        FAIL: everything that fits is shown to be below it
      4        INSUFFICIENT_DATA: the test rows do not decide; says how many would
      5        OUT_OF_BUDGET: nothing fits a key of `budget`; says which value would do
      2        wrong usage, 1 another error, 130 interrupted: there is no verdict

    The task file's `adapt` section says what is wanted:

    \b
      adapt:
        bases: [smollm2-135m]       # a catalogue name, a directory, a .gguf file, hf:owner/name
        target: {value: 0.80, confidence: 0.95}
        budget: {p95_ms: 500, usd_per_1k_calls: 0.05, train_minutes: 10, max_prompt_tokens: 600}
        machine: {usd_per_hour: 0.10, as_of: 2026-11-24}
        formats: auto               # int8, int4 where faster here and not shown to be worse by 0.01; none; or a list
        rungs: auto

    Example: bedplate adapt task.yaml --out runs/x --rungs zero_shot,lora --budget 10m adapt.target.value=0.85

    With --curve each rung is climbed again on nested sets of the train labels, three draws of them, and judged on
    valid: quality against labels, where tuning overtakes prompting, and after how many calls it has paid for itself.
    It takes what the ladder leaves of --budget; what does not fit is left out and said. With a longer one the same
    command keeps the points, and climbs the ladder's rungs by what the longer time allows.

    With --parent the new skins are children of a skin of an earlier run: rows and groups that it had stay in the split
    that they were in, so that nothing is judged by rows it was trained on; new rows are split as always. lora, dora and
    soft_prompt start from the parent's weights where it is of that kind, on the same base; every other rung starts
    afresh. What users corrected is such new data: `bedplate feedback export`.
    """
    for path in (junit, markdown):
        if path is not None:
            _check_file(path)
    from bedplate.adaptation.curve.learning_curve import parse_sizes
    from bedplate.adaptation.ladder import adapt as climb
    from bedplate.adaptation.task.spec import parse_budget
    from bedplate.inference.ways.threads import use_cores

    use_cores()
    options = {"dtype": dtype, "weights": weights, "kernel": kernel}
    held = [f"adapt.{name}={value}" for name, value in options.items() if value is not None]
    report = climb(
        task_file,
        out,
        rungs=None if rungs is None else [name.strip() for name in rungs.split(",") if name.strip()],
        budget=None if budget is None else parse_budget(budget),
        seed=seed,
        overrides=[*(overrides or ()), *held],
        curve=() if curve is None else parse_sizes(curve),
        exhaustive=exhaustive,
        parent=None if parent is None else _directory(parent),
    )
    _write(report, junit, markdown)
    if as_json:
        print(json.dumps({key: value for key, value in report.data.items() if key != "rows"}, allow_nan=False))
    else:
        show(report)
    return EXIT_CODES[report.verdict["status"]]


def _check_file(path: Path) -> None:
    """UsageError for a file that could not be written in the end, before time is spent."""
    import os

    from bedplate.core.errors import UsageError

    place = path.absolute().parent
    if path.is_dir() or not place.is_dir():
        what = "is a directory" if path.is_dir() else f"is in {place}, which is no directory"
        raise UsageError(f"{path} {what}; name a file in a directory that is there")
    if not os.access(path if path.exists() else place, os.W_OK):
        raise UsageError(f"{path} cannot be written; choose a place that can be")


def _write(report: Report, junit: Path | None, markdown: Path | None) -> None:
    from bedplate.core.files import atomic_write

    if junit is not None:
        from bedplate.report import junit as xml

        atomic_write(junit, xml.junit(report.data))
    if markdown is not None:
        from bedplate.report.summary import summary

        atomic_write(markdown, summary(report.data))


def _directory(skin: str) -> Path:
    from bedplate.skins.catalog import Catalog

    with Catalog.open() as catalog:
        return catalog.skin_directory(skin)


def show(report: Report) -> None:
    """The table, the verdict, and what to do next."""
    from rich.markup import escape
    from rich.table import Table

    data = report.data
    table = Table(box=None, pad_edge=False)
    table.add_column("rung")
    table.add_column("split")
    for name in (data["target"]["metric"], "interval", "n", "groups", "$/1k calls", "p50 ms", "p95 ms", "fit s"):
        table.add_column(name, justify="right")
    for row in report.rungs:
        if row["status"] != "done":
            table.add_row(row["rung"], row["status"])
            continue
        low, high = row["interval"]
        table.add_row(
            row["rung"],
            row["split"],
            f"{row['estimate']:.3f}",
            f"{low:.3f}-{high:.3f}",
            str(row["n"]),
            str(row["groups"]),
            f"{row['usd_per_1k_calls']:.4f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p95_ms']:.1f}",
            f"{row['train_seconds']:.1f}",
        )
    screen = console()
    screen.print(table)
    for row in report.rungs:
        if row["status"] != "done":
            screen.print(f"{row['rung']} {row['status']}: {escape(row['reason'])}", highlight=False)
    for one in data["not_tried"]:
        if one["what"] == "part":
            screen.print(f"{one['rung']}: {escape(one['reason'])}", highlight=False)
    for rung, guards in data["guards"].items():
        for guard in guards:
            held = {True: "holds", False: "is broken", None: "is undecided"}[guard["holds"]]
            screen.print(f"{rung}: the {guard['guard']} guard {held}: {escape(guard['reason'])}", highlight=False)
    for rung, found in data["formats"].items():
        stays = "keeps its own weights" if found["weights"] is None else f"stays in {found['weights']}"
        served = f"is served in {found['kept']} instead of {found['weights']}" if found["kept"] else stays
        screen.print(f"{rung} {served}: {escape(found['reason'])}", highlight=False)
    for one in data["predictions"]:
        said = {"true": "held", "false": "did not hold", "undecided": "is undecided"}[one["held"]]
        screen.print(f"rule of thumb ({one['rule']}) {said}: {escape(one['prediction'])}", highlight=False)
    spread = [row for row in report.rungs if len(row["seeds"]) > 1]
    for row in spread:
        values = ", ".join(f"{seed['estimate']:.3f}" for seed in row["seeds"])
        screen.print(f"{row['rung']}: seeds on valid {values}", highlight=False)
    if report.comparison is not None:
        c = report.comparison
        screen.print(
            f"on test, {c['a']} minus {c['b']}: {c['difference']:+.3f} ({c['interval'][0]:+.3f} to "
            f"{c['interval'][1]:+.3f}), p = {c['p_value']:.2g}",
            highlight=False,
        )
    if data["curve"] is not None:
        show_curve(data["curve"])
    screen.print()
    screen.print(f"[bold]{data['verdict']['status']}[/bold]: {escape(data['verdict']['reason'])}", highlight=False)
    _next(report)


def show_curve(curve: Mapping[str, Any]) -> None:
    """Quality by rung and number of labels, what was left out, and the crossover."""
    from rich.markup import escape
    from rich.table import Table

    screen = console()
    table = Table(box=None, pad_edge=False, title=f"{curve['metric']} on valid, by labels", title_justify="left")
    table.add_column("rung")
    sizes = sorted({point["size"] for point in curve["points"]})
    for size in sizes:
        table.add_column(f"{size:,}", justify="right")
    cells: dict[str, dict[int, str]] = {}
    for point in curve["points"]:
        low, high = point["interval"]
        cells.setdefault(point["rung"], {})[point["size"]] = f"{point['estimate']:.3f} ({low:.3f}-{high:.3f})"
    for flat in curve["flat"]:
        low, high = flat["interval"]
        cells[flat["rung"]] = dict.fromkeys(sizes, f"{flat['estimate']:.3f} ({low:.3f}-{high:.3f})")
    for rung, found in cells.items():
        table.add_row(rung, *(found.get(size, "") for size in sizes))
    screen.print()
    screen.print(table)
    for line in (*curve["left_out"], *curve["says"]):
        screen.print(escape(line), highlight=False)


def _next(report: Report) -> None:
    """Where things lie, and the command that serves the skins."""
    data = report.data
    skins = {row["skin"] for row in report.rungs if row["skin"] is not None}
    print(f"report  {report.directory / 'report.html'}")
    for skin in sorted(skins):
        print(f"skin    {report.directory / skin}")
    best = data["verdict"]["rung"] or data["nominees"]["primary"]
    row = None if best is None else report.row(best)
    if row is not None:
        print(f"serve   bedplate serve {row['base']} --skin {report.directory / row['skin']}")
