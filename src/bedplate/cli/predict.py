"""`bedplate predict`: a skin answers every row of a file."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllowOtherWeights, JudgedDtype, JudgedKernel, JudgedWeights, Overwrite
from bedplate.core.errors import UsageError
from bedplate.core.progress import Progress, notice

if TYPE_CHECKING:
    from bedplate.inference.predict.bulk import Counts, RowSource
    from bedplate.inference.predict.callable_skin import SkinPredictor

Format = Literal["jsonl", "csv", "tsv", "parquet"]


def predict(
    skin: Annotated[Path, typer.Argument(help="A skin's directory.", callback=paths.skin_directory)],
    rows: Annotated[
        str,
        typer.Argument(
            metavar="ROWS",
            help="A .jsonl, .csv, .tsv or .parquet file with the inputs by name, or `text` where there is one; `id` is "
            "passed on. - is stdin.",
        ),
    ],
    out: Annotated[
        str, typer.Option(help="The predictions, by its name .jsonl, .csv, .tsv or .parquet; - is stdout, JSON lines.")
    ],
    base: Annotated[
        str | None, typer.Option(help="Where the skin's base is, when not where it was made.", callback=paths.base)
    ] = None,
    format: Annotated[
        Format | None, typer.Option(help="Of the rows, where their file's name does not say it (stdin: jsonl).")
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="A row that cannot be read gets an error, and does not end the run.")
    ] = False,
    overwrite: Overwrite = False,
    batch: Annotated[int, typer.Option(help="Rows that are computed together.", min=1)] = 64,
    dtype: JudgedDtype = None,
    weights: JudgedWeights = None,
    kernel: JudgedKernel = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    allow_other_weights: AllowOtherWeights = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> int:
    """Predict every row of a file. After a kill or Ctrl-C the same command resumes where it stopped.

    A .csv, .tsv or .parquet file has all columns of the rows, then `answer`, its `probability`, and `error`. Each line
    of a .jsonl file has the row's `id` and `line`, its `output`, and of labels the `probabilities` (and their
    logarithms, `scores`). A row that cannot be predicted has an `error` in place of its answer, the first of them are
    listed at the end, and the exit code is 1. A file with a row that cannot be read is refused before anything is
    computed; with --keep-going such a row gets an error as well.

    \b
      bedplate predict runs/x/skins/lora october.csv --out answers.csv
      bedplate predict runs/x/skins/lora - --out - < rows.jsonl
    """
    _check(rows, out, format, overwrite, as_json)
    from bedplate.inference.predict.bulk import RowSource
    from bedplate.inference.predict.callable_skin import SkinPredictor
    from bedplate.inference.predict.loaded import load
    from bedplate.skins.manifest import read_manifest

    if read_manifest(skin).bases:
        from bedplate.inference.execution.threads import use_cores

        use_cores()
    start = time.perf_counter()
    options: dict[str, Any] = {"dtype": dtype, "device": device, "base": base, "weights": weights, "kernel": kernel}
    predictor = load(skin, **options, allow_other_weights=allow_other_weights)
    assert isinstance(predictor, SkinPredictor)
    with contextlib.closing(predictor):
        for warning in predictor.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        path = Path("stdin" if rows == "-" else rows)
        source = RowSource(list(predictor.skin.inputs), path, format or ("jsonl" if rows == "-" else None), keep_going)
        counts = _predict(predictor, source, rows == "-", out, overwrite, batch)
    if not counts.rows:
        notice(f"note: {path} has no rows to predict, so there are no predictions; give a file with rows")
    _print_counts(counts, out, time.perf_counter() - start, as_json)
    return 1 if counts.failed else 0


GOES_ON = "give the same command again to go on: of a file, the rows that are written are kept"


def _check(rows: str, out: str, format: str | None, overwrite: bool, as_json: bool) -> None:
    """What can be known to fail is refused before a model is loaded."""
    suffixes = [f".{extension}" for extension in get_args(Format)]
    if out == "-" and as_json:
        raise UsageError("--out - and --json both write to stdout; give --out a file")
    if rows == "-":
        if format == "parquet":
            raise UsageError("Parquet cannot be read from stdin, as its end is read first; give a file")
    elif not Path(rows).is_file():
        raise UsageError(f"{rows}: no such file")
    elif format is None and Path(rows).suffix.lower() not in suffixes:
        raise UsageError(f"{rows}: rows are read from files that end in {', '.join(suffixes)}; or say their --format")
    if out != "-" and Path(out).suffix not in suffixes:
        raise UsageError(f"--out {out}: predictions are written to files that end in {', '.join(suffixes)}, or to -")
    if rows == "-" and Path(out).suffix not in ("", ".jsonl"):
        raise UsageError(
            f"--out {out}: rows of stdin are read once, and a table needs them twice; write .jsonl, or give a file"
        )
    if Path(out).suffix == ".parquet":
        from bedplate.data.tables import arrow

        arrow()
    paths.new_file(Path(out))
    paths.free(Path(out), overwrite)
    if "-" not in (out, rows) and Path(out).exists() and Path(out).samefile(rows):
        raise UsageError(f"{out} is the file of the rows itself; choose another name")


def _predict(predictor: SkinPredictor, source: RowSource, piped: bool, out: str, overwrite: bool, batch: int) -> Counts:
    """Predicts rows of a file or of stdin, into a file or to stdout; of a file into a file it can be resumed."""
    from bedplate.inference.predict.bulk import predict_file, whole_file, write_stream

    if piped:
        if out == "-":
            return write_stream(predictor, source, sys.stdin.buffer, _to_stdout, batch=batch)
        with whole_file(Path(out)) as file:
            return write_stream(predictor, source, sys.stdin.buffer, file.write, batch=batch)
    survey = source.survey()
    if survey.unused:
        print(f"note: columns that the skin does not use: {', '.join(survey.unused)}", file=sys.stderr)
    if out == "-":
        with source.path.open("rb") as stream:
            return write_stream(predictor, source, stream, _to_stdout, batch=batch)
    with Progress("predict", survey.rows, "rows") as bar:
        resuming: dict[str, Any] = {"sha256": survey.sha256, "overwrite": overwrite, "advance": bar.advance}
        try:
            return predict_file(predictor, source, Path(out), batch=batch, **resuming)
        except KeyboardInterrupt:
            notice(f"note: the rows that are done are kept beside {out}; the same command goes on after them")
            raise


def _to_stdout(content: bytes) -> None:
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def _print_counts(counts: Counts, out: str, seconds: float, as_json: bool) -> None:
    """Prints how many rows there are, and the first rows that failed, each with its reason."""
    if as_json:
        fields = {"rows": counts.rows, "failed": counts.failed, "resumed": counts.resumed, "out": out}
        print(json.dumps(fields | {"seconds": round(seconds, 3)}))
    else:
        resumed = f", {counts.resumed} of them by an earlier run" if counts.resumed else ""
        failed = f'; {counts.failed} could not be predicted: see their "error"' if counts.failed else ""
        place, file = ("", sys.stderr) if out == "-" else (f" written to {out}", sys.stdout)
        print(f"{counts.rows} rows{resumed}{place} in {seconds:.1f} s{failed}", file=file)
    for line, message in counts.first_failed:
        named = f"line {line}:" in message or f"row {line}:" in message
        print(f"error: {message}" if named else f"error: line {line}: {message}", file=sys.stderr)
    if counts.failed > len(counts.first_failed) > 0:
        print(f"error: and {counts.failed - len(counts.first_failed)} more", file=sys.stderr)
