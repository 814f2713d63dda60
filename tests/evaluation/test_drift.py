"""Shifts of inputs, lengths and labels, false alarms over many looks, how soon a real drop is seen, and verdicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from scipy import stats
from tests.core.plain_statistics import binomial_interval
from tests.evaluation import recurring

from bedplate.core.errors import UsageError
from bedplate.core.statistics import betting, multiplicity, proportions
from bedplate.core.statistics.betting import BettingEvidence
from bedplate.evaluation.drift import Aspect, Levels, Promise, Quality, Sample, Shift, quality, shifts, texts_recur
from bedplate.evaluation.drift_verdict import decide
from bedplate.evaluation.grading import GradedRow
from bedplate.evaluation.harness import Evaluation


def evaluation(right: int, n: int, groups: int | None = None) -> Evaluation:
    rows = tuple(
        GradedRow(
            str(i), f"{i:064x}", f"g{i % (groups or n)}", "yes", "yes" if i < right else "no", float(i < right), 9
        )
        for i in range(n)
    )
    return Evaluation(
        *("t", "0" * 64, "new", "0" * 64, "accuracy", ("no", "yes"), right / n, (0.0, 1.0), 0.95, None, None, n),
        *(groups or n, None, 1.0, 0, 0, rows, "label", "binary"),
    )


def promise(right: int = 90, n: int = 100, target: float = 0.8, confidence: float = 0.97) -> Promise:
    floor = proportions.binomial_lower(right, n, confidence)
    interval = binomial_interval(right, n)
    return Promise("accuracy", "test", right / n, interval, n, n, target, floor, confidence, True)


# --- inputs, lengths, labels


def sample(rng: np.random.Generator, groups: int, shift: float = 0.0, name: str = "") -> Sample:
    """Rows in groups that are alike within, by their vectors, lengths and labels."""
    sizes = rng.integers(1, 7, groups)
    codes = np.repeat(np.arange(groups), sizes)
    group_vectors = rng.standard_normal((groups, 6))
    vectors = group_vectors[codes] + rng.standard_normal((len(codes), 6)) + shift
    texts = ["x" * int(20 + 5 * v + 1) for v in np.abs(vectors[:, 0])]
    labels = [("yes",) if v > 0 else ("no",) for v in vectors[:, 1]]
    return Sample(texts, [f"{name}{code}" for code in codes], labels, vectors, range(len(codes)))


def looked(rng: np.random.Generator, old: Sample, drifts: list[float], level: float) -> int | None:
    """The first of the looks, each with a shift, that says that anything differs; all with the evidence before them."""
    before: list[dict[str, betting.Gains]] = []
    for number, shift in enumerate(drifts, 1):
        changes = shifts(old, sample(rng, 12, shift, f"{number}:"), level, earlier=before, largest=6)
        before.append({change.aspect: change.gains for change in changes})
        if any(change.differs for change in changes):
            return number
    return None


@pytest.mark.slow
def test_many_looks_keep_their_level_and_see_a_real_shift() -> None:
    rng = np.random.default_rng(1)
    alarms = [looked(rng, sample(rng, 80, name="old"), [0.0] * 8, 0.2 / 3) for _ in range(12)]
    # 12 runs at 20% at most: more than 7 have a chance of 1 in 250
    assert sum(alarm is not None for alarm in alarms) <= 7
    detections = [looked(rng, sample(rng, 80, name="old"), [1.5] * 6, 0.05 / 6) for _ in range(6)]
    assert all(detection is not None for detection in detections)
    late = [looked(rng, sample(rng, 80, name="old"), [0.0] * 4 + [1.5] * 6, 0.05 / 6) for _ in range(6)]
    # some 5 of 6 are detected in time; which of them depends on the rounding of a processor's sums
    assert sum(number is not None and number > 4 for number in late) >= 3


def test_what_is_looked_at_does_not_depend_on_the_new_rows() -> None:
    """Half of the rows at one look and half at the next gain what all gain at once."""
    rng = np.random.default_rng(2)
    old, new = sample(rng, 60, name="old"), sample(rng, 30, 0.5, "new")
    assert new.labels is not None
    whole = {change.aspect: change.gains for change in shifts(old, new, 0.01, largest=6)}
    assert list(whole) == ["inputs", "length", "labels"]
    assert new.groups is not None
    begin = list(dict.fromkeys(new.groups))[:15]
    parts = [[(group in begin) is half for group in new.groups] for half in (True, False)]
    halves = [shifts(old, replace(new, unseen=part, unjudged=part), 0.01, largest=6) for part in parts]
    for a, b in zip(*halves, strict=True):
        assert a.gains + b.gains == pytest.approx(whole[a.aspect])
        assert a.value == b.value  # what is told is of all rows


def test_texts_that_come_again_and_again_are_no_change() -> None:
    """Few texts, of which the short ones come most: those that no earlier look had are long, in new rows and in old."""
    rng = np.random.default_rng(7)
    lengths = np.arange(10, 210)
    often = 1 / np.arange(1.0, 201.0)
    alarms = 0
    for _ in range(5):
        old, *months = (rng.choice(lengths, 400, p=often / often.sum()) for _ in range(6))
        before: list[dict[str, betting.Gains]] = []
        earlier_lengths: set[int] = set()
        differs = False
        for month in months:
            sides: list[Sample] = []
            for batch in (old, month):
                texts, labels = ["x" * n for n in batch], [("short" if n < 30 else "long",) for n in batch]
                new = [n not in earlier_lengths for n in batch]
                sides.append(Sample(texts, None, labels, unseen=new, unjudged=new))
            changes = shifts(sides[0], sides[1], 0.05 / 6, earlier=before)
            before.append({change.aspect: change.gains for change in changes})
            earlier_lengths |= set(month)
            differs |= any(change.differs for change in changes)
        alarms += differs
    assert alarms == 0
    had = Sample(["a", "bb"] * 30, None, unseen=[False] * 60)
    assert not shifts(had, had, 0.01)[0].gains.any()
    assert shifts(had, Sample(["ccc"] * 60, None), 0.01)[0].gains.max() <= 0  # nothing is left to compare with


def test_vectors_that_are_all_alike_do_not_differ() -> None:
    constant = Sample(["a b"] * 60, None, None, np.ones((60, 5)), range(60))
    assert [(change.aspect, change.differs) for change in shifts(constant, constant, 0.05)] == [
        ("inputs", False),
        ("length", False),
    ]


def test_words_say_what_came_and_what_went() -> None:
    rng = np.random.default_rng(2)
    old = Sample(
        [f"the phone {'battery' if i % 2 else 'screen'} broke" for i in range(90)],
        None,
        None,
        rng.standard_normal((90, 3)),
        range(90),
    )
    new = Sample(
        [f"the film {'plot' if i % 2 else 'cast'} broke" for i in range(60)],
        None,
        None,
        rng.standard_normal((60, 3)) + 5,
        range(60),
    )
    change = shifts(old, new, 0.01)[0]
    assert change.differs
    assert change.value > 0.3
    assert change.explanation.startswith("on the measure that moved most, a new input ranks above ")
    assert " of the old ones on average, an old input above " in change.explanation
    assert [set(words) for words in change.words] == [{"film", "plot", "cast"}, {"phone", "battery", "screen"}]


def test_lengths_and_labels_are_told_as_they_are() -> None:
    old = Sample(["a" * 10] * 50 + ["a" * 9] * 50, None, [("no",)] * 80 + [("yes",)] * 20)
    new = Sample(["a" * 30] * 20 + ["a" * 10] * 20, None, [("no",)] * 8 + [("yes",)] * 31 + [("new",)])
    length, labels = shifts(old, new, 0.05)
    assert (length.value, length.differs, labels.differs) == (10.5, True, True)
    assert length.explanation == "a new row has 20 characters on average, an old one 10"
    assert labels.explanation == "'no' is right for 20.0% of new rows, 80.0% of old ones"
    assert labels.value == pytest.approx(0.6)
    assert set(labels.to_json()) == {"what", "value", "evidence", "enough", "p_value", "differs", "says", "words"}


def test_too_few_groups_to_show_anything_are_named() -> None:
    old = Sample(["a" * (9 + i % 3) for i in range(90)], [f"g{i // 3}" for i in range(90)])
    alone = shifts(old, Sample(["a" * 99] * 5, ["new"] * 5), 0.05, largest=3)[0]
    assert not alone.differs
    assert alone.explanation.endswith("so few groups could not show a difference")
    larger = shifts(old, Sample(["a" * 99] * 90, [f"new{i // 3}" for i in range(90)]), 0.05, largest=3)[0]
    assert larger.differs
    assert "few groups" not in larger.explanation


# --- quality


def test_the_levels_of_all_that_is_looked_at_are_the_whole() -> None:
    levels = Levels(0.05)
    assert len(get_args(Aspect)) * levels.shift + 2 * levels.quality == pytest.approx(levels.alpha)


def alarms(
    rng: np.random.Generator, promised: Promise, truth: float, looks: int, level: float, rows: int = 60
) -> int | None:
    before: list[dict[str, betting.Gains]] = []
    for number in range(1, looks + 1):
        outcome = quality(
            evaluation(int(rng.binomial(rows, truth)), rows), promised, level, look=number, earlier=before
        )
        before.append(outcome.gains)
        if outcome.worse:
            return number
    return None


def test_the_best_of_eight_that_stays_as_it_is_is_rarely_called_worse() -> None:
    """Chosen on valid, bounded on test by the gate's bound at a first verdict; then looked at thirty times."""
    rng = np.random.default_rng(3)
    level, false_alarms, by_estimate = Levels(0.05).quality, 0, 0
    rounds = 20
    for _ in range(rounds):
        promised = promise(int(rng.binomial(200, 0.85)), 200, 0.8, 1 - multiplicity.spent_alpha(0.05, 1))
        false_alarms += alarms(rng, promised, 0.85, 30, level) is not None
        best = max(int(rng.binomial(200, 0.85)) for _ in range(8)) / 200
        by_estimate += alarms(rng, replace(promised, floor=best), 0.85, 30, level) is not None
    assert false_alarms <= stats.binom.ppf(0.999, rounds, 0.05)
    assert by_estimate > 6


