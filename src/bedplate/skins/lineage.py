"""Lineage both ways: from a skin to the run, data, bases and skins that it was made from, and from any of these to what
was made from it.

What stands in the directories (skin.json, base.json, run.json) is read there. The catalogue says where other things
lie, and it alone knows what came after.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bedplate.core.errors import BedplateError, UnknownItemError
from bedplate.core.files import sha256_file
from bedplate.models.checkpoints.base import BASE_FILE
from bedplate.skins import records
from bedplate.skins.catalog import Catalog
from bedplate.skins.files import CASCADED
from bedplate.skins.manifest import SKIN_FILE, manifest_id, read_manifest
from bedplate.skins.records import RUN_FILE, ArtifactType

_FILES: dict[ArtifactType, str] = {"skin": SKIN_FILE, "base": BASE_FILE, "run": RUN_FILE}


@dataclass(frozen=True)
class LineageNode:
    """One thing in a lineage. what: skin, base, run, report, data, or unknown (an id that nothing is known of). path:
    where it lies or lay; here: whether it still does, unchanged. parents: ids of all that it was made from. nodes: what
    it came from, or what came from it, each thing in one place only."""

    what: str
    name: str
    id: str
    path: str | None = None
    here: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    parents: tuple[str, ...] = ()
    nodes: tuple[LineageNode, ...] = ()

    def walk(self) -> Iterator[LineageNode]:
        yield self
        for node in self.nodes:
            yield from node.walk()


@dataclass(frozen=True)
class Trace:
    """`subject` without nodes; what it came from, and what came from it, as trees in which everything stands once, as
    far from the subject as the longest way to it."""

    subject: LineageNode
    came_from: tuple[LineageNode, ...]
    became: tuple[LineageNode, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def trace(target: str | Path, catalog: Catalog) -> Trace:
    """The lineage of a skin, base or run by its directory, of a data file by its content, or of anything by its name,
    its id or hash, or the beginning of one, in the catalogue. UnknownItemError; UsageError for a beginning of several;
    SkinError for a skin that does not read."""
    with _View(catalog) as view:
        id_ = view.identify(Path(target))
        came_from = _tree(id_, view.sources, view)
        return Trace(view.node(id_), came_from, _tree(id_, view.children, view))


class _View(Catalog):
    """A copy of the catalogue in memory: what is read in directories on the way is recorded there."""

    def __init__(self, catalog: Catalog) -> None:
        self.path, self._connection = catalog.path, sqlite3.connect(":memory:", isolation_level=None)
        catalog._connection.backup(self._connection)
        self._present: dict[str, bool] = {}

    def identify(self, target: Path) -> str:
        """The id of what lies there, or is called so."""
        file = next((target / name for name in _FILES.values() if (target / name).is_file()), None)
        if file is not None:
            return self._read(file)
        if not target.exists():
            return self.resolve(str(target)).id
        artifact = (self.get(sha256_file(target)) if target.is_file() else None) or self.lying_at(target)
        if artifact is None:
            message = f"the catalogue {self.path} knows nothing that was made from {target} as it is now;"
            raise UnknownItemError(f"{message} `bedplate skins list DIR` records what lies below a directory")
        return artifact.id

    def sources(self, id_: str) -> list[str]:
        """`parents`, those that its own directory names as well."""
        self._is_present(id_)
        return self.parents(id_)

    def node(self, id_: str) -> LineageNode:
        """It without what is above or below."""
        is_present, artifact, parents = self._is_present(id_), self.get(id_), tuple(self.parents(id_))
        if artifact is None:
            return LineageNode("unknown", id_[:12], id_, parents=parents)
        type_, path, details = artifact.artifact_type, artifact.path, dict(artifact.details)
        return LineageNode(type_, artifact.name, id_, path, is_present, details, parents)

    def _is_present(self, id_: str) -> bool:
        """Whether the thing still lies where it lay; what lies there is read."""
        artifact = self.get(id_)
        if id_ not in self._present and artifact is not None and artifact.path is not None:
            try:
                self._present[id_] = self._lies_at(id_, artifact.artifact_type, Path(artifact.path))
            except (BedplateError, OSError, ValueError):  # gone, or something else lies there now
                self._present[id_] = False
        return self._present.get(id_, False)

    def _lies_at(self, id_: str, artifact_type: ArtifactType, place: Path) -> bool:
        if artifact_type == "report":
            return sha256_file(place) == id_
        name = _FILES.get(artifact_type)
        if name is None or (artifact_type == "base" and not (place / name).is_file()):
            return place.exists()
        if artifact_type == "skin" and manifest_id(read_manifest(place)) != id_:
            return False
        return self._read(place / name) == id_

    def _read(self, file: Path) -> str:
        """Records what a file is about, and of a cascade the two skins within it."""
        for part in (file.parent / name / SKIN_FILE for name in CASCADED):
            if file.name == SKIN_FILE and part.is_file():
                self.record(replace(record, hearsay=True) for record in records.of_file(part))
        return self.record(records.of_file(file))


def _tree(start: str, following: Callable[[str], Iterable[str]], view: _View) -> tuple[LineageNode, ...]:
    """What is reached from `start`, each thing once: below the farthest of those that lead to it."""
    edges = _reached(start, following)
    rank = {id_: number for number, id_ in enumerate(edges)}
    depth, parent_of = {start: 0}, dict[str, str]()
    for id_ in edges:
        for successor in edges[id_]:
            if rank[successor] > rank[id_] and depth[id_] + 1 > depth.get(successor, 0):  # an edge back closes a cycle
                depth[successor], parent_of[successor] = depth[id_] + 1, id_
    below: dict[str, list[str]] = {}
    for id_ in edges:
        if id_ != start:
            below.setdefault(parent_of[id_], []).append(id_)
    nodes: dict[str, LineageNode] = {}
    for id_ in reversed(edges):
        nodes[id_] = replace(
            view.node(id_), nodes=tuple(sorted((nodes[child] for child in below.get(id_, ())), key=_order))
        )
    return nodes[start].nodes


def _reached(start: str, following: Callable[[str], Iterable[str]]) -> dict[str, list[str]]:
    """Id → ids that follow, in an order in which whatever leads to a thing stands before it (cycles apart)."""
    edges: dict[str, list[str]] = {start: list(following(start))}
    finished: list[str] = []
    stack = [(start, iter(edges[start]))]
    while stack:
        id_, successors = stack[-1]
        successor = next((candidate for candidate in successors if candidate not in edges), None)
        if successor is None:
            finished.append(id_)
            stack.pop()
        else:
            edges[successor] = list(following(successor))
            stack.append((successor, iter(edges[successor])))
    return {id_: edges[id_] for id_ in reversed(finished)}


def _order(node: LineageNode) -> tuple[int, str, str]:
    return ("run", "skin", "base", "data", "report", "unknown").index(node.what), node.name, node.id
