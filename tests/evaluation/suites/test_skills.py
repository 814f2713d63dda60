"""The small suites of skills: the same every time, with one right choice that is where it is said to be."""

from __future__ import annotations

import ast
import operator
from pathlib import Path

import pytest
from tests.tiny import write_tiny_base

from bedplate.evaluation.suites import SUITES
from bedplate.evaluation.suites.question_sets import Question
from bedplate.evaluation.suites.suite import run_suite
from bedplate.inference.predict.local import LocalModel
from bedplate.models.checkpoints.base import load_base

SKILLS = ("grammar", "facts", "arithmetic", "code")
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def suite_questions(name: str, limit: int | None = None) -> tuple[Question, ...]:
    return SUITES[name](limit).samples


@pytest.mark.parametrize("name", SKILLS)
def test_items_are_whole_and_the_same_every_time(name: str) -> None:
    questions = suite_questions(name)
    assert questions == suite_questions(name)
    assert suite_questions(name, 7) == questions[:7]
    assert len({question.id for question in questions}) == len(questions) >= 30
    for question in questions:
        assert len(set(question.choices)) == len(question.choices) >= 2
        assert 0 <= question.gold < len(question.choices)
    places = [question.gold for question in questions]
    assert max(places.count(place) for place in set(places)) < 0.75 * len(places)  # no place is always right


def test_sums_are_right() -> None:
    for question in suite_questions("arithmetic"):
        a, sign, b, _ = question.context.split()
        right = SIGNS[sign](int(a), int(b))
        assert [choice == str(right) for choice in question.choices].index(True) == question.gold


def test_right_code_is_code() -> None:
    """Where the line is whole with the right choice, Python parses it, and not with the wrong one."""
    parsed = 0
    for question in suite_questions("code"):
        texts = [f"{question.context} {choice}" for choice in question.choices]
        whole = [_parses(text) for text in texts]
        if whole[question.gold]:
            parsed += 1
        elif any(whole):
            raise AssertionError(f"{question.context!r}: only the wrong choice is Python")
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
            result = run_suite(model, name, 3)
            assert result.measures["acc"].n == 3
            assert 0 <= result.measures["acc"].value <= 1
