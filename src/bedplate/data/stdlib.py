"""Data sets made of the running interpreter's own standard library: real code, always there, nothing to download.

`stdlib-lines`: the next line of a function, for completion. `stdlib-functions`: a function's text, and what Python's
own parser says of it. `stdlib-search`: what a function's docstring says first, and its code without that. Which rows
there are depends on the interpreter's version; the hash of the files says which.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import platform
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bedplate.core.errors import DataError
from bedplate.core.files import sha256_bytes
from bedplate.core.progress import Progress
from bedplate.data.rows import Row, SourceRows

LICENCE = "PSF-2.0"
CONTEXT_LINES, CONTEXT_CHARACTERS = 12, 800
LINE_CHARACTERS = (8, 80)
FUNCTION_LINES, FUNCTION_CHARACTERS = (4, 24), 900
SAYS_CHARACTERS, SEARCHED_CHARACTERS = (25, 200), 700
FUNCTIONS_PER_MODULE = 3
"""At most so many rows of one module: functions of a module are alike, and what is judged by groups needs many."""
RETRIES = 3

INSTALLED = frozenset(("site-packages", "dist-packages"))
NOT_LIBRARY = INSTALLED | {"test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings"}
"""Folders of what is not the library itself, or is written by programs."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def read_stdlib(source: str) -> SourceRows:
    """The rows of STDLIB_SETS by name, in the order of module and line. DataError where the library has no source."""
    root = library_root()
    rows: list[Row] = []
    lines: list[int] = []
    digest = hashlib.sha256()
    unread = files = 0
    paths = library_files()
    with Progress(source, len(paths), "files") as bar:
        for path in paths:
            bar.advance(1)
            try:
                content = path.read_bytes()
                text, tree = _parsed(content)
            except (OSError, SyntaxError, ValueError):
                unread += 1
                continue
            files += 1
            relative = path.relative_to(root)
            digest.update(f"{relative.as_posix()}\0{sha256_bytes(content)}\n".encode())
            module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            for row, line in _rows_of(module, text, tree, STDLIB_SETS[source]):
                rows.append(row)
                lines.append(line)
    if not rows:
        raise DataError(f"{source}: there is no source code in {root}; this Python comes without its library's source")
    note = f"{source}: {files} modules of the standard library of Python {platform.python_version()}"
    notes = (note + (f"; {unread} files could not be parsed" if unread else ""),)
    return SourceRows.of(rows, lines, digest.hexdigest(), source, root, licence=LICENCE, notes=notes)


