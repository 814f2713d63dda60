"""Shifts of inputs, lengths and labels, false alarms over many looks, how soon a real drop is seen, and verdicts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bedplate.core import statistics as bs
from bedplate.core.errors import UsageError
from bedplate.core.statistics import Evidence
from bedplate.evaluation.drift import Levels, Promise, Quality, Sample, Shift, decide, quality, shifts
from bedplate.evaluation.harness import Evaluation
from bedplate.evaluation.task_row import RowResult


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


def promise(right: int = 90, n: int = 100, target: float = 0.8, confidence: float = 0.97) -> Promise:
    floor = bs.binomial_lower(right, n, confidence)
    interval = bs.binomial_interval(right, n)
    return Promise("accuracy", "test", right / n, interval, n, n, target, floor, confidence, True)


# --- inputs, lengths, labels


def sample(rng: np.random.Generator, groups: int, shift: float = 0.0, name: str = "") -> Sample:
    """Rows in groups that are alike within, by their vectors, lengths and labels."""
    sizes = rng.integers(1, 7, groups)
    codes = np.repeat(np.arange(groups), sizes)
    own = rng.standard_normal((groups, 6))
    vectors = own[codes] + rng.standard_normal((len(codes), 6)) + shift
    texts = ["x" * int(20 + 5 * v + 1) for v in np.abs(vectors[:, 0])]
    labels = [("yes",) if v > 0 else ("no",) for v in vectors[:, 1]]
    return Sample(texts, [f"{name}{code}" for code in codes], labels, vectors, range(len(codes)))


def looked(rng: np.random.Generator, old: Sample, many: list[float], level: float) -> int | None:
    """The first of the looks, each with a shift, that says that anything differs; all with the evidence before them."""
    before: list[dict[str, bs.Gains]] = []
    for number, shift in enumerate(many, 1):
        found = shifts(old, sample(rng, 12, shift, f"{number}:"), level, earlier=before, largest=6)
        before.append({one.what: one.gains for one in found})
        if any(one.differs for one in found):
            return number
    return None


def test_many_looks_keep_their_level_and_see_a_real_shift() -> None:
    rng = np.random.default_rng(1)
    alarms = [looked(rng, sample(rng, 80, name="old"), [0.0] * 8, 0.2 / 3) for _ in range(12)]
    # 12 runs at 20% at most: more than 7 have a chance of 1 in 250
    assert sum(one is not None for one in alarms) <= 7
    seen = [looked(rng, sample(rng, 80, name="old"), [1.5] * 6, 0.05 / 6) for _ in range(6)]
    assert all(one is not None for one in seen)
    late = looked(rng, sample(rng, 80, name="old"), [0.0] * 4 + [1.5] * 6, 0.05 / 6)
    assert late is not None
    assert late > 4


def test_what_is_looked_at_does_not_depend_on_the_new_rows() -> None:
    """Half of the rows at one look and half at the next gain what all gain at once."""
    rng = np.random.default_rng(2)
    old, new = sample(rng, 60, name="old"), sample(rng, 30, 0.5, "new")
    assert new.labels is not None
    whole = {one.what: one.gains for one in shifts(old, new, 0.01, largest=6)}
    assert list(whole) == ["inputs", "length", "labels"]
    assert new.groups is not None
    begin = list(dict.fromkeys(new.groups))[:15]
    parts = [[(group in begin) is half for group in new.groups] for half in (True, False)]
    halves = [shifts(old, replace(new, unseen=part, unjudged=part), 0.01, largest=6) for part in parts]
    for a, b in zip(*halves, strict=True):
        assert a.gains + b.gains == pytest.approx(whole[a.what])
        assert a.value == b.value  # what is told is of all rows


def test_texts_that_come_again_and_again_are_no_change() -> None:
    """Few texts, of which the short ones come most: those that no earlier look had are long, in new rows and in old."""
    rng = np.random.default_rng(7)
    lengths = np.arange(10, 210)
    often = 1 / np.arange(1.0, 201.0)
    alarms = 0
    for _ in range(5):
        old, *months = (rng.choice(lengths, 400, p=often / often.sum()) for _ in range(6))
        before: list[dict[str, bs.Gains]] = []
        seen: set[int] = set()
        differs = False
        for month in months:
            sides: list[Sample] = []
            for one in (old, month):
                texts, labels = ["x" * n for n in one], [("short" if n < 30 else "long",) for n in one]
                new = [n not in seen for n in one]
                sides.append(Sample(texts, None, labels, unseen=new, unjudged=new))
            found = shifts(sides[0], sides[1], 0.05 / 6, earlier=before)
            before.append({one.what: one.gains for one in found})
            seen |= set(month)
            differs |= any(one.differs for one in found)
        alarms += differs
    assert alarms == 0
    had = Sample(["a", "bb"] * 30, None, unseen=[False] * 60)
    assert not shifts(had, had, 0.01)[0].gains.any()
    assert shifts(had, Sample(["ccc"] * 60, None), 0.01)[0].gains.max() <= 0  # nothing is left to compare with


def test_vectors_that_are_all_alike_do_not_differ() -> None:
    same = Sample(["a b"] * 60, None, None, np.ones((60, 5)), range(60))
    assert [(one.what, one.differs) for one in shifts(same, same, 0.05)] == [("inputs", False), ("length", False)]


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
    found = shifts(old, new, 0.01)[0]
    assert found.differs
    assert found.value > 0.3
    assert found.says.startswith("where they differ most, a new input is above ")
    assert " of old ones on average, an old one above " in found.says
    assert [set(words) for words in found.words] == [{"film", "plot", "cast"}, {"phone", "battery", "screen"}]


def test_lengths_and_labels_are_told_as_they_are() -> None:
    old = Sample(["a" * 10] * 50 + ["a" * 9] * 50, None, [("no",)] * 80 + [("yes",)] * 20)
    new = Sample(["a" * 30] * 20 + ["a" * 10] * 20, None, [("no",)] * 8 + [("yes",)] * 31 + [("new",)])
    length, labels = shifts(old, new, 0.05)
    assert (length.value, length.differs, labels.differs) == (10.5, True, True)
    assert length.says == "a new row has 20 characters on average, an old one 10"
    assert labels.says == "'no' is right for 20.0% of new rows, 80.0% of old ones"
    assert labels.value == pytest.approx(0.6)
    assert set(labels.to_json()) == {"what", "value", "evidence", "enough", "p_value", "differs", "says", "words"}


def test_too_few_groups_to_show_anything_are_named() -> None:
    old = Sample(["a" * (9 + i % 3) for i in range(90)], [f"g{i // 3}" for i in range(90)])
    alone = shifts(old, Sample(["a" * 99] * 5, ["new"] * 5), 0.05, largest=3)[0]
    assert not alone.differs
    assert alone.says.endswith("so few groups could not show a difference")
    more = shifts(old, Sample(["a" * 99] * 90, [f"new{i // 3}" for i in range(90)]), 0.05, largest=3)[0]
    assert more.differs
    assert "few groups" not in more.says


# --- quality


def test_the_levels_of_all_that_is_looked_at_are_the_whole() -> None:
    one = Levels(0.05)
    assert 3 * one.shift + 2 * one.quality == pytest.approx(one.alpha)


def alarms(
    rng: np.random.Generator, held: Promise, truth: float, looks: int, level: float, rows: int = 60
) -> int | None:
    before: list[dict[str, bs.Gains]] = []
    for number in range(1, looks + 1):
        found = quality(evaluation(int(rng.binomial(rows, truth)), rows), held, level, look=number, earlier=before)
        before.append(found.gains)
        if found.worse:
            return number
    return None


def test_the_best_of_eight_that_stays_as_it_is_is_rarely_called_worse() -> None:
    """Chosen on valid, bounded on test by the gate's bound at a first verdict; then looked at thirty times."""
    rng = np.random.default_rng(3)
    level, found, by_estimate = Levels(0.05).quality, 0, 0
    for _ in range(30):
        held = promise(int(rng.binomial(200, 0.85)), 200, 0.8, 1 - bs.spent_alpha(0.05, 1))
        found += alarms(rng, held, 0.85, 30, level) is not None
        best = max(int(rng.binomial(200, 0.85)) for _ in range(8)) / 200
        by_estimate += alarms(rng, replace(held, floor=best), 0.85, 30, level) is not None
    assert found <= stats.binom.ppf(0.999, 30, 0.05)
    assert by_estimate > 9


