"""Intervals and tests against statsmodels and scipy, and the zero-variance and few-groups cases."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.core.plain_statistics import bca_cluster_bootstrap, binomial_interval, clustered_error

from bedplate.core.errors import UsageError
from bedplate.core.statistics import clusters, multiplicity, paired, proportions, unequal

statsmodels_multitest = pytest.importorskip("statsmodels.stats.multitest")
statsmodels_proportion = pytest.importorskip("statsmodels.stats.proportion")


def clustered_rows(
    seed: int, groups: int = 60, icc: float = 0.1, p: float = 0.8, size: int | None = None
) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 18, groups) if size is None else np.full(groups, size)
    rate = rng.beta(p * (1 / icc - 1), (1 - p) * (1 / icc - 1), groups)
    x = (rng.random(int(sizes.sum())) < np.repeat(rate, sizes)).astype(float)
    return x, [f"g{g}" for g, size in enumerate(sizes) for _ in range(size)]


def test_importing_statistics_loads_no_scipy() -> None:
    code = "import sys, bedplate.core.statistics as s; print(any(m.split('.')[0] == 'scipy' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
@settings(deadline=None, max_examples=60)
def test_proportion_intervals_match_statsmodels(n: int, share: float, confidence: float) -> None:
    k = round(share * n)
    exact = statsmodels_proportion.proportion_confint(k, n, 1 - confidence, method="beta")
    score = statsmodels_proportion.proportion_confint(k, n, 1 - confidence, method="wilson")
    assert binomial_interval(k, n, confidence) == pytest.approx(exact, abs=1e-9)
    assert proportions.wilson(k, n, confidence) == pytest.approx(score, abs=1e-9)
    one_sided = stats.binomtest(k, n, alternative="greater").proportion_ci(confidence, method="exact").low
    assert proportions.binomial_lower(k, n, confidence) == pytest.approx(one_sided, abs=1e-9)
    one_sided = stats.binomtest(k, n, alternative="less").proportion_ci(confidence, method="exact").high
    assert proportions.binomial_upper(k, n, confidence) == pytest.approx(one_sided, abs=1e-9)


def test_none_right_of_twenty_is_not_certainty() -> None:
    assert proportions.wilson(0, 20)[1] == pytest.approx(0.161, abs=5e-4)
    assert proportions.wilson(0, 20)[0] == 0.0
    assert proportions.binomial_lower(20, 20) == pytest.approx(0.05 ** (1 / 20))


@pytest.mark.parametrize("seed", range(4))
def test_clustered_mean_matches_statsmodels(seed: int) -> None:
    api = pytest.importorskip("statsmodels.api")
    x, groups = clustered_rows(seed)
    codes = np.unique(groups, return_inverse=True)[1]
    fit = api.OLS(x, np.ones(len(x))).fit(cov_type="cluster", cov_kwds={"groups": codes})
    assert clustered_error(x, groups) == pytest.approx(fit.bse[0], rel=1e-10)


def test_design_effect_is_one_for_independent_rows_and_the_size_for_copies() -> None:
    rng = np.random.default_rng(0)
    x = (rng.random(200) < 0.7).astype(float)
    assert clusters.design_effect(x, range(200)) == pytest.approx(1.0)
    copies = np.repeat(x, 5)
    assert clusters.design_effect(copies, np.repeat(np.arange(200), 5)) == pytest.approx(5.0, rel=0.01)
    assert clusters.intraclass_correlation(copies, np.repeat(np.arange(200), 5)) == pytest.approx(1.0)


def test_intraclass_correlation_recovers_the_one_simulated() -> None:
    estimates = [clusters.intraclass_correlation(*clustered_rows(seed, groups=200, icc=0.1)) for seed in range(20)]
    assert np.mean(estimates) == pytest.approx(0.1, abs=0.02)


def test_effective_n_bound_is_exact_when_rows_are_independent() -> None:
    x = [1.0] * 17 + [0.0] * 3
    expected = proportions.binomial_lower(17, 20)
    assert clusters.effective_n_bound(x, None).value == expected
    assert clusters.effective_n_bound(x, range(20)).value == expected  # 20 groups of one row: not "too few groups"


@pytest.mark.parametrize("seed", range(1, 4))
def test_effective_n_bound_follows_korn_and_graubard(seed: int) -> None:
    x, groups = clustered_rows(seed, size=9, p=0.5)  # of one size, and rates that lean to neither side
    n, right = len(x), x.sum()
    variance = clustered_error(x, groups) ** 2
    deff = max(1.0, variance / (x.var(ddof=1) / n))
    effective = n / deff * (stats.t.ppf(0.95, n - 1) / stats.t.ppf(0.95, 59)) ** 2
    k = right / n * effective
    assert clusters.effective_n_bound(x, groups).value == pytest.approx(stats.beta.ppf(0.05, k, effective - k + 1))
    upper = clusters.effective_n_bound(x, groups, side="upper")
    assert upper.value == pytest.approx(stats.beta.ppf(0.95, k + 1, effective - k))
    assert upper.effective_n <= n
    low, high = clusters.effective_n_interval(x, groups, 0.9)
    assert (low, high) == pytest.approx((clusters.effective_n_bound(x, groups).value, upper.value))


def test_negative_correlation_never_sharpens_a_bound() -> None:
    x, groups = np.tile([1.0, 0.0], 50), np.repeat(np.arange(50), 2)  # each group exactly one right
    assert clusters.design_effect(x, groups) < 0.01
    assert clusters.effective_n_bound(x, groups).design_effect == 1.0
    assert clusters.effective_n_bound(x, groups).value < proportions.binomial_lower(50, 100)


def test_all_right_counts_groups_not_rows() -> None:
    bound = clusters.effective_n_bound([1.0] * 600, np.repeat(np.arange(60), 10))
    assert bound.effective_n <= 60
    assert 0.9 < bound.value < proportions.binomial_lower(60, 60) + 1e-12
    none = clusters.effective_n_bound([0.0] * 600, np.repeat(np.arange(60), 10), side="upper")
    assert none.value == pytest.approx(1 - bound.value)


def test_few_groups_are_refused_by_type() -> None:
    x, groups = clustered_rows(0, groups=39)
    with pytest.raises(unequal.InsufficientGroups, match=r"39 groups are too few.*at least 40") as caught:
        clusters.effective_n_bound(x, groups)
    assert (caught.value.groups, caught.value.needed) == (39, 40)
    assert 0 < clusters.effective_n_bound(x, groups, minimum_groups=2).value < x.mean()
    with pytest.raises(unequal.InsufficientGroups):
        clusters.effective_n_bound([1.0, 0.0], ["a", "a"], minimum_groups=1)
    with pytest.raises(unequal.InsufficientGroups):
        bca_cluster_bootstrap(lambda rows: float(x[rows].mean()), groups)


def test_bca_matches_scipy_on_independent_rows() -> None:
    rng = np.random.default_rng(3)
    x = rng.beta(5, 2, 80)
    ours = bca_cluster_bootstrap(lambda rows: float(x[rows].mean()), range(80), 0.9, resamples=8000)
    peer = stats.bootstrap((x,), np.mean, confidence_level=0.9, n_resamples=8000, method="BCa", rng=1)
    assert ours.interval == pytest.approx(tuple(peer.confidence_interval), abs=0.003)
    assert ours.se == pytest.approx(peer.standard_error, rel=0.05)
    assert ours.interval[0] < ours.lower < ours.estimate < ours.upper < ours.interval[1]


def test_bca_resamples_whole_groups_and_repeats_with_its_seed() -> None:
    x, groups = clustered_rows(5, icc=0.3)
    run = [bca_cluster_bootstrap(lambda rows: float(x[rows].mean()), groups, seed=7) for _ in range(2)]
    assert run[0] == run[1]
    assert run[0].se == pytest.approx(clustered_error(x, groups), rel=0.1)
    assert run[0].se > 1.3 * math.sqrt(x.var() / len(x))


def test_bca_of_a_constant_has_width() -> None:
    flat = bca_cluster_bootstrap(lambda _: 1.0, range(50), resamples=50)
    assert flat.lower == pytest.approx(0.05 ** (1 / 50))
    assert flat.interval[0] < flat.lower < flat.upper == 1.0


@given(st.integers(0, 25), st.integers(0, 25), st.integers(0, 10))
@settings(deadline=None, max_examples=40)
def test_mcnemar_matches_statsmodels(only_a: int, only_b: int, agreeing: int) -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    a = [1] * only_a + [0] * only_b + [1] * agreeing
    b = [0] * only_a + [1] * only_b + [1] * agreeing
    if only_a + only_b == 0:
        assert paired.mcnemar_exact(a, b) == 1.0
        return
    peer = tables.mcnemar([[agreeing, only_a], [only_b, 0]], exact=True).pvalue
    assert paired.mcnemar_exact(a, b) == pytest.approx(min(1.0, peer))
    assert paired.mcnemar_exact(a, b) == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)


def test_sign_flip_enumerates_few_groups_exactly() -> None:
    rng = np.random.default_rng(0)
    d = rng.integers(-1, 2, 36).astype(float)
    groups = np.repeat(np.arange(9), 4)
    sums = [d[groups == g].sum() for g in range(9)]
    flips = [
        abs(sum(s * f for s, f in zip(sums, signs, strict=True))) for signs in itertools.product((1, -1), repeat=9)
    ]
    assert paired.sign_flip(d, groups) == pytest.approx(np.mean([f >= abs(sum(sums)) for f in flips]))


def test_sign_flip_matches_scipy_permutation_test() -> None:
    rng = np.random.default_rng(2)
    d = rng.normal(0.25, 1, 12)
    peer = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert paired.sign_flip(d, range(12)) == pytest.approx(peer.pvalue)


def test_sign_flip_monte_carlo_is_near_the_exact_p_seeded_and_never_zero() -> None:
    rng = np.random.default_rng(4)
    d, groups = rng.choice([-1.0, 0.0, 1.0], 300, p=[0.05, 0.75, 0.2]), np.repeat(np.arange(60), 5)
    assert paired.sign_flip(d, groups, seed=1) == paired.sign_flip(d, groups, seed=1)
    assert paired.sign_flip(np.ones(300), groups) == pytest.approx(1 / 20_001)
    mild = rng.choice([-1.0, 1.0], 100, p=[0.4, 0.6])
    assert paired.sign_flip(mild, range(100)) == pytest.approx(
        stats.binomtest(int((mild > 0).sum()), 100).pvalue, abs=0.01
    )


def test_sign_flip_of_copied_rows_is_that_of_the_originals() -> None:
    d = np.random.default_rng(5).choice([-1.0, 0.0, 1.0], 11, p=[0.1, 0.3, 0.6])
    copied = paired.sign_flip(np.repeat(d, 8), np.repeat(np.arange(11), 8))
    assert copied == paired.sign_flip(d, range(11))
    assert paired.sign_flip(np.zeros(5), range(5)) == 1.0


@pytest.mark.parametrize("groups", [8, 40])
def test_swap_test_of_a_mean_is_the_sign_flip(groups: int) -> None:
    rng = np.random.default_rng(6)
    d, codes = rng.normal(0.1, 1, groups * 3), np.repeat(np.arange(groups), 3)
    swapped = paired.swap_test(lambda s: float(np.where(s, -d, d).mean()), codes, resamples=4000)
    assert swapped == pytest.approx(paired.sign_flip(d, codes), abs=1e-12 if groups == 8 else 0.03)


def test_paired_difference_chooses_the_test_and_never_has_zero_width() -> None:
    x, groups = clustered_rows(8)
    y = np.where(np.random.default_rng(1).random(len(x)) < 0.1, 1 - x, x)
    clustered = paired.paired_difference(x, y, groups)
    assert clustered.test == "clustered_sign_flip"
    mean = clusters.robust_mean(x - y, groups)
    assert 30 < mean.freedom < 59  # the groups have 2 to 17 rows
    half = stats.t.ppf(0.975, mean.freedom) * mean.se
    assert clustered.interval == pytest.approx((clustered.difference - half, clustered.difference + half))
    assert paired.paired_difference(x, y).test == "mcnemar_exact"
    identical = paired.paired_difference(x, x, groups)
    assert identical.p_value == 1.0
    sizes = np.unique(groups, return_counts=True)[1]
    assert identical.interval[1] == pytest.approx(1 - 0.025 ** (1 / (sizes.sum() ** 2 / (sizes**2).sum())))
    assert paired.paired_difference(x / 2, y / 3).test == "sign_flip"


@pytest.mark.parametrize(("gained", "lost"), [(7, 1), (8, 1), (5, 0), (6, 0), (1, 7)])
def test_an_interval_leaves_zero_out_only_where_its_test_does(gained: int, lost: int) -> None:
    """Few rows that differ: a score test excludes 0 where the exact one, here scipy's, does not."""
    change = np.array([1.0] * gained + [-1.0] * lost + [0.0] * (200 - gained - lost))
    difference = paired.paired_difference(change > 0, change < 0)
    exact = float(stats.binomtest(gained, gained + lost).pvalue)
    ends = list(paired.score_interval(gained, lost, 200))
    assert difference.p_value == pytest.approx(exact)
    assert ends[0] > 0 or ends[1] < 0
    if exact > 0.05:
        ends = [min(ends[0], 0.0), max(ends[1], 0.0)]
    assert difference.interval == pytest.approx(tuple(ends))
    assert (difference.interval[0] > 0 or difference.interval[1] < 0) == (exact <= 0.05)


