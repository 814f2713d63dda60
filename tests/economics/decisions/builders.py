"""Small price and decision files for the tests, and short ways to a decision."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from bedplate.core.config import parse_config
from bedplate.economics.costs.decisions import Case, Decision, OptionOutcome, decide
from bedplate.economics.costs.decisions.question import read_question
from bedplate.economics.numbers.prices import Prices

TODAY = datetime.date(2026, 11, 20)

PRICES = """\
prices: of the tests
hosted:
  large:
    usd_per_million_input: 4
    usd_per_million_cached_input: 0.5
    usd_per_million_output: 20
    batch_discount: 0.5
    tuning: {usd_per_million_training: 25, price_multiplier: 1.5}
    as_of: 2026-11-01
    source: the tests
  small: {usd_per_million_input: 1, usd_per_million_output: 3, as_of: 2026-11-01, source: the tests}
embeddings:
  embed: {usd_per_million_input: 0.1, as_of: 2026-11-01, source: the tests}
machines:
  box: {usd_per_hour: 2, as_of: 2026-11-01, source: the tests}
  node: {usd_per_hour: 16, device: h100, devices: 8, as_of: 2026-11-01, source: the tests}
staff:
  engineer: {usd_per_hour: 100, as_of: 2026-11-01, source: the tests}
labelling:
  example: {usd_per_label: 0.5, as_of: 2026-11-01, source: the tests}
"""

HOSTED = {"model": "large"}
MACHINE = {"machine": {"name": "box", "seconds_per_call": 0.2, "utilisation": 0.5}}


def case_values(options: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A case of 1,000 calls a day for 100 days: 200 + 300 repeated tokens, 100 of input, 50 of output."""
    return {
        "case": "a test",
        "traffic": {"calls_per_day": 1000, "horizon_days": 100},
        "text": {"unit": "tokens", "instructions": 200, "examples": 300, "input": 100, "output": 50},
        "options": dict(options),
        **changes,
    }


def parsed(values: Mapping[str, Any], overrides: Sequence[str] = (), prices: str = PRICES) -> tuple[Case, Prices]:
    of_prices = [override.removeprefix("prices.") for override in overrides if override.startswith("prices.")]
    of_case = [override for override in overrides if not override.startswith("prices.")]
    case = parse_config(yaml.safe_dump(dict(values), sort_keys=False), Case, "case.yaml", of_case)
    return case, parse_config(prices, Prices, "prices.yaml", of_prices)


def decided(options: Mapping[str, Any], *overrides: str, prices: str = PRICES, **changes: Any) -> Decision:
    return decide(*parsed(case_values(options, **changes), overrides, prices), TODAY)


def outcome(option: Mapping[str, Any], *overrides: str, prices: str = PRICES, **changes: Any) -> OptionOutcome:
    """Of a case with this one option, named `it`."""
    return decided({"it": option}, *overrides, prices=prices, **changes).outcome("it")


def bills(outcome: OptionOutcome) -> dict[str, float]:
    return {label: usd for _, label, usd in outcome.lines}


def answer_of(case: Case, prices: Prices) -> str:
    """The choice alone, from the files: no search."""
    question = read_question(case, prices, TODAY)
    return question.choose([option for option in question.options if not option.broken], question.values)


def totals(options: Mapping[str, Any], *overrides: str, prices: str = PRICES) -> dict[str, float]:
    """Each option's total, without a search."""
    question = read_question(*parsed(case_values(options), overrides, prices), TODAY)
    return {option.name: option.total(question.values) for option in question.options}
