"""Amounts and times are written in one way on the whole command line, which is that of the files."""

from __future__ import annotations

import re
import typing
from typing import Any

import pytest
import typer
from tests.cli.test_paths import commands

from bedplate.cli.main import VERBS
from bedplate.cli.options import count, duration, milliseconds, whole

AMOUNT = re.compile(r"tokens|bytes|_ms$|rows$|calls|limit$|grace|timeout|waiting|per_minute|usd_per_(day|month)")


def options() -> list[Any]:
    """The name, the type and the option of each number that is an amount."""
    cases: list[Any] = []
    for words, function in commands(VERBS):
        for name, hint in typing.get_type_hints(function, include_extras=True).items():
            parts = (hint, *typing.get_args(hint))
            option = next(
                (
                    annotation
                    for part in parts
                    for annotation in (part, *typing.get_args(part))
                    if hasattr(annotation, "parser")
                ),
                None,
            )
            numbers = {int, float} & {annotation for part in parts for annotation in (part, *typing.get_args(part))}
            if AMOUNT.search(name) and numbers and option is not None:
                cases.append(pytest.param(option, id=f"{' '.join(words)} {name}"))
    return cases


@pytest.mark.parametrize("option", options())
def test_every_amount_is_read_by_the_one_syntax(option: Any) -> None:
    assert option.parser is not None


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        (whole(help=""), "1k", 1000),
        (whole(help=""), "2M", 2_000_000),
        (whole(help="", minimum=0), "0", 0),
        (count(help=""), "1.5k", 1500.0),
        (count(help=""), "15.6T", 15.6e12),
        (duration(help=""), "10m", 600.0),
        (duration(help=""), "90", 90.0),
        (milliseconds(help=""), "500", 500.0),
        (milliseconds(help=""), "0.5s", 500.0),
        (milliseconds(help=""), 250.0, 250.0),
    ],
)
def test_what_an_amount_stands_for(option: Any, text: str | float, value: float) -> None:
    assert option.parser(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (whole(help=""), "0"),
        (whole(help=""), "1.5"),
        (whole(help=""), "1e400"),
        (whole(help="", minimum=1024), "1k"),
        (count(help=""), "many"),
        (duration(help=""), "soon"),
        (milliseconds(help=""), "0"),
        (milliseconds(help=""), "1e400s"),
    ],
)
def test_what_is_none_is_refused(option: Any, text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a"):
        option.parser(text)
