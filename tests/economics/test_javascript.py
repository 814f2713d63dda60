"""What is translated for a page, and what is refused; that both compute the same is in tests/browser."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from bedplate.economics.numbers.formula import Formula, call
from bedplate.economics.numbers.javascript import script

LIMIT = 3


@dataclass(frozen=True)
class Length:
    meters: float
    name: str = "<none>"

    @property
    def feet(self) -> float:
        return self.meters / 0.3048


def longest(lengths: list[Length]) -> Length | None:
    """A docstring is left out."""
    return max(lengths[:LIMIT], key=lambda length: length.feet) if lengths else None


def test_what_a_function_names_comes_along_and_comes_first() -> None:
    text = script(longest=longest, price=call("max", Formula.input(0), 2.0), title="</script>")
    assert "docstring" not in text
    assert text.startswith("const { longest, price, title } = (() => {")
    assert text.index("const LIMIT = 3;") < text.index("function longest(lengths) {")
    assert "price: (v) => max(v[0], 2.0)" in text
    assert 'title: "\\u003c/script>"' in text
    length = script(length=Length(2.0))
    assert 'constructor(meters, name = "\\u003cnone>")' in length
    assert "get feet() {" in length
    assert 'length: new Length(2.0, "\\u003cnone>")' in length


def attempts(x: float) -> float:
    try:
        return 1 / x
    except ZeroDivisionError:
        return 0.0


def draws(x: float) -> float:
    return x * random.random()


def deletes(delete: float) -> float:
    return delete


def keywords(change: Callable[..., float]) -> float:
    return change(factor=2)


def spelled(name: str) -> str:
    return f"{name!r}"


def integers(n: int) -> int:
    return n // 2


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (attempts, "there is no translation of this statement"),
        (draws, "`random.random`: there is no such name on a page"),
        (deletes, "delete is a word of JavaScript's own"),
        (keywords, "keyword arguments are for what is known by name"),
        (spelled, "only a value and its format are written on a page"),
        (integers, "`n // 2`: there is no translation of this expression"),
        (object(), "JavaScript cannot be made of <object"),
    ],
)
def test_what_cannot_be_translated_is_refused_where_it_stands(function: object, message: str) -> None:
    with pytest.raises(TypeError) as refused:
        script(function=function)
    assert message in str(refused.value)
    if not message.startswith("JavaScript"):
        assert f"{__file__}:" in str(refused.value)


def test_two_things_of_one_name_are_refused() -> None:
    def longest(x: float) -> float:
        return x

    with pytest.raises(TypeError, match="two things are called longest"):
        script(ours=longest, theirs=globals()["longest"])
