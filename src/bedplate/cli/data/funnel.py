"""`bedplate data funnel`: what each rule took away of a corpus."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from bedplate.cli.options import PageFile, write_page
from bedplate.core.progress import console


def funnel(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The corpus directory.", show_default=False)],
    page: PageFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What each rule removed from a corpus, in order, with the reasons, and what came out by source.

    --page writes one page with examples of what was dropped and lengths before and after.
    """
    from bedplate.data.corpus.funnel import read_funnel

    found = read_funnel(directory)
    if page is not None:
        from bedplate.report.corpus import corpus_page

        write_page(page, corpus_page(found))
    if as_json:
        print(json.dumps(found))
    else:
        show(found)


def show(found: Mapping[str, Any]) -> None:
    """The tables on the terminal."""
    from rich.markup import escape
    from rich.table import Table

    screen = console()
    table = Table(title=escape(f"{found['corpus']}: what was kept"), title_justify="left")
    for name in ("step", "in", "dropped", "out", "why"):
        table.add_column(name, justify="right" if name in {"in", "dropped", "out"} else "left")
    table.add_row("read", "", "", f"{found['documents']:,}", f"{found['bytes'] / 1e6:,.1f} MB")
    for step in found["steps"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in step["reasons"].items())
        table.add_row(step["rule"], f"{step['in']:,}", f"{step['dropped']:,}", f"{step['out']:,}", escape(reasons))
    table.add_row("kept", "", "", f"{found['kept']:,}", f"{found['kept_bytes'] / 1e6:,.1f} MB")
    screen.print(table)
    table = Table(title="By source", title_justify="left")
    for name in ("source", "read", "kept", "train", "valid", "tokens", "bytes per token"):
        table.add_column(name, justify="left" if name == "source" else "right")
    for name, one in found["sources"].items():
        splits = (f"{one['splits'].get(split, 0):,}" for split in ("train", "valid"))
        counts = f"{one['documents']:,}", f"{one['kept']:,}", *splits, f"{one['tokens']:,}"
        table.add_row(escape(name), *counts, f"{one['bytes_per_token']:.2f}")
    screen.print(table)
    if found["changed"]:
        changed = ", ".join(f"{rule} {count:,}" for rule, count in found["changed"].items())
        screen.print(f"Documents that were kept with a changed text: {changed}", highlight=False)
