"""`bedplate data explain`: what became of one document."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from bedplate.cli.options import CorpusDirectory


def explain(
    directory: CorpusDirectory,
    id: Annotated[
        str, typer.Argument(metavar="ID", help="The document: its path in its source, or what its row is named by.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What became of one document, and why: kept in a split, or dropped by a rule with what it measured."""
    from bedplate.data.corpus.fates import fates_of

    fates = fates_of(directory, id)
    if as_json:
        print(json.dumps([{**asdict(fate), "kept": fate.rule is None} for fate in fates]))
        return
    for fate in fates:
        print(fate.line)
