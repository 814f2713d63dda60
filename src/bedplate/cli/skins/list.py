"""`bedplate skins list`: the skins that the catalogue knows."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Annotated

import typer

from bedplate.cli import paths
from bedplate.cli.options import Wide
from bedplate.core.tables import show


def list(
    directories: Annotated[
        builtins.list[Path] | None,
        typer.Argument(help="Directories to look through and record.", show_default=False, callback=paths.directories),
    ] = None,
    wide: Wide = False,
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
        print(json.dumps({"skins": [entry.to_json() for entry in entries], "problems": problems}))
        return
    rows: builtins.list[tuple[str, ...]] = []
    for entry in entries:
        cells = (str(entry.details.get(key) or "") for key in ("kind", "task", "base"))
        gone = "" if entry.path and Path(entry.path).is_dir() else " (gone)"
        rows.append((entry.name, *cells, entry.id[:12], f"{entry.path}{gone}"))
    show(("name", "kind", "task", "base", "id", "path"), rows)
    for problem in problems:
        print(f"not recorded: {problem}")