def peer_holm(pvalues: list[float]) -> Any:
    """statsmodels' decisions at 5% and adjusted p-values; it collects garbage first, which is left out here: in a long
    run of tests that takes most of a second, each time."""
    with mock.patch("gc.collect"):
        return statsmodels_multitest.multipletests(pvalues, 0.05, method="holm")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(deadline=None, max_examples=50)
def test_holm_matches_statsmodels(pvalues: list[float]) -> None:
    assert multiplicity.holm(pvalues) == pytest.approx(peer_holm(pvalues)[1], abs=1e-12)


@given(st.lists(st.integers(70, 100), min_size=1, max_size=5), st.sampled_from([0.7, 0.8, 0.9]))
@settings(deadline=None, max_examples=60)
def test_holm_bounds_pass_exactly_what_holm_on_pvalues_rejects(right: list[int], target: float) -> None:
    pvalues = [stats.binomtest(k, 100, target, alternative="greater").pvalue for k in right]
    bounds = multiplicity.holm_bounds([lambda c, k=k: proportions.binomial_lower(k, 100, c) for k in right], target)
    assert [b.passed for b in bounds] == list(peer_holm(pvalues)[0])
    for bound, k in zip(bounds, right, strict=True):
        assert bound.lower == proportions.binomial_lower(k, 100, bound.confidence)


