"""The rows of Python's own library that `examples/library_rows.py` writes: right by Python's own tools."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import textwrap
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bedplate.data import stdlib
from bedplate.data.sources import read_rows

SCRIPT = Path(__file__).parents[2] / "examples" / "library_rows.py"
MODULES = ("textwrap", "argparse", "json.decoder", "shlex", "graphlib")


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("library_rows", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


library_rows: Any = _script()


@cache
def modules() -> list[tuple[str, str]]:
    """MODULES, and every fortieth module besides."""
    root, files = stdlib.library_root(), stdlib.library_files()
    named = {root / f"{module.replace('.', '/')}.py" for module in MODULES}
    drawn = [path for number, path in enumerate(files) if number % 40 == 0 or path in named]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdlib, "library_files", lambda: drawn)  # each is parsed when it is read
        return list(stdlib.read_modules())


@cache
def rows_of(name: str) -> list[dict[str, Any]]:
    return list(library_rows.rows_of(modules(), library_rows.ROW_SETS[name]))


@pytest.mark.parametrize("name", sorted(library_rows.ROW_SETS))
def test_rows_are_named_once_and_from_no_module_alone(name: str):
    rows = rows_of(name)
    assert len({row["id"] for row in rows}) == len(rows)
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["module"]] = counts.get(row["module"], 0) + 1
    assert max(counts.values()) <= library_rows.FUNCTIONS_PER_MODULE
    assert not any(name.startswith(("test.", "idlelib", "encodings.", "site-packages")) for name in counts)


def test_lines_are_the_lines_that_follow():
    checked = 0
    for row in rows_of("lines"):
        if row["module"] not in MODULES:
            continue
        source = inspect.getsource(importlib.import_module(row["module"]))
        assert f"{row['code']}{row['line']}\n" in source
        assert len(row["code"]) <= library_rows.CONTEXT_CHARACTERS + library_rows.LINE_CHARACTERS[1] + 200
        checked += 1
    assert checked > 8


def test_signatures_are_what_inspect_says():
    checked = 0
    for row in rows_of("functions"):
        if row["module"] not in MODULES:
            continue
        target: object = importlib.import_module(row["module"])
        for name in row["id"].removeprefix(row["module"] + ".").split("."):
            target = inspect.getattr_static(target, name)
        if not inspect.isfunction(target):
            continue
        expected = [name for name in inspect.signature(target).parameters if name not in ("self", "cls")]
        assert row["signature"]["parameters"] == expected
        assert row["signature"]["name"] == target.__name__
        assert textwrap.dedent(inspect.getsource(target)).strip() == row["code"].strip()
        checked += 1
    assert checked > 8


def test_what_is_searched_is_the_function_without_what_is_said_of_it():
    checked = 0
    for row in rows_of("search"):
        (shown,) = ast.parse(row["code"]).body
        assert isinstance(shown, ast.FunctionDef | ast.AsyncFunctionDef)
        assert row["says"] not in row["code"]
        if row["module"] not in MODULES:
            continue
        target: object = importlib.import_module(row["module"])
        for name in row["id"].removeprefix(row["module"] + ".").split("."):
            target = inspect.getattr_static(target, name)
        if not inspect.isfunction(target) or getattr(target, "__wrapped__", None) is not None:
            continue
        assert row["says"] == " ".join((inspect.getdoc(target) or "").split("\n\n")[0].split())
        (whole_one,) = ast.parse(textwrap.dedent(inspect.getsource(target))).body
        assert isinstance(whole_one, ast.FunctionDef | ast.AsyncFunctionDef)
        assert [ast.dump(statement) for statement in shown.body] == [
            ast.dump(statement) for statement in whole_one.body[1:]
        ]
        checked += 1
    assert checked > 8


def test_raised_names_and_values_are_the_functions_own():
    code = '''
def outer(a, /, b, *more, c=1, **rest):
    """Says."""
    def inner():
        raise KeyError(a)
    if a:
        raise ValueError("x") from None
    if b:
        raise mod.OddError
    error = TypeError()
    raise error
    return None
'''
    node = ast.parse(code).body[0]
    assert isinstance(node, ast.FunctionDef)
    row = library_rows._signature(code.split("\n"), node, "0" * 64) or {}
    assert row["signature"] == {
        "name": "outer",
        "parameters": ["a", "b", "more", "c", "rest"],
        "raises": ["ValueError", "OddError"],
        "returns_value": False,
    }


def test_the_files_are_sources_of_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        library_rows, "read_modules", lambda: [("graphlib.py", inspect.getsource(importlib.import_module("graphlib")))]
    )
    monkeypatch.setattr(library_rows.sys, "argv", [str(SCRIPT), str(tmp_path)])
    library_rows.main()
    assert {path.stem for path in tmp_path.iterdir()} == set(library_rows.ROW_SETS)
    read = read_rows("lines.jsonl", tmp_path)
    assert read.columns == ("id", "module", "code", "line")
    assert json.loads((tmp_path / "lines.jsonl").read_text("utf-8").splitlines()[0]) == dict(read.rows[0])
