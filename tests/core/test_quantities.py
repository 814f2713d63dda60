"""Amounts as people write them, and figures that add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.config import Strict, one_line, parse_config
from bedplate.core.errors import ConfigError, UsageError
from bedplate.core.quantities import adding_up, count_of, parse_count, parse_seconds, seconds_of
from bedplate.economics.numbers.prices import Quantity


@pytest.mark.parametrize(
    ("text", "value"), [("50k", 5e4), ("15.6T", 15.6e12), ("10m", 1e7), ("1e3", 1e3), ("-2", -2.0), ("1,000.5", 1000.5)]
)
def test_counts(text: str, value: float) -> None:
    assert count_of(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("2 min", 120), ("1.5h", 5400), ("250ms", 0.25), ("2d", 172800)]
)
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)
    assert parse_seconds("--budget", text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "ten", "5", "m", "5 weeks", "1e", "5M5"])
def test_what_is_not_a_time(text: str) -> None:
    assert seconds_of(text) is None
    with pytest.raises(UsageError, match=r"--budget .* is not a length of time; write for example 90s"):
        parse_seconds("--budget", text)


def test_a_bare_number_has_the_unit_that_is_said() -> None:
    assert seconds_of("5", "m") == 300


@given(value=st.floats(1e-3, 1e12))
def test_numbers_are_read_as_they_are(value: float) -> None:
    assert parse_count("n", repr(value)) == pytest.approx(value)


@given(values=st.lists(st.floats(-1e6, 1e6), max_size=20), digits=st.integers(0, 6))
def test_rounded_values_add_up_and_are_near(values: list[float], digits: int) -> None:
    rounded = adding_up(values, digits)
    assert sum(round(value * 10**digits) for value in rounded) == round(sum(values) * 10**digits)
    assert all(abs(a - b) <= 1.001 * 10**-digits for a, b in zip(values, rounded, strict=True))


class _Config(Strict):
    train_minutes: float = 10
    p95_ms: int = 500
    days: float = 1
    calls_per_day: float = 1
    tokens: int | None = None
    name: str = ""
    part: float | str = 0.5


def test_files_and_overrides_take_the_same_amounts() -> None:
    config = parse_config("{train_minutes: 90s, calls_per_day: 50k}", _Config, "f", ["p95_ms=2s", "tokens=1.5M"])
    assert (config.train_minutes, config.calls_per_day, config.p95_ms, config.tokens) == (1.5, 50_000, 2000, 1_500_000)
    text_config = parse_config("{name: 50k, part: 50k}", _Config, "f")
    assert (text_config.name, text_config.part) == ("50k", "50k")
    with pytest.raises(ConfigError, match=r"override .tokens=1\.2345k.*fractional"):
        parse_config("{}", _Config, "f", ["tokens=1.2345k"])
    with pytest.raises(ConfigError, match="unable to parse string"):
        parse_config("{tokens: many}", _Config, "f")


def test_numbers_with_a_range_take_them_too() -> None:
    assert Quantity.model_validate("50k").value == 50_000
    quantity = Quantity.model_validate({"value": "2M", "low": "1M", "high": 3e6})
    assert (quantity.low, quantity.value, quantity.high) == (1e6, 2e6, 3e6)


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=VALUE)
def test_one_line_is_read_back(value: object) -> None:
    class Any(Strict):
        here: object

    line = one_line(value)
    assert parse_config(f"here: {line}", Any, "f").here == value