def test_spending_sums_to_alpha() -> None:
    assert multiplicity.spent_alpha(0.05, 1) == pytest.approx(0.0304, abs=1e-4)
    total = sum(multiplicity.spent_alpha(0.05, j) for j in range(1, 20_000))
    assert 0.0499 < total < 0.05
    assert multiplicity.simultaneous(0.95, 3) == pytest.approx(1 - 0.05 / 3)


@pytest.mark.parametrize(("estimate", "target"), [(0.85, 0.8), (0.9, 0.8), (0.95, 0.9), (0.6, 0.5)])
def test_needed_n_has_the_power_it_promises(estimate: float, target: float) -> None:
    n = multiplicity.needed_n(estimate, target, power=0.8)
    assert n is not None

    def power(rows: int) -> float:
        clears = [k for k in range(rows + 1) if proportions.binomial_lower(k, rows) > target]
        return float(stats.binom.sf(clears[0] - 1, rows, estimate)) if clears else 0.0

    assert power(n) == pytest.approx(0.8, abs=0.07)  # the exact power is a saw-tooth in n
    doubled = multiplicity.needed_n(estimate, target, power=0.8, deff=2.0)
    assert doubled is not None
    assert abs(doubled - 2 * n) <= 2


@pytest.mark.parametrize(("a", "b", "target"), [(2, 8, 0.18), (3, 1, 0.7), (12, 30, 0.27)])
def test_needed_n_of_a_mean_has_the_power_it_promises(a: float, b: float, target: float) -> None:
    truth = stats.beta(a, b)
    n = multiplicity.needed_n(truth.mean(), target, power=0.8, variance=truth.var())
    assert n is not None
    share = multiplicity.needed_n(truth.mean(), target, power=0.8)
    assert share is not None
    assert n < 0.7 * share  # scores between 0 and 1 vary less than ones that are 0 or 1
    rng = np.random.default_rng(0)
    rows = truth.rvs((4_000, n), random_state=rng)
    lower = rows.mean(1) - stats.t.ppf(0.95, n - 1) * rows.std(1, ddof=1) / np.sqrt(n)
    assert (lower > target).mean() == pytest.approx(0.8, abs=0.04)