def test_a_skin_that_has_become_worse_is_seen() -> None:
    rng = np.random.default_rng(4)
    detections = [alarms(rng, promise(180, 200, 0.8), 0.75, 6, Levels(0.05).quality, 150) for _ in range(20)]
    assert sum(detection is not None for detection in detections) >= 19
    assert np.median([detection or 9 for detection in detections]) <= 3


def test_small_looks_add_up() -> None:
    level = Levels(0.05).quality
    single = quality(evaluation(30, 40), promise(180, 200), level)
    assert not single.worse
    pooled = quality(evaluation(30, 40), promise(180, 200), level, earlier=[single.gains] * 9)
    assert pooled.worse
    assert pooled.worse_evidence is not None
    assert pooled.worse_evidence.looks == 10


def test_rows_that_an_earlier_look_had_are_counted_once() -> None:
    after = evaluation(20, 60)
    repeated = quality(after, promise(), 0.01, unseen=[False] * 60)
    assert repeated.gains["promise"] == pytest.approx(np.zeros(8))
    part = quality(after, promise(), 0.01, unseen=[i < 20 for i in range(60)])  # those that are right
    assert (part.gains["promise"] < 0).all()
    assert part.estimate == after.estimate


@pytest.mark.parametrize("weighted", [True, False])
def test_where_texts_recur_an_unchanged_skin_is_not_called_worse(weighted: bool) -> None:
    rng = np.random.default_rng(5)
    runs = [recurring.alarm(rng, 0.95, 0.7, looks=25, calls=80, weighted=weighted) for _ in range(10)]
    by_promise, by_rows_alike = (sum(first is not None for first in firsts) for firsts in zip(*runs, strict=True))
    assert by_promise >= 9 or not weighted
    assert by_rows_alike <= 2
    changed = [recurring.alarm(rng, 0.95, 0.7, looks=25, calls=80, weighted=weighted, drop=0.8)[1] for _ in range(6)]
    assert all(first is not None for first in changed)


