"""`bedplate pull`: fetch an item and show what it is."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from bedplate.cli.options import AllColumns
from bedplate.core.errors import UsageError
from bedplate.core.tables import Column, show
from bedplate.hub.catalog import CATALOG


def pull(
    source: Annotated[str | None, typer.Argument(help="Catalogue name, hf:owner/name[@revision], or a path.")] = None,
    show_list: Annotated[bool, typer.Option("--list", help="Show the catalogue and what is already here.")] = False,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="You accept the item's licence, where it asks for that.")
    ] = False,
    all_columns: AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fetch a base, an encoder or data, check its hash, and show where it lies and under which licence."""
    if show_list == (source is not None):
        raise UsageError("give either one item to pull or --list")
    if source is None:
        _show_list(as_json)
        return
    from bedplate.hub.pull import pull as pull_item

    pulled = pull_item(source, quiet=as_json, accept_licence=accept_licence)
    part_licences = dict(CATALOG[source].part_licences) if source in CATALOG else {}
    rows: dict[str, Any] = {**asdict(pulled), "path": str(pulled.path), "part_licences": part_licences}
    if as_json:
        print(json.dumps(rows))
        return
    rows["size"] = _megabytes(pulled.size_bytes)
    for key in ("name", "path", "licence", "size", "sha256", "source"):
        print(f"{key:<8} {rows[key]}")
    for part, licence in rows["part_licences"].items():
        print(f"  {part}: {licence}")


def _show_list(as_json: bool) -> None:
    from bedplate.hub.cache import content_path, is_accepted, is_cached

    rows: list[dict[str, Any]] = [
        {
            "name": artifact.name,
            "kind": artifact.artifact_type,
            "download_bytes": artifact.download_bytes,
            "licence": artifact.licence,
            "accepted": is_accepted(artifact),
            "part_licences": dict(artifact.part_licences),
            "description": artifact.description,
            "sha256": artifact.sha256,
            "path": str(content_path(artifact)) if is_cached(artifact) else None,
        }
        for artifact in CATALOG.values()
    ]
    if as_json:
        print(json.dumps(rows))
        return
    cells: list[tuple[str, ...]] = []
    for row in rows:
        licence = row["licence"] if row["accepted"] else f"{row['licence']} (to be accepted)"
        size, cached = _megabytes(row["download_bytes"]), "yes" if row["path"] else ""
        cells.append((row["name"], row["kind"], size, cached, licence, row["description"]))
    licence, about = Column("licence", prose=True), Column("description", prose=True, extra=True)
    show(("name", "kind", Column("download", right=True), "here", licence, about), cells)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"
