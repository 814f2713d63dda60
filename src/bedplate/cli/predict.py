"""`bedplate predict`: a skin answers every row of a file."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllowOtherWeights, JudgedDtype, JudgedKernel, JudgedWeights
from bedplate.core.errors import SkinError, UsageError
from bedplate.core.progress import Progress

if TYPE_CHECKING:
    from bedplate.inference.predict.bulk import Counts
    from bedplate.inference.predict.composed import Answers


def predict(
    skin: Annotated[
        Path, typer.Argument(help="A skin's directory.", show_default=False, callback=paths.skin_directory)
    ],
    rows: Annotated[
        str,
        typer.Argument(
            metavar="ROWS.jsonl",
            help='JSON lines: the inputs by name, or {"text": …} where there is one; "id" is passed on. - is stdin.',
            show_default=False,
        ),
    ],
    out: Annotated[str, typer.Option(help="The predictions, JSON lines; - is stdout.", show_default=False)],
    base: Annotated[
        str | None, typer.Option(help="Where the skin's base is, when not where it was made.", show_default=False)
    ] = None,
    batch: Annotated[int, typer.Option(help="Rows that are computed together.", min=1)] = 64,
    dtype: JudgedDtype = None,
    weights: JudgedWeights = None,
    kernel: JudgedKernel = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    allow_other_weights: AllowOtherWeights = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> int:
    """Predict every row of a file. Killed or interrupted, the same command goes on where it was.

    A row that cannot be predicted gets an "error" in place of its output, and the exit code is 1."""
    _check(skin, rows, out, as_json)
    from bedplate.inference.predict.loaded import load
    from bedplate.inference.predict.local import LocalModel
    from bedplate.inference.ways.threads import use_cores

    use_cores()
    start = time.perf_counter()
    loaded = load(
        skin,
        dtype=dtype,
        device=device,
        base=base,
        weights=weights,
        kernel=kernel,
        allow_other_weights=allow_other_weights,
    )
    assert not isinstance(loaded, LocalModel)
    try:
        for warning in loaded.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        counts = _run(loaded, rows, out, batch)
    finally:
        loaded.close()
    _say(counts, out, time.perf_counter() - start, as_json)
    return 1 if counts.failed else 0


def _check(skin: Path, rows: str, out: str, as_json: bool) -> None:
    """What can be known to fail is refused before a model is loaded."""
    if not (skin / "skin.json").is_file():
        raise SkinError(f"{skin} is not a skin: it has no skin.json; `bedplate adapt` makes skins")
    if out == "-" and as_json:
        raise UsageError("--out - and --json both write to stdout; give --out a file")
    if rows != "-" and not Path(rows).is_file():
        raise UsageError(f"{rows}: no such file")
    if out != "-" and Path(out).exists():
        raise UsageError(f"{out} exists already; choose another name or remove it")


def _run(predictor: Answers, rows: str, out: str, batch: int) -> Counts:
    from bedplate.inference.predict import bulk

    if rows != "-" and out != "-":
        total, _ = bulk.survey(Path(rows))
        with Progress("predict", total, "rows") as bar:
            return bulk.predict_file(predictor, Path(rows), Path(out), batch=batch, advance=bar.advance)
    if rows != "-":
        bulk.survey(Path(rows))
        with Path(rows).open("rb") as lines:
            return bulk.write_stream(predictor, lines, rows, _to_stdout, batch=batch)
    if out == "-":
        return bulk.write_stream(predictor, sys.stdin.buffer, "stdin", _to_stdout, batch=batch)
    with bulk.whole_file(Path(out)) as file:
        return bulk.write_stream(predictor, sys.stdin.buffer, "stdin", file.write, batch=batch)


def _to_stdout(content: bytes) -> None:
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def _say(counts: Counts, out: str, seconds: float, as_json: bool) -> None:
    if as_json:
        fields = {"rows": counts.rows, "failed": counts.failed, "resumed": counts.resumed, "out": out}
        print(json.dumps(fields | {"seconds": round(seconds, 3)}))
        return
    resumed = f", {counts.resumed} of them by an earlier run" if counts.resumed else ""
    failed = f'; {counts.failed} could not be predicted: see their "error"' if counts.failed else ""
    place = "" if out == "-" else f" written to {out}"
    print(
        f"{counts.rows} rows{resumed}{place} in {seconds:.1f} s{failed}", file=sys.stderr if out == "-" else sys.stdout
    )