def test_a_level_is_spent_once_over_any_mix_of_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bets may err by, by the least evidence that is enough at looks of either sort, and what is spent on the
    bounds of test rows at all looks at which texts recur."""
    level, spent = 0.04, list[float]()

    def floor(_scores: object, _groups: object, alpha: float) -> tuple[float, float]:
        spent.append(alpha / 2)
        return 1.0, 1.0

    monkeypatch.setattr(betting, "mean_bounds", floor)
    enough: list[float] = []
    for alike in (None, ([(1.0, "a")], 0)):
        outcomes = [quality(evaluation(right, 200), promise(180, 200), level, alike=alike) for right in range(100, 180)]
        evidence = [(o.worse_evidence.value, o.worse) for o in outcomes if o.worse_evidence is not None]
        enough.append(min(value for value, worse in evidence if worse))
        assert max(value for value, worse in evidence if not worse) < enough[-1]
    on_bounds = spent[0] * sum(look**-2 for look in range(1, 2000))  # of rows that differ at each look
    assert 1 / min(enough) + on_bounds <= level
    assert 1 / min(enough) > 0.4 * level


def test_looks_of_few_calls_are_held_to_the_rare_texts_once_texts_have_recurred() -> None:
    """One look in four has rare texts only: none that recurs."""
    rng = np.random.default_rng(6)
    options: dict[str, Any] = {"looks": 90, "calls": 2, "weighted": True, "share": 0.5}
    runs = [recurring.alarm(rng, 0.98, 0.3, **options) for _ in range(5)]
    by_promise, by_rows_alike = (sum(first is not None for first in firsts) for firsts in zip(*runs, strict=True))
    assert by_promise >= 4
    assert by_rows_alike <= 1


@pytest.mark.parametrize(
    ("rows", "judged", "recur"),
    [
        ({"a", "b"}, set(), False),
        ({"a", "x"}, set(), True),  # x is the task's
        ({"a", "b"}, {"c", "x"}, True),
        ({"a", "b"}, {"c"}, False),
        ({"a", "b"}, {"b", "c"}, True),
        ({"a", "b", "c"}, {"b", "c"}, False),  # a file that grows
    ],
)
def test_texts_recur_where_the_task_or_another_look_had_them(rows: set[str], judged: set[str], recur: bool) -> None:
    assert texts_recur(rows, judged, {"x", "y"}) is recur


def test_without_rows_alike_nothing_is_worse() -> None:
    assert quality(evaluation(0, 60), promise(), 0.01).worse
    assert not quality(evaluation(0, 60), promise(), 0.01, alike=([], 0)).worse


def test_macro_f1_is_bounded_at_each_look_by_itself() -> None:
    relabeled = [replace(row, target=("no", "yes")[i % 2]) for i, row in enumerate(evaluation(40, 100).rows)]
    answered = tuple(replace(row, prediction=row.target if row.score else "no") for row in relabeled)
    after = replace(evaluation(40, 100), metric="macro_f1", scoring="counts", rows=answered)
    promised = replace(promise(), metric="macro_f1")
    outcome = quality(after, promised, 0.01, look=2)
    assert outcome.bounds is not None
    assert (outcome.worse, outcome.worse_evidence, outcome.gains) == (True, None, {})
    assert not quality(replace(after, estimate=0.9), replace(promised, floor=0.2), 0.01, look=2).worse


def test_too_few_groups_allow_no_bound() -> None:
    outcome = quality(evaluation(80, 100, groups=10), promise(), 0.01)
    assert outcome.bounds is None
    verdict, sentence = decide([], outcome)
    assert verdict == "undecided"
    assert "10 groups are too few" in sentence


def test_another_metric_is_refused() -> None:
    with pytest.raises(UsageError, match="tells of macro_f1"):
        quality(evaluation(80, 100), replace(promise(), metric="macro_f1"), 0.01)


# --- what to do


def shift(differs: bool, evidence: float = 1.0, powerless: bool = False) -> Shift:
    return Shift("inputs", 3.0, BettingEvidence(500.0 if differs else evidence, 1.0, 1), 240.0, "", powerless=powerless)


def measured(right: int, n: int) -> Quality:
    return quality(evaluation(right, n), promise(180, 200), 0.01)


def compared(right: int, n: int) -> Quality:
    """Of a skin that passed by a comparison, so that new rows have no bar."""
    promised = replace(promise(180, 200), target=None, floor=0.85, by_verdict=False)
    outcome = quality(evaluation(right, n), promised, 0.01)
    assert (set(outcome.gains), outcome.below_bar, outcome.bar_evidence) == ({"promise"}, False, None)
    return outcome


@pytest.mark.parametrize(
    ("changes", "of_quality", "verdict", "reason"),
    [
        ([shift(True)], None, "label", "without labels"),
        ([shift(False)], None, "keep", "only labels would tell"),
        ([shift(False), shift(False, 27.4)], None, "undecided", "lean that way in inputs (evidence 27.4 of 240)"),
        ([shift(False, powerless=True)] * 2, None, "undecided", "which so few could not show"),
        ([shift(False, powerless=True), shift(False)], None, "keep", "only labels would tell"),
        ([], None, "undecided", "no labels"),
        ([shift(True)], measured(100, 200), "climb", "significantly below the bar and the promise; new rows differ"),
        ([shift(False)], measured(300, 400), "climb", "significantly below the promise"),
        ([shift(False)], measured(300, 400), "climb", "where the skin's verdict promised 0.85"),
        (
            [shift(True)],
            measured(190, 200),
            "keep",
            "significantly above the bar; new rows differ from old ones in inputs",
        ),
        ([shift(False)], measured(83, 100), "undecided", "rows in all"),
        ([shift(False)], quality(evaluation(83, 100), None, 0.01), "undecided", "no report"),
        ([shift(False)], compared(190, 200), "keep", "on the new rows, where the interval in the skin's report"),
        ([shift(False)], compared(190, 200), "keep", "promised 0.850 and its target was a comparison on the test rows"),
        ([shift(False)], compared(190, 200), "keep", "it is significantly above the promise"),
        ([shift(False)], compared(172, 200), "undecided", "would tell on which side of the promise it is"),
        ([shift(False)], compared(100, 200), "climb", "it is significantly below the promise"),
    ],
)
def test_the_verdict_has_its_reasons(
    changes: list[Shift], of_quality: Quality | None, verdict: str, reason: str
) -> None:
    assert decide(changes, of_quality)[0] == verdict
    assert reason in decide(changes, of_quality)[1]
