"""Lineage both ways: from a skin to the run, data, bases and skins that it was made from, and from any of these to what
was made from it.

What stands in the directories (skin.json, base.json, run.json) is read there. The catalogue says where other things
lie, and it alone knows what came after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bedplate.core.errors import BedplateError, UnknownItemError
from bedplate.core.files import sha256_file
from bedplate.models.checkpoints.base import BASE_FILE
from bedplate.skins import records
from bedplate.skins.catalog import Catalog
from bedplate.skins.files import CASCADED, read_skin, skin_id
from bedplate.skins.manifest import SKIN_FILE, manifest_id, read_manifest
from bedplate.skins.records import CatalogRecord
from bedplate.skins.run import RUN_FILE, Run
from bedplate.skins.skin import EndpointReference, Skin


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
        """Itself and everything below it."""
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
    resolver = _Resolver(catalog)
    id_ = resolver.identify(target)
    subject = replace(resolver.node(id_), parents=tuple(resolver.parents(id_)))
    return Trace(subject, _tree(id_, resolver.parents, resolver), _tree(id_, catalog.children, resolver))


class _Resolver:
    """The catalogue, and before it what is read in directories on the way."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._read: dict[str, CatalogRecord] = {}
        self._looked: set[str] = set()

    def identify(self, target: str | Path) -> str:
        path = Path(target)
        for name in (SKIN_FILE, BASE_FILE, RUN_FILE):
            if (path / name).is_file():
                if name == SKIN_FILE:
                    return self._of_skin(read_skin(path), path)
                return self._remember(records.of_file(path / name))
        if path.exists():
            artifact = self._catalog.get(sha256_file(path)) if path.is_file() else None
            artifact = artifact or self._catalog.lying_at(path)
            if artifact is None:
                raise UnknownItemError(
                    f"the catalogue {self._catalog.path} knows nothing that was made from {path} as it is now; "
                    "`bedplate skins list DIR` records what lies below a directory"
                )
            return artifact.id
        return self._catalog.resolve(str(target)).id

    def parents(self, id_: str) -> list[str]:
        self._look(id_)
        read = self._read.get(id_)
        return list(dict.fromkeys([*(() if read is None else read.parents), *self._catalog.parents(id_)]))

    def node(self, id_: str) -> LineageNode:
        """It without what is above or below."""
        is_present = self._look(id_)
        read, artifact = self._read.get(id_), self._catalog.get(id_)
        if read is not None:
            path = read.path if artifact is None or read.path is not None else artifact.path
            return LineageNode(
                read.artifact_type, read.name, id_, None if path is None else str(path), is_present, dict(read.details)
            )
        if artifact is None:
            return LineageNode("unknown", id_[:12], id_)
        return LineageNode(
            artifact.artifact_type, artifact.name, id_, artifact.path, is_present, dict(artifact.details)
        )

    def _look(self, id_: str) -> bool:
        """Read what lies where the thing lay; whether that is still it."""
        read, artifact = self._read.get(id_), self._catalog.get(id_)
        path = read.path if read is not None and read.path is not None else None if artifact is None else artifact.path
        if path is None:
            return False
        place, artifact_type = (
            Path(path),
            read.artifact_type if read is not None else artifact.artifact_type if artifact is not None else "",
        )
        if id_ not in self._looked:
            self._looked.add(id_)
            with suppress(BedplateError, OSError, ValueError):  # gone, or something else lies there now
                self._read_again(id_, place, artifact_type)
        return self._lies_at(id_, place, artifact_type)

    def _read_again(self, id_: str, place: Path, artifact_type: str) -> None:
        if artifact_type == "skin" and manifest_id(read_manifest(place)) == id_ and id_ not in self._read:
            self._of_skin(read_skin(place), place)
        elif artifact_type == "base" and (place / BASE_FILE).is_file():
            record = records.of_base(place / BASE_FILE)
            if record.id == id_:
                self._remember([record])
        elif artifact_type == "run" and Run.read(place).id == id_:
            self._remember(records.of_run(place))

    @staticmethod
    def _lies_at(id_: str, place: Path, artifact_type: str) -> bool:
        try:
            if artifact_type == "skin":
                return manifest_id(read_manifest(place)) == id_
            if artifact_type == "run":
                return Run.read(place).id == id_
            if artifact_type == "report":
                return place.is_file() and sha256_file(place) == id_
            if artifact_type == "base" and (place / BASE_FILE).is_file():
                return records.of_base(place / BASE_FILE).id == id_
            return place.exists()
        except (BedplateError, OSError, ValueError):
            return False

    def _of_skin(self, skin: Skin, directory: Path) -> str:
        """A skin with what it names, and of a cascade the two within it."""
        if skin.cascade is not None:
            for name, part in zip(CASCADED, (skin.cascade.first, skin.cascade.second), strict=True):
                artifact = self._catalog.get(skin_id(part))
                part_directory = None if artifact is None or artifact.path is None else Path(artifact.path)
                self._of_skin(
                    part, directory / name if part_directory is None or not part_directory.is_dir() else part_directory
                )
        *before, skin_record = records.of_skin(skin, directory.absolute())
        return self._remember([*before, replace(skin_record, details={**skin_record.details, **_facts(skin)})])

    def _remember(self, new_records: Iterable[CatalogRecord]) -> str:
        last = ""
        for record in new_records:
            details, last = dict(record.details), record.id
            if record.hearsay and (record.id in self._read or self._catalog.get(record.id) is not None):
                continue
            if record.artifact_type == "run" and record.path is not None:
                run_fields = Run.read(Path(record.path)).model_dump(
                    mode="json", exclude={"id", "bases", "data", "task"}
                )
                details |= {key: value for key, value in run_fields.items() if value is not None}
            self._read[record.id] = replace(record, details=details)
        return last


def _facts(skin: Skin) -> dict[str, Any]:
    """What a skin says of how it was made, besides what has a hash."""
    origin = skin.provenance
    remote = [used.name for used in skin.bases.values() if isinstance(used, EndpointReference)]
    return {
        "seed": origin.seed,
        "code_version": origin.code_version,
        "evaluated_with": None if skin.evaluated_with is None else skin.evaluated_with.model_dump(),
        **({"endpoints": remote} if remote else {}),
    }


def _tree(start: str, following: Callable[[str], Iterable[str]], resolver: _Resolver) -> tuple[LineageNode, ...]:
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
            resolver.node(id_),
            parents=tuple(resolver.parents(id_)),
            nodes=_sorted(nodes[child] for child in below.get(id_, ())),
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


def _sorted(nodes: Iterable[LineageNode]) -> tuple[LineageNode, ...]:
    order = ("run", "skin", "base", "data", "report", "unknown")
    return tuple(sorted(nodes, key=lambda node: (order.index(node.what), node.name, node.id)))
