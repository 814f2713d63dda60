"""Writes rows of the running interpreter's own standard library for the examples: real code, always there.

usage: library_rows.py [DIRECTORY]        rows/ beside this file by default

lines.jsonl: the next line of a function, for completion. functions.jsonl: a function's text, and what Python's own
parser says of it. search.jsonl: what a function's docstring says first, and its code without that. Which rows there are
depends on the interpreter's version.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bedplate.data.stdlib import read_modules

CONTEXT_LINES, CONTEXT_CHARACTERS = 12, 800
LINE_CHARACTERS = (8, 80)
FUNCTION_LINES, FUNCTION_CHARACTERS = (4, 24), 900
SAYS_CHARACTERS, SEARCHED_CHARACTERS = (25, 200), 700
FUNCTIONS_PER_MODULE = 3
"""At most so many rows of one module: functions of a module are alike, and what is judged by groups needs many."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Row = dict[str, Any]


def rows_of(modules: Iterable[tuple[str, str]], build_row: Builder) -> Iterator[Row]:
    """The rows of modules, by their files and texts: those of a drawn part of each one's functions, in their order."""
    for file, text in modules:
        module = ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")
        lines, candidates, visited = text.split("\n"), list[tuple[str, int, Row]](), set[str]()
        for name, node in _functions(ast.parse(text)):
            if name in visited:  # defined again under a condition
                continue
            visited.add(name)
            row = build_row(lines, node, _digest(f"{module}/{name}"))
            if row is not None:
                row_id = f"{module}.{name}"
                candidates.append((row_id, node.lineno, {"id": row_id, "module": module, **row}))
        drawn = sorted(candidates, key=lambda candidate: _digest(candidate[0]))[:FUNCTIONS_PER_MODULE]
        yield from (row for _, _, row in sorted(drawn, key=lambda candidate: candidate[1]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield f"{prefix}{child.name}", child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.If | ast.Try):
            yield from _functions(child, prefix)


Builder = Callable[[list[str], Function, str], Row | None]


def _next_line(lines: list[str], node: Function, digest: str) -> Row | None:
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
    return {"code": f"{code}\n", "line": lines[chosen - 1]} if code.strip() else None


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


def _signature(lines: list[str], node: Function, digest: str) -> Row | None:
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
    return {"code": code, "signature": row}


def _described(lines: list[str], node: Function, digest: str) -> Row | None:
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
    return None if len(code) > SEARCHED_CHARACTERS else {"says": summary, "code": code}


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


ROW_SETS: dict[str, Builder] = {"lines": _next_line, "functions": _signature, "search": _described}


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("rows")
    directory.mkdir(parents=True, exist_ok=True)
    modules = list(read_modules())
    for name, build_row in ROW_SETS.items():
        rows = list(rows_of(modules, build_row))
        path = directory / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{path}: {len(rows):,} rows of {len(modules):,} modules")


if __name__ == "__main__":
    main()
