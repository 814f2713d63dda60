"""Names say what a value is: words of ordinary speech that mean nothing in this field stay rare."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILLERS = frozenset(
    re.findall(
        r"\w+",
        """one ones own said says say held hold holds kept keep keeps found find asked ask asks wanted want wants told
        tell tells seen see sees given give gives taken take takes made make makes got get gets put puts left way ways
        kind kinds thing things what which who whose where when here there then now this that these those other others
        another rest much more most many few less least some each every both either such same like alike known come
        comes came going goes gone went stands stood lies lay far near again also too very just even still yet once
        twice done does did let lets wide across further beside besides within among between along apart away""",
    )
)
GENERIC = frozenset(re.findall(r"\w+", "item items elem elems element obj objs val vals tmp it entry el stuff info"))


NAMED = {ast.Name: "id", ast.Attribute: "attr", ast.arg: "arg"} | dict.fromkeys(
    (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef), "name"
)
"""The field of a node that holds the name which it binds, or only reads where its context says so."""


def bound_names(tree: ast.AST) -> Iterator[str]:
    """Every name that the code binds: arguments, targets, attributes it sets, functions and classes."""
    pending: list[Any] = [tree]
    while pending:  # `ast.walk` takes three times as long over the whole of src
        node = pending.pop()
        if not isinstance(node, ast.AST):
            continue
        field = NAMED.get(type(node))
        if field is not None and type(getattr(node, "ctx", None)) in (ast.Store, type(None)):
            yield getattr(node, field)
        for value in vars(node).values():
            if isinstance(value, list):
                pending += value
            elif isinstance(value, ast.AST) and not isinstance(value, ast.expr_context):
                pending.append(value)


def names_of(source: str) -> list[str]:
    return [name.strip("_").lower() for name in bound_names(ast.parse(source))]


def share(words: frozenset[str], names: list[str]) -> float:
    return sum(name in words for name in names) / len(names)


@pytest.mark.parametrize(
    ("folder", "limit"), [("src", 0.01), pytest.param("tests", 0.02, marks=pytest.mark.slow), ("benchmarks", 0.02)]
)
def test_names_are_terms_of_the_field(folder: str, limit: float) -> None:
    names = [name for path in (ROOT / folder).rglob("*.py") for name in names_of(path.read_text(encoding="utf-8"))]
    assert share(FILLERS, names) <= limit
    assert share(GENERIC, names) <= 0.005


def test_fillers_are_counted_wherever_they_are_bound() -> None:
    source = "def kind(own, *, rows):\n    for one in rows:\n        own.found = [what for what in one]\n"
    assert share(FILLERS, names_of(source)) == pytest.approx(5 / 6)