GIANT = np.repeat(np.arange(801), [200, *[1] * 800])


def passing(rates: Any, groups: Any, runs: int = 150, seed: int = 0) -> float:
    """How often rows with rates that are drawn for each run [n] have their lower bound above 0.8."""
    rng = np.random.default_rng(seed)
    rows = [(rng.random(len(groups)) < rates(rng)[groups]).astype(float) for _ in range(runs)]
    return float(np.mean([clusters.effective_n_bound(x, groups, 0.97).value > 0.8 for x in rows]))


def test_a_giant_group_costs_no_more_power_than_leaving_it_out_and_passes_nothing_wrongly() -> None:
    assert passing(lambda rng: np.full(801, 0.86), GIANT) > 0.95
    for icc in (0.05, 0.3):  # groups drawn anew, all rates around the bar
        spread = 1 / icc - 1
        assert passing(lambda rng, s=spread: rng.beta(0.8 * s, 0.2 * s, 801), GIANT) <= 0.06
    worse = np.array([0.5, *[0.875] * 800])  # the giant group stays, and is worse: 0.8 in all
    assert passing(lambda rng: worse, GIANT) <= 0.06
    better = np.array([0.9, *[0.79] * 800])
    assert passing(lambda rng: better, GIANT) <= 0.06


def test_groups_are_set_apart_only_where_the_others_are_worth_far_more_without_them() -> None:
    assert unequal.dominating(np.bincount(GIANT).astype(float)).nonzero()[0].tolist() == [0]
    assert unequal.dominating(np.array([150.0, 150.0, *[1.0] * 700])).sum() == 2
    for sizes in ([10.0] * 60, [40.0] * 10 + [1.0] * 200, [600.0, *[1.0] * 400], (1142 / np.arange(1, 301)).tolist()):
        assert not unequal.dominating(np.array(sizes)).any(), sizes[:3]
    x = (np.random.default_rng(1).random(1000) < 0.9).astype(float)
    lower, upper = (clusters.effective_n_bound(x, GIANT, 0.97, side) for side in ("lower", "upper"))
    flipped = clusters.effective_n_bound(1 - x, GIANT, 0.97)
    assert lower.value < lower.estimate == x.mean() < upper.value == pytest.approx(1 - flipped.value)
    assert (lower.n, lower.groups) == (1000, 801)


