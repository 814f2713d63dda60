"""Mutants are small faults that parse, each at its own place in the file."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.mutation import mutants, nearest_tests

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
