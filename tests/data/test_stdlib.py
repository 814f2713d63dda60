"""The modules of the interpreter's own library, and names of data sets."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from bedplate.core.errors import DataError
from bedplate.data import stdlib
from bedplate.data.sources import SUITE_SETS, read_rows
from bedplate.hub.catalog import CATALOG


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


def test_only_what_is_the_library_and_can_be_parsed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, text in {"mine.py": "a = 1\r\n", "bad.py": "def (", "test/t.py": "b = 2\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(stdlib.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert list(stdlib.read_modules()) == [("mine.py", "a = 1\n")]


def test_a_misspelt_set_is_named():
    with pytest.raises(DataError, match="did you mean 'vader-tweets'"):
        read_rows("vader-tweet")
    assert all(CATALOG[suite].part_licences.get(folder) for suite, folder, _ in SUITE_SETS.values())
