"""The house as its imports draw it: who imports whom, circles, folders, and the picture of docs/architecture.md.

Every import counts: those inside functions and those for type checkers as well. `python docs/house.py` says what it
finds and how large each room is; `make docs` draws docs/house.svg.
"""

from __future__ import annotations

import ast
import html
import sys
import textwrap
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "bedplate"
Graph = Mapping[str, Set[str]]


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Dotted name → file."""
    module_paths: dict[str, Path] = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        module_paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return module_paths


def imports(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Dotted name → the package's modules that it imports."""
    module_paths = modules(package)
    return {name: {*_imported(name, path, module_paths)} - {name} for name, path in module_paths.items()}


def _imported(name: str, path: Path, module_paths: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in module_paths)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            base = node.module if node.level == 0 else f"{_parent(name, path, node.level)}.{node.module}"
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                if whole in module_paths:
                    yield whole
                elif base in module_paths:
                    yield base


def _parent(name: str, path: Path, level: int) -> str:
    parts = name.split(".")
    return ".".join(parts[: len(parts) - level + (path.name == "__init__.py")])


def circles(graph: Graph) -> list[list[str]]:
    """The sets of modules that import each other in a circle (strongly connected components, Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            circle = stack[at:]
            del stack[at:]
            if len(circle) > 1:
                components.append(sorted(circle))

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 4 * len(graph) + 100))
    try:
        for node in sorted(graph):
            if node not in index:
                visit(node)
    finally:
        sys.setrecursionlimit(limit)
    return components


def folders(package: Path = PACKAGE) -> dict[str, int]:
    """Folder, relative to the package → Python files directly in it, `__init__.py` aside."""
    counted = Counter(path.parent for path in package.rglob("*.py") if path.name != "__init__.py")
    return {folder.relative_to(package).as_posix(): count for folder, count in sorted(counted.items())}


def lines_by_room(package: Path = PACKAGE) -> dict[str, int]:
    """Room → lines of its sources, the kernel's C++ included."""
    counts: Counter[str] = Counter()
    for suffix in ("*.py", "*.cpp", "*.h"):
        for path in package.rglob(suffix):
            place = path.relative_to(package).parts
            counts[place[0] if len(place) > 1 else "."] += len(path.read_text("utf-8").splitlines())
    return dict(sorted(counts.items()))


# --- the picture


def layers(container: str = "bedplate") -> list[list[str]]:
    """The rooms of a container from top to bottom, those that may not import each other on one line, as pyproject.toml
    has them; empty where it has no such list. Rooms that are not built yet are left out."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    for contract in contracts:
        if contract["type"] == "layers" and contract["containers"] == [container]:
            rows = [[name.strip() for name in row.split("|")] for row in contract["layers"]]
            built = [[name for name in row if not name.startswith("(")] for row in rows]
            return [row for row in built if row]
    return []


WIDTH, ROW, GAP, PAD = 1080, 20, 14, 12


def picture() -> str:
    """The rooms as an SVG: a row for each layer, in each room what it is for and its inner rooms."""
    parts: list[str] = []
    top = 34.0
    for row in layers():
        inner = {room: [" | ".join(layer) for layer in layers(f"bedplate.{room}")] for room in row}
        height = 2 * PAD + ROW * (2 + max(len(_wrapped(inner[room], len(row))) for room in row))
        width = (WIDTH - GAP * (len(row) + 1)) / len(row)
        for place, room in enumerate(row):
            x = GAP + place * (width + GAP)
            texts = [
                (room, "font-weight='600' font-size='15'"),
                (_job(room, len(row)), "fill='#57606a'"),
                *((line, "") for line in _wrapped(inner[room], len(row))),
            ]
            parts.append(
                f"<rect x='{x:.0f}' y='{top:.0f}' width='{width:.0f}' height='{height}' rx='6' fill='#f4f7fb' "
                "stroke='#9fb3c8'/>"
            )
            for number, (text, style) in enumerate(texts):
                y = top + PAD + ROW * (number + 0.7)
                parts.append(f"<text x='{x + PAD:.0f}' y='{y:.0f}' {style}>{html.escape(text)}</text>")
        top += height + GAP
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {top:.0f}' font-family='system-ui, sans-serif' "
        "font-size='12.5' fill='#1b1f24'><rect width='100%' height='100%' fill='white'/>"
        f"<text x='{GAP}' y='20' fill='#57606a'>Imports point down. Inner rooms are listed from top to bottom, under "
        "the same rule.</text>"
    )
    return "\n".join([head, *parts, "</svg>", ""])


def _job(room: str, rooms: int) -> str:
    """What a room is for: the first line of its docstring, cut to its width."""
    docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text("utf-8"))) or ""
    return textwrap.shorten(
        " ".join(docstring.split("\n\n")[0].split()), int((WIDTH / rooms - 4 * PAD) / 6.8), placeholder=" …"
    )


def _wrapped(inner: list[str], rooms: int) -> list[str]:
    """Inner rooms as lines of text that fit a room's width."""
    limit = int(WIDTH / rooms / 7.2)
    lines: list[str] = []
    for name in inner:
        if lines and len(lines[-1]) + len(name) + 3 <= limit:
            lines[-1] += f" › {name}"
        else:
            lines.append(name)
    return lines


def _cross_imports(graph: Graph) -> defaultdict[str, Counter[str]]:
    """Room → other room → how many imports go there."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, targets in graph.items():
        for target in targets:
            ours, theirs = (module.split(".")[1] if "." in module else "" for module in (name, target))
            if ours and theirs and ours != theirs:
                counts[ours][theirs] += 1
    return counts


def table() -> str:
    """Room, and what it imports of the others, as Markdown."""
    cross_imports = _cross_imports(imports())
    rows = ["| room | imports |", "|---|---|"]
    ordered = [room for row in layers() for room in row]
    for room in ordered:
        below = ", ".join(name for name in ordered if cross_imports[room][name])
        rows.append(f"| {room} | {below or '–'} |")
    return "\n".join(rows)


def main() -> None:
    graph = imports()
    for circle in circles(graph):
        print("circle:", ", ".join(circle))
    for folder, count in sorted(folders().items(), key=lambda folder_count: -folder_count[1])[:10]:
        print(f"{count:4} files in {folder}")
    lines = lines_by_room()
    for room, count in lines.items():
        print(f"{count:6,} lines in {room}")
    print(f"{sum(lines.values()):6,} lines in all")


if __name__ == "__main__":
    main()
