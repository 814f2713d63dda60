"""`bedplate skins list`: the skins that the catalogue knows."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Annotated

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllColumns
from bedplate.core.tables import show


def list(
    directories: Annotated[
        builtins.list[Path] | None,
        typer.Argument(help="Directories to look through and record.", callback=paths.directories),
    ] = None,
    all_columns: AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the catalogue's skins; what lies below the given directories is recorded first."""
    from bedplate.skins.catalog import Catalog

    problems: builtins.list[str] = []
    with Catalog.open() as catalog:
        if directories:
            problems = catalog.add(directories).problems
        entries = catalog.entries("skin")
    if as_json:
        print(json.dumps({"skins": [record.to_json() for record in entries], "problems": problems}))
        return
    rows: builtins.list[tuple[str, ...]] = []
    for record in entries:
        cells = (str(record.details.get(key) or "") for key in ("kind", "task", "base"))
        missing_note = "" if record.path and Path(record.path).is_dir() else " (gone)"
        rows.append((record.name, *cells, record.id[:12], f"{record.path}{missing_note}"))
    show(("name", "kind", "task", "base", "id", "path"), rows)
    for problem in problems:
        print(f"not recorded: {problem}")