def test_a_group_set_apart_does_not_count_among_the_groups_that_are_needed() -> None:
    for giant in (220, 230, 500):
        groups = np.repeat(np.arange(801), [giant, *[1] * 800])
        bound = clusters.effective_n_bound(np.ones(groups.size), groups)
        assert 0.98 < bound.value <= proportions.binomial_lower(800, 800)
    few = np.repeat(np.arange(40), [39, *[1] * 39])
    with pytest.raises(unequal.InsufficientGroups, match="39 groups are too few"):
        clusters.effective_n_bound(np.ones(78), few)


def test_an_interval_that_asks_for_two_groups_asks_no_more_of_those_beside_a_group_set_apart() -> None:
    groups = np.repeat(np.arange(36), [70, *[2] * 35])
    x = (np.arange(140) % 9 > 0).astype(float)
    assert unequal.dominating(np.bincount(groups).astype(float)).sum() == 1
    low, high = clusters.effective_n_interval(x, groups, minimum_groups=2)
    assert 0 < low < x.mean() < high < 1
    with pytest.raises(unequal.InsufficientGroups, match="35 groups are too few"):
        clusters.effective_n_bound(x, groups)


def test_a_worth_just_short_of_enough_is_not_rounded_up() -> None:
    assert "count as 19.9 equal ones" in unequal.InsufficientGroups(801, 40, 19.96).message


