"""Data sets of the interpreter's own library: right by Python's own tools, and named by a hash of what was read."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from functools import cache
from pathlib import Path

import pytest

from bedplate.core.errors import DataError
from bedplate.data import stdlib
from bedplate.data.rows import SourceRows
from bedplate.data.sources import SUITE_SETS, read_rows
from bedplate.data.stdlib import FUNCTIONS_PER_MODULE, STDLIB_SETS
from bedplate.hub.catalog import CATALOG

MODULES = ("textwrap", "argparse", "json.decoder", "shlex", "graphlib")


@cache
def part(name: str) -> SourceRows:
    """The rows of MODULES, and of every tenth module besides."""
    root, files = stdlib.library_root(), stdlib.library_files()
    named = {root.joinpath(*module.split(".")).with_suffix(".py") for module in MODULES}
    some_files = [path for number, path in enumerate(files) if number % 10 == 0 or path in named]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdlib, "library_files", lambda: some_files)
        return read_rows(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STDLIB_SETS))
def test_rows_are_many_named_once_and_from_no_module_alone(name: str):
    rows = read_rows(name)
    assert len(rows.rows) > 500
    check_rows(rows)


@pytest.mark.parametrize("name", sorted(STDLIB_SETS))
def test_rows_of_a_part_are_named_once_and_from_no_module_alone(name: str):
    check_rows(part(name))


def check_rows(rows: SourceRows) -> None:
    assert len({row["id"] for row in rows.rows}) == len(rows.rows)
    counts: dict[str, int] = {}
    for row in rows.rows:
        counts[row["module"]] = counts.get(row["module"], 0) + 1
    assert max(counts.values()) <= FUNCTIONS_PER_MODULE
    assert not any(name.startswith(("test.", "idlelib", "encodings.", "site-packages")) for name in counts)
    assert "standard library of Python" in rows.notes[0]
    assert rows.licence == "PSF-2.0"


def test_a_thread_that_parses_at_the_same_time_costs_no_module(monkeypatch: pytest.MonkeyPatch):
    parse, failures = ast.parse, iter([SystemError("AST constructor recursion depth mismatch")] * 2)

    def stumbles(text: str) -> ast.Module:
        for failure in failures:
            raise failure
        return parse(text)

    first = next(stdlib.read_modules())
    monkeypatch.setattr(stdlib.ast, "parse", stumbles)
    assert next(stdlib.read_modules()) == first
    assert next(failures, None) is None


def test_lines_are_the_lines_that_follow():
    rows = part("stdlib-lines")
    checked = 0
    for row, line in zip(rows.rows, rows.lines, strict=True):
        if row["module"] not in MODULES:
            continue
        source = inspect.getsource(importlib.import_module(row["module"])).split("\n")
        assert source[line - 1] == row["line"]
        before = "\n".join(source[: line - 1]) + "\n"
        assert before.endswith(row["code"])
        assert len(row["code"]) <= stdlib.CONTEXT_CHARACTERS + stdlib.LINE_CHARACTERS[1] + 200
        checked += 1
    assert checked > 8


def test_signatures_are_what_inspect_says():
    checked = 0
    for row in part("stdlib-functions").rows:
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
    for row in part("stdlib-search").rows:
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
    row, line = stdlib._signature(code.split("\n"), node, "0" * 64) or ({}, 0)  # pyright: ignore[reportPrivateUsage]
    assert line == 2
    assert row["signature"] == {
        "name": "outer",
        "parameters": ["a", "b", "more", "c", "rest"],
        "raises": ["ValueError", "OddError"],
        "returns_value": False,
    }


def test_another_library_has_other_rows_and_another_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    body = "def first(value):\n    total = value + 1\n    total = total * 2\n    return total\n"
    (tmp_path / "mine.py").write_text(body)
    (tmp_path / "bad.py").write_text("def (")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "t.py").write_text(body)
    monkeypatch.setattr(stdlib.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    original = read_rows("stdlib-functions")
    assert [row["id"] for row in original.rows] == ["mine.first"]
    assert "1 files could not be parsed" in original.notes[0]
    (tmp_path / "mine.py").write_text(body.replace("first", "other"))
    two = read_rows("stdlib-functions")
    assert [row["id"] for row in two.rows] == ["mine.other"]
    assert original.sha256 != two.sha256
    (tmp_path / "mine.py").unlink()
    with pytest.raises(DataError, match="comes without its library's source"):
        read_rows("stdlib-lines")


def test_a_misspelt_set_is_named():
    with pytest.raises(DataError, match="did you mean 'stdlib-lines'"):
        read_rows("stdlib-line")
    assert all(CATALOG[suite].part_licences.get(folder) for suite, folder, _ in SUITE_SETS.values())