def read_modules() -> Iterator[tuple[str, str]]:
    """Each module's file, relative to the library, and its text; what Python cannot parse is passed over."""
    root = library_root()
    for path in library_files():
        try:
            text, _ = _parsed(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        yield path.relative_to(root).as_posix(), text


def library_root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def library_files(without: frozenset[str] = NOT_LIBRARY) -> list[Path]:
    """Files of the library's source, sorted, without those in folders of these names."""
    root = library_root()
    return sorted(p for p in root.rglob("*.py") if not without & set(p.relative_to(root).parts[:-1]))


def _parsed(content: bytes) -> tuple[str, ast.Module]:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    text = content.decode(encoding).replace("\r\n", "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the code that is read, not of ours
        for _ in range(RETRIES):
            # CPython 3.11 counts the depth of trees in one place for all threads, and raises this where two of them
            # parse at once (python/cpython#106905): it says nothing of the text.
            with contextlib.suppress(SystemError):
                return text, ast.parse(text)
        return text, ast.parse(text)


def _rows_of(module: str, text: str, tree: ast.Module, build_row: Maker) -> Iterator[tuple[dict[str, Any], int]]:
    """A module's rows: those of a drawn part of its functions, in their order."""
    lines = text.split("\n")
    candidates: list[tuple[str, dict[str, Any], int]] = []
    visited: set[str] = set()
    for name, node in _functions(tree):
        if name in visited:  # defined again under a condition
            continue
        visited.add(name)
        row_line = build_row(lines, node, sha256_bytes(f"{module}/{name}".encode()))
        if row_line is not None:
            row, line = row_line
            candidates.append((f"{module}.{name}", {"id": f"{module}.{name}", "module": module, **row}, line))
    drawn = sorted(candidates, key=lambda candidate: sha256_bytes(candidate[0].encode()))[:FUNCTIONS_PER_MODULE]
    return ((row, line) for _, row, line in sorted(drawn, key=lambda candidate: candidate[2]))


def _functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield f"{prefix}{child.name}", child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.If | ast.Try):
            yield from _functions(child, prefix)


Maker = Callable[[list[str], Function, str], tuple[dict[str, Any], int] | None]


def _next_line(lines: list[str], node: Function, digest: str) -> tuple[dict[str, Any], int] | None:
    """One line of the function's body, drawn by `digest`, and the lines before it, as far back as fits."""
    first, last = _body_start(node), node.end_lineno or node.lineno
    fitting = [n for n in range(first + 1, last + 1) if _is_code(lines[n - 1])]
    if not fitting:
        return None
    chosen = fitting[int(digest[:8], 16) % len(fitting)]
    start = chosen - 1
    while start > 0 and chosen - start <= CONTEXT_LINES:
        if sum(len(line) + 1 for line in lines[start - 1 : chosen - 1]) > CONTEXT_CHARACTERS:
            break
        start -= 1
    code = "\n".join(lines[start : chosen - 1]).lstrip("\n")
    return ({"code": f"{code}\n", "line": lines[chosen - 1]}, chosen) if code.strip() else None


def _is_code(line: str) -> bool:
    """Long enough to say something, short enough to be said, and neither a comment nor a string alone."""
    bare = line.strip()
    low, high = LINE_CHARACTERS
    return low <= len(bare) <= high and bare[0] not in "#\"'" and "\t" not in line and bare.isprintable()


def _body_start(node: Function) -> int:
    """The first line of the body, after the docstring."""
    has_doc = ast.get_docstring(node, clean=False) is not None
    body = node.body[1:] if has_doc else node.body
    return body[0].lineno if body else (node.end_lineno or node.lineno)


def _signature(lines: list[str], node: Function, digest: str) -> tuple[dict[str, Any], int] | None:
    """The function's text, and its name, parameters, exceptions that it raises by name, whether it gives a value."""
    last = node.end_lineno or node.lineno
    body = lines[node.lineno - 1 : last]
    min_lines, max_lines = FUNCTION_LINES
    code = "\n".join(line[node.col_offset :] if line[: node.col_offset].isspace() else line for line in body)
    if not min_lines <= len(body) <= max_lines or len(code) > FUNCTION_CHARACTERS:
        return None
    arguments = node.args
    parameters = [*arguments.posonlyargs, *arguments.args, *filter(None, [arguments.vararg]), *arguments.kwonlyargs]
    names = [parameter.arg for parameter in (*parameters, *filter(None, [arguments.kwarg]))]
    raised, returns_value = _outcome(node)
    row = {
        "name": node.name,
        "parameters": [name for name in names if name not in ("self", "cls")],
        "raises": raised,
        "returns_value": returns_value,
    }
    return {"code": code, "signature": row}, node.lineno


def _described(lines: list[str], node: Function, digest: str) -> tuple[dict[str, Any], int] | None:
    """The first paragraph of the docstring on one line, and the function's text without the docstring."""
    summary = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    last, body = node.end_lineno or node.lineno, _body_start(node)
    min_chars, max_chars = SAYS_CHARACTERS
    doc = node.body[0]
    named = f"{node.name}(" in summary  # that would be a search for a word
    if named or not min_chars <= len(summary) <= max_chars or len(node.body) < 2 or not node.lineno < doc.lineno < body:
        return None
    code_lines = [*lines[node.lineno - 1 : doc.lineno - 1], *lines[doc.end_lineno or doc.lineno : last]]
    code = "\n".join(line[node.col_offset :] if line[: node.col_offset].isspace() else line for line in code_lines)
    return None if len(code) > SEARCHED_CHARACTERS else ({"says": summary, "code": code}, node.lineno)


def _outcome(node: Function) -> tuple[list[str], bool]:
    """Names in the function's own `raise` statements, each once in order; whether it returns or yields a value."""
    raised: dict[str, None] = {}
    returns_value = False
    waiting: list[ast.AST] = list(reversed(node.body))
    while waiting:
        current = waiting.pop()
        if isinstance(current, Function | ast.ClassDef | ast.Lambda):
            continue  # what an inner function does is its own
        if isinstance(current, ast.Raise) and current.exc is not None:
            called = current.exc.func if isinstance(current.exc, ast.Call) else current.exc
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)
            if isinstance(name, str) and name[:1].isupper():  # a class: a variable is named in lower case
                raised[name] = None
        if isinstance(current, ast.Yield | ast.YieldFrom):
            returns_value = True
        if isinstance(current, ast.Return) and current.value is not None:
            is_none = isinstance(current.value, ast.Constant) and current.value.value is None
            returns_value = returns_value or not is_none
        waiting.extend(reversed(list(ast.iter_child_nodes(current))))
    return list(raised), returns_value


STDLIB_SETS: dict[str, Maker] = {
    "stdlib-lines": _next_line,
    "stdlib-functions": _signature,
    "stdlib-search": _described,
}
