"""Mutants are small faults that parse, each at its own place in the file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tests.mutation import ROOT, Mutant, mutants, nearest_tests, outcome

SOURCE = '"""Ä."""\ndef f(a: int = 1) -> bool:\n    return not a < 2 and a + 3 == 4\n'


def test_each_mutant_parses_and_differs(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(SOURCE, "utf-8")
    source = file.read_bytes()
    changed = {
        (mutant.before, mutant.after, (source[: mutant.start] + mutant.after.encode() + source[mutant.stop :]).decode())
        for mutant in mutants(file)
    }
    assert {(before, after) for before, after, _ in changed} == {
        ("1", "(2)"),
        ("2", "(3)"),
        ("3", "(4)"),
        ("4", "(5)"),
        ("a < 2", "(a <= 2)"),
        ("not a < 2", "(a < 2)"),
        ("a + 3", "(a - 3)"),
        ("a + 3 == 4", "(a + 3 != 4)"),
        ("not a < 2 and a + 3 == 4", "(not a < 2 or a + 3 == 4)"),
    }
    assert len({ast.dump(ast.parse(text)) for _, _, text in changed} - {ast.dump(ast.parse(SOURCE))}) == len(changed)


def test_the_tests_nearest_to_a_module_import_it(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    for name, line in (("a", "from bedplate.core.files import x"), ("b", "import json")):
        (tmp_path / "tests" / f"test_{name}.py").write_text(line)
    assert [path.name for path in nearest_tests("bedplate.core.files", tmp_path)] == ["test_a.py"]
    assert nearest_tests("bedplate.hub.pull", tmp_path) == []


@pytest.mark.parametrize(
    ("test", "expected"),
    [("def test_f(): assert f() == 1", "found"), ("def test_f(): f()", "survived"), ("", "no tests"), ("f(", "found")],
)
def test_a_mutant_is_found_where_a_test_fails(tmp_path: Path, test: str, expected: str) -> None:
    source = "def f():\n    return 1\n"
    (tmp_path / "src/bedplate").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "src/bedplate/__init__.py").touch()
    (tmp_path / "src/bedplate/module.py").write_text(source)
    (tmp_path / "tests/test_module.py").write_text(f"from bedplate.module import f\n{test}\n")
    start = source.index("1")
    mutant = Mutant(ROOT / "src/bedplate/module.py", 2, start, start + 1, "1", "(2)")
    assert outcome(mutant, tmp_path, seconds=60.0) == expected
    assert (tmp_path / "src/bedplate/module.py").read_text() == source