def test_a_skin_that_has_become_worse_is_seen() -> None:
    rng = np.random.default_rng(4)
    found = [alarms(rng, promise(180, 200, 0.8), 0.75, 6, Levels(0.05).quality, 150) for _ in range(20)]
    assert sum(one is not None for one in found) >= 19
    assert np.median([one or 9 for one in found]) <= 3


def test_small_looks_add_up() -> None:
    level = Levels(0.05).quality
    one = quality(evaluation(30, 40), promise(180, 200), level)
    assert not one.worse
    many = quality(evaluation(30, 40), promise(180, 200), level, earlier=[one.gains] * 9)
    assert many.worse
    assert many.worse_evidence is not None
    assert many.worse_evidence.looks == 10


def test_rows_that_an_earlier_look_had_are_counted_once() -> None:
    after = evaluation(20, 60)
    again = quality(after, promise(), 0.01, unseen=[False] * 60)
    assert again.gains["promise"] == pytest.approx(np.zeros(8))
    part = quality(after, promise(), 0.01, unseen=[i < 20 for i in range(60)])  # those that are right
    assert (part.gains["promise"] < 0).all()
    assert part.estimate == after.estimate


def test_macro_f1_is_bounded_at_each_look_by_itself() -> None:
    made = [replace(row, target=("no", "yes")[i % 2]) for i, row in enumerate(evaluation(40, 100).rows)]
    answered = tuple(replace(row, prediction=row.target if row.score else "no") for row in made)
    after = replace(evaluation(40, 100), metric="macro_f1", scoring="counts", rows=answered)
    held = replace(promise(), metric="macro_f1")
    found = quality(after, held, 0.01, look=2)
    assert found.bounds is not None
    assert (found.worse, found.worse_evidence, found.gains) == (True, None, {})
    assert not quality(replace(after, estimate=0.9), replace(held, floor=0.2), 0.01, look=2).worse