@pytest.mark.parametrize("truth", [0.79, 0.81, 0.83, 0.86])
@pytest.mark.parametrize("n", [900, 3000])
def test_the_power_of_rows_is_that_of_the_exact_test(truth: float, n: int) -> None:
    passing = next(k for k in range(n + 1) if proportions.binomial_lower(k, n, 0.97) > 0.8)
    assert multiplicity.power_at(truth, n, 0.8, 0.97) == pytest.approx(stats.binom.sf(passing - 1, n, truth), abs=0.05)


@pytest.mark.parametrize("variance", [None, 0.05])
def test_the_power_at_the_rows_needed_is_what_they_were_needed_for(variance: float | None) -> None:
    design = {"deff": 1.7, "variance": variance}
    n = multiplicity.needed_n(0.86, 0.8, 0.97, 0.8, **design)
    assert n is not None
    assert multiplicity.power_at(0.86, n, 0.8, 0.97, **design) == pytest.approx(0.8, abs=0.002)
    assert multiplicity.power_at(0.86, n - 3, 0.8, 0.97, **design) < 0.8
    assert multiplicity.power_at(1.0, 1e4, 0.8) == 1.0
    with pytest.raises(UsageError, match="shares lie in 0 to 1"):
        multiplicity.power_at(1.2, 100, 0.8)


def test_needed_n_promises_nothing_at_or_below_the_target() -> None:
    assert multiplicity.needed_n(0.8, 0.8) is None
    assert multiplicity.needed_n(0.7, 0.8) is None
    assert multiplicity.needed_n(1.0, 0.8) is not None


@pytest.mark.parametrize(
    "call",
    [
        lambda: proportions.binomial_lower(1, 0),
        lambda: proportions.binomial_lower(3, 2),
        lambda: proportions.wilson(1, 2, 0.4),
        lambda: clusters.effective_n_bound([0.5], None),
        lambda: clusters.robust_mean([1.0, 2.0], ["a"]),
        lambda: clusters.robust_mean([], []),
        lambda: clusters.robust_mean([math.nan], ["a"]),
        lambda: paired.mcnemar_exact([1, 0], [1]),
        lambda: multiplicity.holm([1.5]),
        lambda: multiplicity.spent_alpha(0.05, 0),
        lambda: multiplicity.needed_n(1.2, 0.8),
        lambda: multiplicity.needed_n(0.9, 0.8, variance=-0.1),
    ],
)
def test_wrong_calls_say_so(call) -> None:
    with pytest.raises(UsageError):
        call()
