"""Nominees tested in a fixed order: its error, its place beside Holm, and what the verdict says of those behind."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from tests.adaptation.test_gate import evaluation, rate

from bedplate.adaptation.task.spec import AdaptSpec
from bedplate.adaptation.verdict import gate
from bedplate.adaptation.verdict.decision import GateDecision, GateVerdict, Nomination
from bedplate.core.errors import UsageError
from bedplate.core.statistics.multiplicity import holm_bounds, sequence_bounds
from bedplate.core.statistics.proportions import binomial_lower

BAR, ALPHA = 0.8, 0.05


def passed(counts: list[int], n: int, *, order: list[int] | None, alpha: float = ALPHA) -> list[bool]:
    bounds = [lambda level, k=k: binomial_lower(k, n, level) for k in counts]
    decisions = (
        holm_bounds(bounds, BAR, 1 - alpha) if order is None else sequence_bounds(bounds, BAR, 1 - alpha, None, order)
    )
    return [decision.passed for decision in decisions]


def test_each_has_the_whole_error_until_one_fails() -> None:
    n = 400
    min_passing = next(k for k in range(n + 1) if stats.binomtest(k, n, BAR, alternative="greater").pvalue < ALPHA)
    assert passed([min_passing, min_passing, min_passing], n, order=[0, 1, 2]) == [True, True, True]
    assert passed([min_passing, min_passing, min_passing], n, order=None) == [
        False,
        False,
        False,
    ]  # Holm begins at a third of the error
    assert passed([min_passing, min_passing - 1, n], n, order=[0, 1, 2]) == [True, False, False]
    assert passed([min_passing, min_passing - 1, n], n, order=[2, 0, 1]) == [True, False, True]


def test_what_else_has_to_hold_stops_the_order_as_a_bound_does() -> None:
    bounds = [lambda level: 0.9] * 3
    decisions = sequence_bounds(bounds, BAR, 0.95, [lambda level: True, lambda level: False, lambda level: True])
    assert [(decision.passed, decision.reached) for decision in decisions] == [
        (True, True),
        (True, True),
        (False, False),
    ]
    with pytest.raises(UsageError, match="each of 3 nominees once"):
        sequence_bounds(bounds, BAR, 0.95, order=[0, 0, 1])


def test_any_false_pass_is_as_rare_as_promised_and_any_order_differs_from_holm() -> None:
    rng = np.random.default_rng(0)
    runs, n = 2000, 200
    truth = np.array([BAR, BAR, BAR])
    shared = np.sqrt(0.6) * rng.standard_normal((runs, 1, n)) + np.sqrt(0.4) * rng.standard_normal((runs, 3, n))
    counts = (shared < stats.norm.ppf(truth)[:, None]).sum(-1)
    table = stats.binom.sf(np.arange(n + 1) - 1, n, BAR) <= ALPHA
    first = table[counts]
    assert first[:, 0].mean() <= ALPHA + 0.012  # the first decides whether anything passes
    for row in counts[:50].tolist():
        chain = passed(row, n, order=[0, 1, 2])
        assert chain == np.logical_and.accumulate(table[row]).tolist()


def confirmed(testing: str, right: dict[str, int]) -> tuple[GateDecision, dict[str, bool]]:
    tested = {name: evaluation(rate(count, 400)) for name, count in right.items()}
    nomination = Nomination(tuple(tested), max(right, key=lambda name: right[name]), None, {})
    order = gate.order_of(testing, nomination, tested)  # pyright: ignore[reportArgumentType]
    confirmations = gate.confirm(list(tested.items()), tested, target=BAR, alpha=ALPHA, order=order)
    decision = GateVerdict(nomination, confirmations, metric="accuracy", target=BAR, n=400, groups=400).decision
    return decision, {confirmation.rung: confirmation.reached for confirmation in confirmations}


def test_the_cheapest_that_passed_is_the_verdict_and_what_was_not_reached_is_said() -> None:
    right = {"cheap": 325, "middle": 342, "dear": 350}
    decision, reached = confirmed("best_first", right)
    assert (decision.status, decision.rung) == ("PASS", "middle")
    assert reached == {"cheap": True, "middle": True, "dear": True}
    decision, reached = confirmed("cheapest_first", right)
    assert decision.status == "INSUFFICIENT_DATA"
    assert reached == {"cheap": True, "middle": False, "dear": False}
    assert "middle, dear would clear it alone" in decision.reason
    assert confirmed("holm", right)[0].rung == "middle"


def test_the_task_file_says_it() -> None:
    spec = {"bases": ["x"], "target": {"value": 0.8}, "machine": {"usd_per_hour": 1, "as_of": "2026-11-24"}}
    assert AdaptSpec.model_validate(spec).testing == "holm"
    assert AdaptSpec.model_validate({**spec, "testing": "best_first"}).testing == "best_first"
