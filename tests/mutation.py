"""How many small faults the tests find: `python -m tests.mutation --samples 40 --seed 0`.

1. Draws expressions of `src` by seed and changes each: a comparison, an arithmetic or boolean operator, a number, a
   condition, a returned value.
2. Runs the tests that import the changed module, nearest first, in a copy of the tree, until one fails.
3. Prints each survivor, and the share of the mutants that a test found (the mutation score).
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
}  # fmt: skip
MAX_TEST_FILES = 8


@dataclass(frozen=True)
class Mutant:
    """One changed expression of one file: the text `before` from `start` to `stop` (bytes) becomes `after`."""

    path: Path
    line: int
    start: int
    stop: int
    before: str
    after: str


def changed(node: ast.AST) -> ast.AST | None:
    """The expression with a small fault in it, or None where there is none to make."""
    match node:
        case ast.Compare(left=left, ops=[operator], comparators=comparators) if type(operator) in COMPARISONS:
            return ast.Compare(left, [COMPARISONS[type(operator)]()], comparators)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in OPERATORS:
            return ast.BinOp(left, OPERATORS[type(operator)](), right)
        case ast.BoolOp(op=ast.And(), values=values):
            return ast.BoolOp(ast.Or(), values)
        case ast.BoolOp(op=ast.Or(), values=values):
            return ast.BoolOp(ast.And(), values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return operand
        case ast.Constant(value=bool(value)):
            return ast.Constant(not value)
        case ast.Constant(value=int(value)):
            return ast.Constant(value + 1)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return ast.IfExp(test, orelse, body)
        case _:
            return None


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file, in order; annotations, docstrings and type-checking imports have none."""
    source = path.read_bytes()
    offsets = [0]
    for line in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    tree = ast.parse(source)
    annotations = {
        id(inner)
        for node in ast.walk(tree)
        for field in ("annotation", "returns")
        if isinstance(getattr(node, field, None), ast.AST)
        for inner in ast.walk(getattr(node, field))
    }
    for node in ast.walk(tree):
        fault = None if id(node) in annotations else changed(node)
        if fault is None or not isinstance(node, ast.expr) or node.end_lineno is None or node.end_col_offset is None:
            continue
        start, stop = offsets[node.lineno - 1] + node.col_offset, offsets[node.end_lineno - 1] + node.end_col_offset
        after = ast.unparse(ast.fix_missing_locations(fault))
        yield Mutant(path, node.lineno, start, stop, source[start:stop].decode(), f"({after})")


def nearest_tests(module: str, root: Path) -> list[Path]:
    """Test files that import the module, those that import fewest others first; of its package where none does."""
    while "." in module:
        pattern = re.compile(rf"\b{re.escape(module)}\b")
        texts = {path: path.read_text(encoding="utf-8") for path in (root / "tests").rglob("test_*.py")}
        importers = [path for path, text in texts.items() if pattern.search(text)]
        if importers:
            return sorted(importers, key=lambda path: texts[path].count("from bedplate"))[:MAX_TEST_FILES]
        module = module.rpartition(".")[0]
    return []


def outcome(mutant: Mutant, root: Path, seconds: float) -> str:
    """What the nearest tests say of a mutant that stands in the tree `root`: found, survived, or no tests."""
    file = root / mutant.path.relative_to(ROOT)
    module = ".".join(mutant.path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    tests = nearest_tests(module, root)
    if not tests:
        return "no tests"
    source = file.read_bytes()
    file.write_bytes(source[: mutant.start] + mutant.after.encode() + source[mutant.stop :])
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "--timeout=120", *map(str, tests)]
        environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, cwd=root, env=environment, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return "found"  # a loop that does not end is a fault that is seen
    finally:
        file.write_bytes(source)
    if run.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
        return "no tests"  # all of the nearest tests are slow
    return "survived" if run.returncode == pytest.ExitCode.OK else "found"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=40, help="mutants to try")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=300.0, help="at most so long for the tests of one mutant")
    parser.add_argument("--under", default="src", help="a folder or file below the repository's root")
    options = parser.parse_args()
    place = ROOT / options.under
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    candidates = [mutant for path in files for mutant in mutants(path)]
    chosen = random.Random(options.seed).sample(candidates, min(options.samples, len(candidates)))
    counts = {"found": 0, "survived": 0, "no tests": 0}
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "tree"
        ignored = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".peers", "build", "dist")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for mutant in chosen:
            begun = time.perf_counter()
            verdict = outcome(mutant, copy, options.seconds)
            counts[verdict] += 1
            seconds = round(time.perf_counter() - begun, 1)
            line = {"outcome": verdict, "file": str(mutant.path.relative_to(ROOT)), "line": mutant.line}
            line |= {"before": mutant.before, "after": mutant.after, "seconds": seconds}
            print(json.dumps(line), flush=True)
    tried = counts["found"] + counts["survived"]
    score = counts["found"] / max(1, tried)
    print(f"mutation score {counts['found']} of {tried} = {score:.2f}; {counts['no tests']} without tests")


if __name__ == "__main__":
    main()
