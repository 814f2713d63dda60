"""The price file: dated, strict, and named where it lacks something."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from bedplate.core.config import parse_config
from bedplate.core.errors import ConfigError
from bedplate.economics.numbers.prices import Prices

EXAMPLE = Path(__file__).parents[2] / "examples/decide/prices.yaml"
GOOD = """\
prices: ours
stale_after_days: 30
hosted:
  big: {usd_per_million_input: 3, usd_per_million_output: 9, as_of: 2026-10-01, source: their list}
machines:
  box: {usd_per_hour: {value: 2, low: 1.5, high: 2.5}, as_of: 2026-11-15, source: our contract}
"""


def test_the_example_names_no_vendor_and_says_it_is_one() -> None:
    prices = Prices.load(EXAMPLE)
    assert "example" in prices.prices
    for section in (prices.hosted, prices.embeddings, prices.machines, prices.staff, prices.labelling):
        assert section
        assert all(price.source == "EXAMPLE" for price in section.values())
    text = EXAMPLE.read_text().lower()
    assert not [name for name in ("openai", "anthropic", "google", "azure", "aws", "mistral", "gpt") if name in text]


def test_old_prices_warn_and_so_do_those_to_come() -> None:
    prices = parse_config(GOOD, Prices, "p.yaml")
    used = [("hosted", "big"), ("machines", "box"), ("hosted", "big")]
    assert prices.warnings(used, datetime.date(2026, 10, 31)) == [
        "machines.box: the price is dated 2026-11-15, which is still to come"
    ]
    assert prices.warnings(used, datetime.date(2026, 11, 20)) == [
        "hosted.big: the price is of 2026-10-01, 50 days ago (more than 30); look it up again (their list)"
    ]
    assert prices.warnings(used[1:2], datetime.date(2026, 12, 1)) == []


def test_example_prices_are_called_that() -> None:
    prices = Prices.load(EXAMPLE)
    used = [("hosted", "hosted-large"), ("staff", "engineer"), ("hosted", "hosted-large")]
    assert prices.warnings(used, datetime.date(2026, 11, 20)) == [
        "EXAMPLE prices, made up: hosted.hosted-large, staff.engineer; write your own"
    ]


def test_a_missing_entry_is_named_with_the_nearest() -> None:
    prices = parse_config(GOOD, Prices, "p.yaml")
    with pytest.raises(ConfigError, match=r"no 'bgi' in `hosted`, which a needs; did you mean 'big'\?"):
        prices.hosted_model("bgi", "a")
    with pytest.raises(ConfigError, match=r"no 'quantum' in `machines`, which a needs; it has box; add one"):
        prices.machine("quantum", "a")
    with pytest.raises(ConfigError, match=r"no 'engineer' in `staff`, which a needs; it has no `staff` at all"):
        prices.find("staff", "engineer", "a")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "usd_per_million_input: 3",
            "usd_per_million_input: 0",
            "line 4: hosted.big.usd_per_million_input: a number above",
        ),
        ("usd_per_million_input: 3", "usd_per_million_input: -1", "a number above 0 is wanted (got -1)"),
        ("usd_per_million_input: 3", "usd_per_million_input: .nan", "finite number"),
        ("usd_per_million_input: 3", "usd_per_million_input: 3 dollars", "a number above 0 is wanted, or"),
        ("usd_per_million_input: 3", "usd_per_million_inputs: 3", "did you mean 'usd_per_million_input'?"),
        (
            "usd_per_million_input: 3",
            "usd_per_million_input: 3, usd_per_million_cached_input: 4",
            "costs more than input",
        ),
        ("usd_per_million_input: 3", "usd_per_million_input: 3, batch_discount: 1.2", "a share from 0 to 1"),
        ("low: 1.5", "low: 2.1", "line 6: machines.box.usd_per_hour: low 2.1, value 2, high 2.5: they must not fall"),
        ("value: 2, low", "low", "machines.box.usd_per_hour.value: this key is required and missing"),
        (", source: their list", "", "line 4: hosted.big.source: this key is required and missing"),
        (", as_of: 2026-10-01", "", "line 4: hosted.big.as_of: this key is required and missing"),
        ("as_of: 2026-10-01", "as_of: soon", "hosted.big.as_of"),
        ("stale_after_days: 30", "stale_after_days: 0", "line 2: stale_after_days"),
        ("machines:", "machine:", "line 5: machine: unknown key 'machine'; did you mean 'machines'?"),
    ],
)
def test_mistakes_are_named_with_their_line(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        parse_config(GOOD.replace(old, new), Prices, "p.yaml")
    assert message in str(caught.value)
