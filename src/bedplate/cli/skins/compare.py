"""`bedplate skins compare`: two skins on the same fresh rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllColumns, Overwrite
from bedplate.core.tables import numbers, show

TESTS = {
    "mcnemar_exact": "exact McNemar test",
    "sign_flip": "sign-flip test",
    "clustered_sign_flip": "sign-flip test of whole groups",
    "swap": "swap test",
    "clustered_swap": "swap test of whole groups",
}
"""How a comparison's test is called."""


def compare(
    a: Annotated[Path, typer.Argument(help="A skin's directory.", callback=paths.skin_directory)],
    b: Annotated[Path, typer.Argument(help="That of the skin it is compared with.", callback=paths.skin_directory)],
    rows: Annotated[
        Path,
        typer.Argument(
            metavar="DATA.jsonl", help="New rows with targets: .jsonl, .csv, .tsv or .parquet.", callback=paths.existing
        ),
    ],
    task: Annotated[
        Path | None,
        typer.Option(
            help="The task file. By default that of the run which made the first skin.", callback=paths.existing
        ),
    ] = None,
    usd_per_hour: Annotated[
        float | None, typer.Option(min=0, help="What an hour of this machine costs. Default: as the task file says.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write everything as JSON here, every row included.", callback=paths.new_file)
    ] = None,
    overwrite: Overwrite = False,
    all_columns: AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, without the rows.")] = False,
) -> None:
    """Compare two skins on the same rows: quality row by row with whole groups as units, and the time and price of
    single calls beside it.

    Rows that either skin was trained on, chosen by or judged by are left out and counted, whatever their case, white
    space and punctuation.
    The verdict is by the task's metric; the others are for orientation. It is recorded in the ledger: a further verdict
    on the same rows is exploratory and may spend less error.

    \b
      bedplate skins compare runs/x/skins/probe runs/x/skins/lora october.jsonl
    """
    paths.free(out, overwrite)
    from bedplate.adaptation.postprocess.compare_skins import side_by_side
    from bedplate.core.files import atomic_write

    result = side_by_side(a, b, rows, task_file=task, usd_per_hour=usd_per_hour)
    report = result.to_json()
    if out is not None:
        atomic_write(out, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if as_json:
        for side in ("a", "b"):
            del report[side]["evaluation"]["rows"]
        print(json.dumps(report, allow_nan=False))
        return
    rows_shown: list[tuple[str, ...]] = []
    for side in (result.a, result.b):
        low, high = side.evaluation.interval
        price = "" if side.usd_per_1k_calls is None else f"{side.usd_per_1k_calls:.4f}"
        times = (f"{side.latency.p50 * 1000:.1f}", f"{side.latency.p95 * 1000:.1f}")
        rows_shown.append((side.name, f"{side.evaluation.estimate:.3f}", f"{low:.3f}-{high:.3f}", *times, price))
    columns = numbers(result.comparison.metric, "interval", "p50 ms", "p95 ms", "$/1k calls")
    show(("skin", *columns), rows_shown)
    of = result.comparison
    rows_of = f"{of.n} rows in {of.groups} groups" if of.groups < of.n else f"{of.n} rows"
    print(f"{rows_of}; {result.a.name} minus {result.b.name}:")
    for comparison in (result.comparison, *result.others):
        low, high = comparison.interval
        interval = f"({comparison.confidence:.1%} interval {low:+.3f} to {high:+.3f})"
        test = f"p = {comparison.p_value:.2g} ({TESTS[comparison.test]})"
        print(f"  {comparison.metric}: {comparison.difference:+.3f} {interval}, {test}")
    for side in (result.a, result.b):
        if side.too_long:
            print(f"note: {side.too_long} rows are too long for {side.name} and count as wrong")
    for note in result.notes:
        print(f"note: {note}")
    print(result.sentence)
    if out is not None:
        print(f"written to {out}")
