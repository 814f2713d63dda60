"""`bedplate plan scaling`: a law from a ladder of finished runs, checked on the largest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from bedplate.cli import paths
from bedplate.cli.options import Wide
from bedplate.core.errors import UsageError
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
        Literal["power", "floor", "chinchilla"] | None,
        typer.Option(help="The law. Default: floor from five runs on, else power.", show_default=False),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            help="Also predict PARAMETERS:TOKENS, such as 100M:2B (parameters without the token table).",
            show_default=False,
        ),
    ] = None,
    wide: Wide = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fit a scaling law to a ladder of small runs, and predict the largest one, which is held out of the fit.

    \b
      for n in 250k 500k 1M 2M 4M; do bedplate pretrain run.yaml model.params=$n --out ladder/$n; done
      bedplate plan scaling ladder/*
    """
    from bedplate.pretraining.scaling.ladder import read_ladder

    found = read_ladder(runs, form, [_asked(text) for text in at or ()])
    if as_json:
        values = found.to_json()
        for one in values["asked"]:
            del one["loss"]
        print(json.dumps(values, allow_nan=False))
        return
    rows: list[tuple[str, ...]] = []
    for point in found.points:
        is_held = point is found.held
        guess = found.law.predict(point)
        between = f"{guess.low:.4f} to {guess.high:.4f}" if is_held else ""
        cells = (f"{point.parameters:,.0f}", f"{point.tokens:,.0f}", f"{point.flops:.2e}", f"{point.loss:.4f}")
        rows.append((point.name + (" (held out)" if is_held else ""), *cells, f"{guess.loss:.4f}", between))
    columns = numbers("parameters", "tokens", "operations", "loss", "predicted", "95% interval")
    show(("run", *columns), rows)
    constants = ", ".join(f"{name} {value:.4g}" for name, value in found.law.constants.items())
    print(f"law: {found.law.form}, {constants}; scatter {found.law.residual:.2%} of the loss")
    where = "inside" if found.inside else "OUTSIDE"
    print(f"the held-out run has a loss of {found.held.loss:.4f}, {where} the interval of what was predicted")
    for point, guess in found.asked:
        print(
            f"{point.parameters:.3g} parameters on {point.tokens:.3g} tokens: {guess.loss:.4f} "
            f"({guess.low:.4f} to {guess.high:.4f}), from all {len(found.points)} runs"
        )


def _asked(text: str) -> tuple[float, float]:
    from bedplate.core.quantities import parse_count

    parameters, colon, tokens = text.partition(":")
    if not colon:
        raise UsageError(f"--at {text!r}: write PARAMETERS:TOKENS, such as 100M:2B")
    return parse_count("--at", parameters), parse_count("--at", tokens)
