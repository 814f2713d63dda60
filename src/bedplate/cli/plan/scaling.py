"""`bedplate plan scaling`: a law from a ladder of finished runs, checked on the largest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllColumns, unset
from bedplate.core.errors import UsageError
from bedplate.core.quantities import parse_count
from bedplate.core.tables import numbers, show


def scaling(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN…",
            help="Directories of finished runs, at least four.",
            show_default=False,
            callback=paths.directories,
        ),
    ],
    form: Annotated[
        Literal["power", "floor", "chinchilla"] | None, unset("The law. Default: floor from five runs on, else power.")
    ] = None,
    at: Annotated[
        list[str] | None, unset("Also predict PARAMETERS:TOKENS, such as 100M:2B (parameters without the token table).")
    ] = None,
    all_columns: AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fit a scaling law to a ladder of small runs, and predict the largest one, which is held out of the fit.

    \b
      for n in 250k 500k 1M 2M 4M; do bedplate pretrain run.yaml model.params=$n --out ladder/$n; done
      bedplate plan scaling ladder/*
    """
    from bedplate.pretraining.scaling_law import read_ladder

    ladder = read_ladder(runs, form, [_parse_point(text) for text in at or ()])
    if as_json:
        values = ladder.to_json()
        for prediction in values["asked"]:
            del prediction["loss"]
        print(json.dumps(values, allow_nan=False))
        return
    rows: list[tuple[str, ...]] = []
    for point in ladder.points:
        is_held = point is ladder.held_out
        guess = ladder.law.predict(point)
        interval = f"{guess.low:.4f} to {guess.high:.4f}" if is_held else ""
        cells = (f"{point.parameters:,.0f}", f"{point.tokens:,.0f}", f"{point.flops:.2e}", f"{point.loss:.4f}")
        rows.append((point.name + (" (held out)" if is_held else ""), *cells, f"{guess.loss:.4f}", interval))
    columns = numbers("parameters", "tokens", "operations", "loss", "predicted", "95% interval")
    show(("run", *columns), rows)
    constants = ", ".join(f"{name} {value:.4g}" for name, value in ladder.law.constants.items())
    print(f"law: {ladder.law.form}, {constants}; scatter {ladder.law.residual:.2%} of the loss")
    position = "inside" if ladder.inside else "OUTSIDE"
    print(f"the held-out run has a loss of {ladder.held_out.loss:.4f}, {position} the interval of what was predicted")
    for point, guess in ladder.extrapolations:
        print(
            f"{point.parameters:.3g} parameters on {point.tokens:.3g} tokens: {guess.loss:.4f} "
            f"({guess.low:.4f} to {guess.high:.4f}), from all {len(ladder.points)} runs"
        )


def _parse_point(text: str) -> tuple[float, float]:
    parameters, colon, tokens = text.partition(":")
    if not colon:
        raise UsageError(f"--at {text!r}: write PARAMETERS:TOKENS, such as 100M:2B")
    return parse_count("--at", parameters), parse_count("--at", tokens)
