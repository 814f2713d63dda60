"""A report of costs: every estimate in dollars, less being better, and the requirements beside the bar."""

from __future__ import annotations

import copy
import json

import pytest
from jsonschema import Draft202012Validator
from tests.report.sample import curve, report, row

from bedplate.adaptation.report.report import curve_in_dollars, in_dollars
from bedplate.evaluation.costs import Scale
from bedplate.report import plots
from bedplate.report.html import adaptation_page, headline
from bedplate.report.schema import report_schema
from bedplate.report.schema_parts import Curve
from bedplate.report.summary import summary

TARGET = {"metric": "usd_per_call", "value": 1.0, "confidence": 0.95, "lower_is_better": True, "worst_usd": 5.0}
REQUIRED = {
    "requirement": "accuracy where language: de at least 0.7",
    "metric": "accuracy",
    "slice": "language: de",
    "holds": None,
    "value": 0.75,
    "lower": 0.61,
    "upper": 0.86,
    "bar": 0.7,
    "direction": "at_least",
    "confidence": 0.97,
    "n": 40,
    "groups": 40,
    "needed_n": 4210,
    "reason": "40 rows do not decide (about 4,210 test rows in all would)",
}


def test_scores_become_dollars_and_bounds_change_sides() -> None:
    plain, priced = report(), copy.deepcopy(report(target=TARGET))
    in_dollars(priced, Scale(5.0))
    before = next(rung for rung in plain["rungs"] if rung["split"] == "test")
    after = next(rung for rung in priced["rungs"] if rung["split"] == "test")
    assert after["estimate"] == pytest.approx(5 * (1 - before["estimate"]))
    assert after["interval"] == pytest.approx([5 * (1 - end) for end in reversed(before["interval"])])
    seeds = next(rung for rung in priced["rungs"] if rung["seeds"])["seeds"]
    assert [seed["estimate"] for seed in seeds] == pytest.approx([1.0, 0.95, 0.9])
    (confirmed,) = priced["nominees"]["confirmations"]
    assert (confirmed["lower"], confirmed["upper"]) == pytest.approx((5 * (1 - 0.92), 5 * (1 - 0.83)))
    assert confirmed["expected"] == pytest.approx(5 * (1 - 0.872))
    (pair,) = priced["comparisons"]
    assert pair["difference"] == pytest.approx(5 * -0.38)
    assert pair["interval"] == pytest.approx([5 * -0.45, 5 * -0.3])
    assert pair["a_estimate"] == pytest.approx(pair["b_estimate"] + pair["difference"])
    assert priced["search"]["lora"][0]["estimate"] == pytest.approx(1.5)
    assert priced["focus"]["slices"][0]["interval"] == pytest.approx([0.5, 4.5])
    assert priced["rows"] == plain["rows"]
    assert json.loads(json.dumps(priced)) == priced
    Draft202012Validator(report_schema()).validate(priced)


def test_learning_curves_are_in_dollars_too() -> None:
    plain = Curve.model_validate(curve())
    priced = curve_in_dollars(plain, Scale(2.0))
    for before, after in zip((*plain.points, *plain.flat), (*priced.points, *priced.flat), strict=True):
        assert after.estimate == pytest.approx(2 * (1 - before.estimate))
        assert after.interval == pytest.approx(tuple(2 * (1 - end) for end in reversed(before.interval)))
    for before, after in zip(plain.crossovers, priced.crossovers, strict=True):
        for score_gap, dollar_gap in zip(before.differences, after.differences, strict=True):
            assert dollar_gap.difference == pytest.approx(-2 * score_gap.difference)
            assert dollar_gap.interval[0] <= dollar_gap.interval[1]
    assert curve_in_dollars(plain, Scale()) is plain


def test_the_page_and_the_summary_say_dollars_and_what_is_required() -> None:
    values = report(target=TARGET, requirements={"lora": [REQUIRED]})
    in_dollars(values, Scale(5.0))
    page = adaptation_page(values)
    for phrase in ("usd_per_call of at most $1", "≤ $0.8500</td>", "$0.6000", "has to lie below the target"):
        assert phrase in page, phrase
    assert "accuracy where language: de at least 0.7" in page
    assert "4210" in page
    assert "at most $0.8500, at" in headline(values)
    assert "40 rows do not decide" in summary(values)
    assert "$0.6000" in summary(values)
    assert "Require, on test" not in adaptation_page(report())


def test_what_no_cheaper_rung_beats_costs_less() -> None:
    rows = [row(name, estimate, usd) for name, estimate, usd in (("a", 0.5, 0.1), ("b", 0.7, 0.2), ("c", 0.3, 0.3))]
    assert [rung["rung"] for rung in plots.pareto(rows)] == ["a", "b"]
    assert [rung["rung"] for rung in plots.pareto(rows, lower_is_better=True)] == ["a", "c"]
