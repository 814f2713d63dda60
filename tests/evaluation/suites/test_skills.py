"""The small suites of skills: the same every time, with one right choice that is where it is said to be."""

from __future__ import annotations

import ast
import operator
from pathlib import Path

import pytest
from tests.tiny import write_tiny_base

from bedplate.evaluation.suites import SUITES
from bedplate.evaluation.suites.multiple_choice import Question
from bedplate.evaluation.suites.suite_scores import run_suite
from bedplate.inference.predict.local import LocalModel
from bedplate.models.checkpoints.base import load_base

SKILLS = ("grammar", "facts", "arithmetic", "code")
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def items(name: str, limit: int | None = None) -> tuple[Question, ...]:
    return SUITES[name](limit).items


@pytest.mark.parametrize("name", SKILLS)
def test_items_are_whole_and_the_same_every_time(name: str) -> None:
    every = items(name)
    assert every == items(name)
    assert items(name, 7) == every[:7]
    assert len({one.id for one in every}) == len(every) >= 30
    for one in every:
        assert len(set(one.choices)) == len(one.choices) >= 2
        assert 0 <= one.gold < len(one.choices)
    places = [one.gold for one in every]
    assert max(places.count(place) for place in set(places)) < 0.75 * len(places)  # no place is always right


def test_sums_are_right() -> None:
    for one in items("arithmetic"):
        a, sign, b, _ = one.context.split()
        right = SIGNS[sign](int(a), int(b))
        assert [choice == str(right) for choice in one.choices].index(True) == one.gold


def test_right_code_is_code() -> None:
    """Where the line is whole with the right choice, Python parses it, and not with the wrong one."""
    parsed = 0
    for one in items("code"):
        texts = [f"{one.context} {choice}" for choice in one.choices]
        whole = [_parses(text) for text in texts]
        if whole[one.gold]:
            parsed += 1
        elif any(whole):
            raise AssertionError(f"{one.context!r}: only the wrong choice is Python")
    assert parsed >= 10


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def test_a_base_is_asked(tmp_path: Path) -> None:
    with LocalModel(load_base(write_tiny_base(tmp_path / "base")), weights="float32", kernel="torch") as model:
        for name in SKILLS:
            found = run_suite(model, name, 3)
            assert found.measures["acc"].n == 3
            assert 0 <= found.measures["acc"].value <= 1
