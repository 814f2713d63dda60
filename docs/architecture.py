"""The architecture as the imports draw it: who imports whom, cycles, folder sizes, the picture of docs/architecture.md.

Every import counts: those inside functions and those for type checkers as well. `python docs/architecture.py` prints
cycles and the size of each package; `make docs` draws docs/architecture.svg.
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
STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)


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
    for node in _statements(ast.parse(path.read_text("utf-8"))):
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


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every statement, however deep: most nodes of a tree are expressions, in which no import stands."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        pending += (child for child in ast.iter_child_nodes(node) if isinstance(child, STATEMENTS))


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
    """Folder, relative to the package → source files directly in it, C++ included, `__init__.py` aside."""
    sources = (path for suffix in ("*.py", "*.cpp", "*.h") for path in package.rglob(suffix))
    counted = Counter(path.parent for path in sources if path.name != "__init__.py")
    return {folder.relative_to(package).as_posix(): count for folder, count in sorted(counted.items())}


def lines_by_package(package: Path = PACKAGE) -> dict[str, int]:
    """Package → lines of its sources, the kernel's C++ included."""
    counts: Counter[str] = Counter()
    for suffix in ("*.py", "*.cpp", "*.h"):
        for path in package.rglob(suffix):
            place = path.relative_to(package).parts
            counts[place[0] if len(place) > 1 else "."] += len(path.read_text("utf-8").splitlines())
    return dict(sorted(counts.items()))


# --- the picture


def layers(container: str = "bedplate") -> list[list[str]]:
    """The packages of a container from top to bottom, as pyproject.toml lists them: those on one line may not import
    each other. Empty without such a list. Packages that are not built yet are left out."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    for contract in contracts:
        if contract["type"] == "layers" and contract["containers"] == [container]:
            rows = [[name.strip() for name in row.split("|")] for row in contract["layers"]]
            built = [[name for name in row if not name.startswith("(")] for row in rows]
            return [row for row in built if row]
    return []


WIDTH, ROW, GAP, PAD = 1080, 20, 14, 12


def picture() -> str:
    """The packages as an SVG: a row for each layer, in each package its purpose and its subpackages."""
    parts: list[str] = []
    top = 34.0
    for row in layers():
        inner = {package: [" | ".join(layer) for layer in layers(f"bedplate.{package}")] for package in row}
        height = 2 * PAD + ROW * (2 + max(len(_wrapped(inner[package], len(row))) for package in row))
        width = (WIDTH - GAP * (len(row) + 1)) / len(row)
        for place, package in enumerate(row):
            x = GAP + place * (width + GAP)
            texts = [
                (package, "font-weight='600' font-size='15'"),
                (_job(package, len(row)), "fill='#57606a'"),
                *((line, "") for line in _wrapped(inner[package], len(row))),
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
        f"<text x='{GAP}' y='20' fill='#57606a'>Imports point down. Subpackages are listed from top to bottom, under "
        "the same rule.</text>"
    )
    return "\n".join([head, *parts, "</svg>", ""])


def _job(package: str, packages: int) -> str:
    """The purpose of a package: the first line of its docstring, cut to its width."""
    docstring = ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text("utf-8"))) or ""
    return textwrap.shorten(
        " ".join(docstring.split("\n\n")[0].split()), int((WIDTH / packages - 4 * PAD) / 6.8), placeholder=" …"
    )


def _wrapped(inner: list[str], packages: int) -> list[str]:
    """Subpackages as lines of text that fit a package's width."""
    limit = int(WIDTH / packages / 7.2)
    lines: list[str] = []
    for name in inner:
        if lines and len(lines[-1]) + len(name) + 3 <= limit:
            lines[-1] += f" › {name}"
        else:
            lines.append(name)
    return lines


def _cross_imports(graph: Graph) -> defaultdict[str, Counter[str]]:
    """Package → imported package → number of imports."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, targets in graph.items():
        for target in targets:
            ours, theirs = (module.split(".")[1] if "." in module else "" for module in (name, target))
            if ours and theirs and ours != theirs:
                counts[ours][theirs] += 1
    return counts


def table() -> str:
    """Each package and the packages it imports, as Markdown."""
    cross_imports = _cross_imports(imports())
    rows = ["| package | imports |", "|---|---|"]
    ordered = [package for row in layers() for package in row]
    for package in ordered:
        below = ", ".join(name for name in ordered if cross_imports[package][name])
        rows.append(f"| {package} | {below or '–'} |")
    return "\n".join(rows)


def main() -> None:
    graph = imports()
    for circle in circles(graph):
        print("circle:", ", ".join(circle))
    for folder, count in sorted(folders().items(), key=lambda folder_count: -folder_count[1])[:10]:
        print(f"{count:4} files in {folder}")
    lines = lines_by_package()
    for package, count in lines.items():
        print(f"{count:6,} lines in {package}")
    print(f"{sum(lines.values()):6,} lines in all")


if __name__ == "__main__":
    main()
