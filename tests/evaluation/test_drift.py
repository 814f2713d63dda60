"""Shifts against statsmodels and scipy, false alarms over many looks, how often a real shift is seen, and verdicts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bedplate.core import statistics as bs
from bedplate.core.errors import UsageError
from bedplate.evaluation.drift import Levels, Promise, Quality, Sample, Shift, decide, quality, shifts, whitened
from bedplate.evaluation.harness import Evaluation
from bedplate.evaluation.task_row import RowResult

multivariate = pytest.importorskip("statsmodels.stats.multivariate")
proportion = pytest.importorskip("statsmodels.stats.proportion")


def evaluation(right: int, n: int, groups: int | None = None) -> Evaluation:
    rows = tuple(
        RowResult(
            str(i), f"{i:064x}", f"g{i % (groups or n)}", "yes", "yes" if i < right else "no", float(i < right), 9
        )
        for i in range(n)
    )
    return Evaluation(
        *("t", "0" * 64, "new", "0" * 64, "accuracy", ("no", "yes"), right / n, (0.0, 1.0), 0.95, None, None, n),
        *(groups or n, None, 1.0, 0, 0, rows, "label", "binary"),
    )


def promise(right: int = 90, n: int = 100, target: float = 0.8) -> Promise:
    low, high = bs.binomial_interval(right, n)
    return Promise("accuracy", "test", right / n, (low, high), 0.95, n, n, target)


def test_the_distance_of_whitened_means_is_hotellings() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 4)) @ rng.standard_normal((4, 4)), rng.standard_normal((40, 4))
    features = whitened(np.concatenate([x, y]), 20)
    assert features.shape == (100, 4)
    parts = np.column_stack([features, np.ones(100)])
    q = 60 * 40 / 100**2 * bs.mean_distance(parts[:60].sum(0), parts[60:].sum(0)) ** 2
    assert 98 * q / (1 - q) == pytest.approx(multivariate.test_mvmean_2indep(x, y).t2)


def test_vectors_that_are_all_alike_have_no_distance() -> None:
    same = whitened(np.ones((40, 5)), 20)
    old, new = (
        Sample(["a b"] * 20, None, None, same[:20], range(20)),
        Sample(["a b"] * 20, None, None, same[20:], range(20)),
    )
    assert [(one.what, one.p_value, one.differs) for one in shifts(old, new, 0.05)] == [
        ("inputs", 1.0, False),
        ("length", 1.0, False),
    ]


def sample(rng: np.random.Generator, groups: int, shift: float = 0.0, name: str = "") -> tuple[Sample, np.ndarray]:
    """Rows in groups that are alike within, by their vectors, lengths and labels; vectors are returned as well."""
    sizes = rng.integers(1, 7, groups)
    codes = np.repeat(np.arange(groups), sizes)
    own = rng.standard_normal((groups, 6))
    vectors = own[codes] + rng.standard_normal((len(codes), 6)) + shift
    texts = ["x" * int(20 + 5 * v + 1) for v in np.abs(vectors[:, 0])]
    labels = [("yes",) if v > 0 else ("no",) for v in vectors[:, 1]]
    return Sample(texts, [f"{name}{code}" for code in codes], labels, None, range(len(codes))), vectors


def both(rng: np.random.Generator, shift: float = 0.0) -> tuple[Sample, Sample]:
    (old, x), (new, y) = sample(rng, 40, name="old"), sample(rng, 20, shift, name="new")
    features = whitened(np.concatenate([x, y]), 20)
    return replace(old, features=features[: len(x)]), replace(new, features=features[len(x) :])


def test_all_shifts_together_keep_their_level_and_see_a_real_one() -> None:
    rng = np.random.default_rng(1)
    runs = [shifts(*both(rng), 0.2, seed) for seed in range(40)]
    # 40 runs at 20% at most: more than 14 have a chance of 1%
    assert 1 <= sum(any(one.differs for one in run) for run in runs) <= 14
    assert [one.what for one in runs[0]] == ["inputs", "length", "labels"]
    seen = [{one.what for one in shifts(*both(rng, 1.0), 0.05, seed) if one.differs} for seed in range(10)]
    assert sum("inputs" in run for run in seen) >= 9


def test_words_say_what_came_and_what_went() -> None:
    rng = np.random.default_rng(2)
    old = Sample([f"the phone {'battery' if i % 2 else 'screen'} broke" for i in range(60)], None)
    new = Sample([f"the film {'plot' if i % 2 else 'cast'} broke" for i in range(40)], None)
    features = rng.standard_normal((100, 3)) + 5 * (np.arange(100) >= 60)[:, None]
    old, new = (
        replace(old, features=features[:60], featured=range(60)),
        replace(new, features=features[60:], featured=range(40)),
    )
    found = shifts(old, new, 0.05)[0]
    assert found.differs
    assert found.value > 5
    assert [set(words) for words in found.words] == [{"film", "plot", "cast"}, {"phone", "battery", "screen"}]


def test_lengths_and_labels_are_told_as_they_are() -> None:
    old = Sample(["a" * 10] * 50, None, [("no",)] * 40 + [("yes",)] * 10)
    new = Sample(["a" * 30] * 20 + ["a" * 10] * 20, None, [("no",)] * 8 + [("yes",)] * 32)
    length, labels = shifts(old, new, 0.05)
    assert (length.value, length.differs) == (10.0, True)
    assert length.says == "a new row has 20 characters on average, an old one 10"
    drawn = stats.permutation_test(
        (np.repeat([0, 1], [40, 10]), np.repeat([0, 1], [8, 32])),
        lambda a, b: abs(np.mean(a) - np.mean(b)),
        alternative="greater",
        n_resamples=4_999,
    )
    assert labels.p_value == drawn.pvalue == 1 / 5_000
    assert labels.says == "'no' is right for 20.0% of new rows, 80.0% of old ones"
    assert labels.value == pytest.approx(0.6)


def test_too_few_groups_to_show_anything_are_named() -> None:
    old = Sample(["a"] * 30, [f"g{i // 3}" for i in range(30)])
    alone = shifts(old, Sample(["a" * 99] * 5, ["new"] * 5), 0.05)[0]
    assert not alone.differs
    assert alone.says.endswith("so few groups could not show a difference")
    more = shifts(old, Sample(["a" * 99] * 5, [f"new{i}" for i in range(5)]), 0.05)[0]
    assert more.differs
    assert "few groups" not in more.says


# --- many looks


def test_all_looks_together_stay_within_their_error() -> None:
    spent = [Levels(j, 0.05, True).spent for j in range(1, 2000)]
    assert sum(spent) < 0.05
    assert spent[0] == pytest.approx(0.0304, abs=1e-4)
    for labelled in (True, False):
        one = Levels(3, 0.05, labelled)
        assert one.shifts + labelled * 2 * one.quality == pytest.approx(one.spent)


def test_looking_every_week_raises_few_false_alarms() -> None:
    """20 looks at a skin with which nothing is wrong: new rows each time, of the population of the promise."""
    rng = np.random.default_rng(3)
    alarms = naive = 0
    for _ in range(60):
        held = promise(int(rng.binomial(200, 0.85)), 200, 0.85)
        looks = [evaluation(int(rng.binomial(120, 0.85)), 120) for _ in range(20)]
        found = [quality(one, held, Levels(j, 0.05, True).quality) for j, one in enumerate(looks, 1)]
        alarms += any(one.worse or one.below_bar for one in found)
        naive += any(one.worse for one in (quality(one, held, 0.05) for one in looks))
    assert alarms <= 4
    assert naive > 10


def test_a_skin_that_has_become_worse_is_seen() -> None:
    rng = np.random.default_rng(4)
    level = Levels(1, 0.05, True).quality
    found = [quality(evaluation(int(rng.binomial(300, 0.75)), 300), promise(180, 200), level) for _ in range(50)]
    assert sum(one.worse for one in found) >= 45


# --- quality


@pytest.mark.parametrize(("right", "n"), [(70, 100), (150, 160), (0, 60)])
def test_quality_is_a_two_sample_interval(right: int, n: int) -> None:
    """Near Newcombe's of the same shares: the bounds that it is made of are exact instead of Wilson's."""
    level = 0.025
    found = quality(evaluation(right, n), promise(90, 100), level)
    assert found.interval is not None
    wanted = proportion.confint_proportions_2indep(right, n, 90, 100, compare="diff", method="newcomb", alpha=2 * level)
    assert found.interval == pytest.approx(wanted, abs=0.025)
    assert found.interval[1] - found.interval[0] >= wanted[1] - wanted[0] - 0.005
    assert found.worse == (found.interval[1] < 0)


def test_the_promise_at_its_own_confidence_is_the_reports() -> None:
    held = promise(90, 100)
    assert held.bounds(0.975) == pytest.approx(held.interval)
    exact = bs.binomial_interval(90, 100, 0.98)
    assert held.bounds(0.99) == pytest.approx(exact, abs=0.01)


def test_too_few_groups_allow_no_bound() -> None:
    found = quality(evaluation(80, 100, groups=10), promise(), 0.01)
    assert found.bounds is None
    assert found.interval is None
    verdict, sentence = decide([], found)
    assert verdict == "undecided"
    assert "10 groups are too few" in sentence


def test_another_metric_is_refused() -> None:
    with pytest.raises(UsageError, match="tells of macro_f1"):
        quality(evaluation(80, 100), replace(promise(), metric="macro_f1"), 0.01)


# --- what to do


def shift(differs: bool) -> Shift:
    return Shift("inputs", 3.0, 0.001, 0.001, differs, "")


def measured(right: int, n: int) -> Quality:
    return quality(evaluation(right, n), promise(180, 200), 0.01)


@pytest.mark.parametrize(
    ("found", "of_quality", "verdict", "says"),
    [
        ([shift(True)], None, "label", "without labels"),
        ([shift(False)], None, "keep", "only labels would tell"),
        ([], None, "undecided", "no labels"),
        ([shift(True)], measured(100, 200), "climb", "below the bar and the report beyond chance; new rows differ"),
        ([shift(False)], measured(310, 400), "climb", "below the report beyond chance"),
        (
            [shift(True)],
            measured(190, 200),
            "keep",
            "above the bar beyond chance; new rows differ from old ones in inputs",
        ),
        ([shift(False)], measured(83, 100), "undecided", "rows in all"),
        ([shift(False)], quality(evaluation(83, 100), None, 0.01), "undecided", "no report"),
    ],
)
def test_the_verdict_has_its_reasons(found: list[Shift], of_quality: Quality | None, verdict: str, says: str) -> None:
    assert decide(found, of_quality)[0] == verdict
    assert says in decide(found, of_quality)[1]
