"""`bedplate skins verify`: a skin's files, and a base that it should fit."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bedplate.cli import paths


def verify(
    skin: Annotated[str, typer.Argument(help="A skin's directory.", callback=paths.skin_directory)],
    base: Annotated[str | None, typer.Argument(help="A base that it is to fit.", callback=paths.base)] = None,
    dtype: Annotated[str, typer.Option(help="How the base's weights would be held.")] = "auto",
    allow_other_weights: Annotated[
        bool, typer.Option("--allow-other-weights", help="Other weights than it was judged with only warn.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check that every file of a skin is as it was written, and that it fits a base."""
    from bedplate.skins.files import read_skin, skin_id
    from bedplate.skins.verify import verify_skin

    read = read_skin(skin)
    warnings: list[str] = []
    if base is not None:
        from bedplate.models.checkpoints.base import load_base

        warnings = verify_skin(read, load_base(base, dtype=dtype), allow_other_weights=allow_other_weights)
    if as_json:
        report = {"name": read.name, "id": skin_id(read), "files": "ok", "base": base, "warnings": warnings}
        print(json.dumps(report))
        return
    print(f"{read.name}: every file is as it was written{'' if base is None else f', and it fits {base}'}")
    for warning in warnings:
        print(f"warning: {warning}")
