"""Bets against plain arithmetic and exact probabilities; false alarms over many looks; how soon a change is seen."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from bedplate.core.errors import UsageError
from bedplate.core.statistics import betting
from bedplate.core.statistics.betting import STAKES


def capital(scores: list[float], floor: float, stake: float, groups: list[int], largest: int) -> float:
    """What one stake makes of 1, group by group, as the docstring says it."""
    wealth = 1.0
    for group in dict.fromkeys(groups):
        rows = [s for s, g in zip(scores, groups, strict=True) if g == group][:largest]
        wealth *= 1 + stake * sum(floor - s for s in rows) / ((1 - floor) * largest)
    return wealth


def test_gains_are_the_products_of_bets_on_whole_groups() -> None:
    rng = np.random.default_rng(0)
    scores, groups = rng.random(40), [int(g) for g in rng.integers(0, 12, 40)]
    for largest in (1, 3, 9):
        gains = betting.gains(scores, groups, 0.7, largest)
        expected = [math.log(capital(scores.tolist(), 0.7, stake, groups, largest)) for stake in STAKES]
        assert gains == pytest.approx(expected)
    assert betting.gains(scores, None, 0.7) == pytest.approx(betting.gains(scores, list(range(40)), 0.7))


@pytest.mark.parametrize("floor", [0.3, 0.9, 1.0])
def test_no_rows_can_lose_everything_and_a_fair_bet_gains_nothing_on_average(floor: float) -> None:
    assert np.isfinite(betting.gains(np.ones(50), None, floor)).all()
    # all sequences of four 0/1 rows, weighted as they come where the claim is just true
    total = np.zeros(len(STAKES))
    for rows in itertools.product((0.0, 1.0), repeat=4):
        chance = math.prod(floor if row else 1 - floor for row in rows)
        total += chance * np.exp(betting.gains(np.array(rows), None, floor)) if chance else 0.0
    assert total == pytest.approx(np.ones(len(STAKES)))


def test_evidence_is_the_mean_over_stakes_and_beginnings() -> None:
    rng = np.random.default_rng(1)
    looks = [rng.normal(0, 1, (3, len(STAKES))) for _ in range(5)]
    for count in range(1, 6):
        expected = 1 / (count + 1)  # of which no bet has begun
        for begin in range(count):
            after = np.exp(sum(looks[begin:count], np.zeros_like(looks[0]))).mean()
            expected += after / ((begin + 1) * (begin + 2))
        evidence = betting.evidence(looks[:count])
        assert evidence.value == pytest.approx(expected)
        assert evidence.p_value == pytest.approx(min(1.0, 1 / expected))
        assert evidence.looks == count
    assert betting.evidence([]).value == 1.0
    assert betting.evidence([np.full((2, 8), 900.0)]).value == pytest.approx(math.exp(700))  # no overflow


def first_alarm(rng: np.random.Generator, truth: list[float], floor: float, rows: int, alpha: float) -> int | None:
    log_capitals = betting.log_capital(
        [betting.gains((rng.random(rows) < p).astype(float), None, floor) for p in truth]
    )
    return next((look for look, log in enumerate(log_capitals, 1) if log >= -math.log(alpha)), None)


def test_fifty_looks_at_the_floor_raise_false_alarms_as_often_as_they_may() -> None:
    rng = np.random.default_rng(2)
    alarms = sum(first_alarm(rng, [0.9] * 50, 0.9, 30, 0.1) is not None for _ in range(120))
    assert alarms <= stats.binom.ppf(0.999, 120, 0.1)
    naive = sum(
        any(stats.binomtest(int(rng.binomial(30, 0.9)), 30, 0.9, "less").pvalue <= 0.1 for _ in range(50))
        for _ in range(20)
    )
    assert naive >= 15  # a test that is made for one look


def test_rows_that_belong_together_are_one_bet() -> None:
    """Groups of five rows that are all right or all wrong: bets on rows would be wrong nearly always."""
    rng = np.random.default_rng(3)
    whole = rows = 0
    for _ in range(40):
        right = np.repeat(rng.random((40, 10)) < 0.8, 5, axis=1).astype(float)
        groups = [g for g in range(10) for _ in range(5)]
        whole += max(betting.log_capital([betting.gains(r, groups, 0.8, 5) for r in right])) >= math.log(10)
        rows += max(betting.log_capital([betting.gains(r, None, 0.8) for r in right])) >= math.log(10)
    assert whole <= stats.binom.ppf(0.999, 40, 0.1)
    assert rows > 15


def test_a_drop_is_seen_soon_also_after_good_months() -> None:
    rng = np.random.default_rng(4)
    at_once = [first_alarm(rng, [0.82] * 20, 0.9, 120, 0.0125) for _ in range(20)]
    later = [first_alarm(rng, [0.93] * 30 + [0.82] * 20, 0.9, 120, 0.0125) for _ in range(20)]
    assert np.median([look or 99 for look in at_once]) <= 3
    assert np.median([(look or 99) - 30 for look in later]) <= 6


@pytest.mark.parametrize("binary", [True, False])
def test_bounds_of_a_mean_cover_it(binary: bool) -> None:
    rng = np.random.default_rng(5)
    missed = 0
    for _ in range(150):
        group_means = np.clip(rng.normal(0.5, 0.2, 40), 0, 1)
        x = np.repeat(group_means, 4)
        values = (rng.random(160) < x).astype(float) if binary else np.clip(x + rng.normal(0, 0.1, 160), 0, 1)
        low, high = betting.mean_bounds(values, np.repeat(np.arange(40), 4).tolist(), 0.1)
        missed += not low <= 0.5 <= high
    assert missed <= stats.binom.ppf(0.999, 150, 0.1)
    assert betting.mean_bounds([0.3, 0.4], ["a", "a"], 0.1) == (0.0, 1.0)
    assert betting.mean_bounds([1.0, 0.0], ["a", "a"], 0.1) == (0.0, 1.0)
    assert betting.mean_bounds([0.5] * 10, None, 0.1)[0] == pytest.approx(0.5 - (1 - 0.05 ** (1 / 10)))


def test_a_sample_against_one_that_stays_keeps_its_level_and_sees_a_shift() -> None:
    rng = np.random.default_rng(6)
    alarms, detected_at = 0, []
    for _ in range(60):
        old = rng.random((200, 3))
        bounds = [betting.mean_bounds(column, None, 0.05 / 3) for column in old.T]
        unshifted = [betting.gains_apart(rng.random((25, 3)), None, bounds) for _ in range(40)]
        alarms += max(betting.log_capital(unshifted)) >= math.log(20)
        shifted = [betting.gains_apart(np.sqrt(rng.random((60, 3))), None, bounds) for _ in range(4)]
        detected_at.append(next((j for j in range(1, 5) if betting.evidence(shifted[:j]).value >= 20), 9))
    assert alarms <= stats.binom.ppf(0.999, 60, 0.1)
    assert np.median(detected_at) <= 2


@pytest.mark.parametrize(
    ("scores", "groups", "largest", "message"),
    [
        ([0.5, 1.5], None, 1, "between 0 and 1"),
        ([0.5, math.nan], None, 1, "between 0 and 1"),
        ([0.5, 0.5], ["a"], 1, "one for each row"),
        ([0.5, 0.5], ["a", "b"], 0, "at least one row"),
    ],
)
def test_what_cannot_be_bet_on_is_refused(
    scores: list[float], groups: list[str] | None, largest: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        betting.gains(scores, groups, 0.5, largest)
    with pytest.raises(UsageError, match="in different ways"):
        betting.evidence([np.zeros((2, 8)), np.zeros((3, 8))])