def test_too_few_groups_allow_no_bound() -> None:
    found = quality(evaluation(80, 100, groups=10), promise(), 0.01)
    assert found.bounds is None
    verdict, sentence = decide([], found)
    assert verdict == "undecided"
    assert "10 groups are too few" in sentence


def test_another_metric_is_refused() -> None:
    with pytest.raises(UsageError, match="tells of macro_f1"):
        quality(evaluation(80, 100), replace(promise(), metric="macro_f1"), 0.01)


# --- what to do


def shift(differs: bool) -> Shift:
    return Shift("inputs", 3.0, Evidence(500.0 if differs else 1.0, 1.0, 1), 240.0, "")


def measured(right: int, n: int) -> Quality:
    return quality(evaluation(right, n), promise(180, 200), 0.01)


def compared(right: int, n: int) -> Quality:
    """Of a skin that passed by a comparison, so that new rows have no bar."""
    held = replace(promise(180, 200), target=None, floor=0.85, by_verdict=False)
    found = quality(evaluation(right, n), held, 0.01)
    assert (set(found.gains), found.below_bar, found.bar_evidence) == ({"promise"}, False, None)
    return found


@pytest.mark.parametrize(
    ("found", "of_quality", "verdict", "says"),
    [
        ([shift(True)], None, "label", "without labels"),
        ([shift(False)], None, "keep", "only labels would tell"),
        ([], None, "undecided", "no labels"),
        ([shift(True)], measured(100, 200), "climb", "below the bar and the promise beyond chance; new rows differ"),
        ([shift(False)], measured(300, 400), "climb", "below the promise beyond chance"),
        ([shift(False)], measured(300, 400), "climb", "where the skin's verdict promises 0.85"),
        (
            [shift(True)],
            measured(190, 200),
            "keep",
            "above the bar beyond chance; new rows differ from old ones in inputs",
        ),
        ([shift(False)], measured(83, 100), "undecided", "rows in all"),
        ([shift(False)], quality(evaluation(83, 100), None, 0.01), "undecided", "no report"),
        ([shift(False)], compared(190, 200), "keep", "on the new rows where the interval in the skin's report"),
        ([shift(False)], compared(190, 200), "keep", "promises 0.850 and its bar was a comparison on the test rows"),
        ([shift(False)], compared(190, 200), "keep", "it is above the promise beyond chance"),
        ([shift(False)], compared(172, 200), "undecided", "on which side of the promise it is takes"),
        ([shift(False)], compared(100, 200), "climb", "it is below the promise beyond chance"),
    ],
)
def test_the_verdict_has_its_reasons(found: list[Shift], of_quality: Quality | None, verdict: str, says: str) -> None:
    assert decide(found, of_quality)[0] == verdict
    assert says in decide(found, of_quality)[1]
