"""`bedplate skins trace`: the lineage of a skin, a base, a run or data as a tree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from bedplate.cli import paths

if TYPE_CHECKING:
    from bedplate.skins.lineage import LineageNode

_BRANCH, _BELOW = {False: "├── ", True: "└── "}, {False: "│   ", True: "    "}
_DETAIL_KEYS = ("kind", "rung", "seed", "code_version", "parent")


def trace(
    target: Annotated[
        str,
        typer.Argument(
            metavar="SKIN|HASH",
            help="A directory of a skin, base or run; a data file; or a name, id or hash in the catalogue.",
            callback=paths.catalog_target,
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a skin came from (run, data, splits, bases, seeds, parents) and what came from it.

    It goes both ways from anything that has a hash: from a skin to its data, and from a data file, a split or a base
    to every skin that was made from it. Ids and hashes may be cut to their first six characters.

    What lies in directories is read there. What came after is what the catalogue knows: `bedplate adapt` records what
    it makes, and `bedplate skins list DIR` what lies below a directory.

    \b
      bedplate skins trace runs/x/skins/lora
      bedplate skins trace reviews.jsonl          # skins that were made from this file, as it is now
      bedplate skins trace smollm2-135m
    """
    from bedplate.skins.catalog import Catalog
    from bedplate.skins.lineage import trace as lineage

    with Catalog.open() as catalog:
        provenance = lineage(target, catalog)
    if as_json:
        print(json.dumps(provenance.to_json()))
        return
    print(_line(provenance.subject))
    for heading, nodes, last in (("came from", provenance.came_from, False), ("became", provenance.became, True)):
        print(f"{_BRANCH[last]}{heading}{'' if nodes else ' nothing that is known'}")
        _show(nodes, _BELOW[last])


def _show(nodes: Sequence[LineageNode], indent: str) -> None:
    """Lines are not cut to the width of the screen: paths and hashes are there to be copied."""
    for number, node in enumerate(nodes, 1):
        last = number == len(nodes)
        print(f"{indent}{_BRANCH[last]}{_line(node)}")
        _show(node.nodes, indent + _BELOW[last])


def _line(node: LineageNode) -> str:
    parts = [node.what, "" if node.what == "unknown" else node.name, node.id[:12]]
    for key in _DETAIL_KEYS:
        if node.facts.get(key) not in (None, ""):
            parts.append(f"{key.replace('_', ' ')} {node.facts[key]}")
    if node.path is not None:
        parts.append(f"({node.path}{'' if node.here else ', gone or changed'})")
    return " ".join(filter(None, parts))
