"""Drift: do new rows differ from those that a skin was made from, and does it keep on them what it promised?

Inputs by the distance of their features' means, lengths by that of ranks, labels by their shares; every test moves
whole groups between the samples, and their p-values are corrected together (Holm). Quality by the interval of the
difference of two independent estimates. `Levels` says what error each may make, at the j-th look at a skin.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import UsageError
from bedplate.core.progress import Progress
from bedplate.core.statistics import (
    InsufficientGroups,
    TwoSample,
    holm,
    independent_difference,
    mean_distance,
    needed_n,
    share_distance,
    spent_alpha,
    two_sample,
)
from bedplate.core.statistics.two_sample import Between
from bedplate.evaluation.harness import Evaluation

What = Literal["inputs", "length", "labels"]
Verdict = Literal["climb", "label", "keep", "undecided"]
WORDS = 3
"""Words that are named on either side."""


@dataclass(frozen=True)
class Sample:
    """Rows of one side. groups: None where each row stands for itself. labels: those that are right for each row.
    features [m, d]: of the rows numbered in `featured`."""

    texts: Sequence[str]
    groups: Sequence[Hashable] | None
    labels: Sequence[Sequence[str]] | None = None
    features: NDArray[np.float64] | None = None
    featured: Sequence[int] = ()


@dataclass(frozen=True)
class Shift:
    """One comparison of new rows with old ones. value: how far apart inputs are, in units of what chance makes of that;
    mean characters, new minus old; the share of rows that would need another label. p_holm: corrected for all of them.
    words: those that are in more of the new rows, and those in fewer."""

    what: What
    value: float
    p_value: float
    p_holm: float
    differs: bool
    says: str
    words: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


@dataclass(frozen=True)
class Promise:
    """What a skin's own record says of its quality: an estimate on a split with its two-sided interval at `confidence`,
    and the bar that it had to clear."""

    metric: str
    split: str
    estimate: float
    interval: tuple[float, float]
    confidence: float
    n: int
    groups: int
    target: float

    def bounds(self, confidence: float) -> tuple[float, float]:
        """Lower and upper one-sided bounds at another confidence: the interval's halves, widened as a normal's are."""
        from scipy.special import ndtri

        wider = float(ndtri(confidence)) / float(ndtri((1 + self.confidence) / 2))
        low, high = self.interval
        low, high = self.estimate - wider * (self.estimate - low), self.estimate + wider * (high - self.estimate)
        return max(0.0, low), min(1.0, high)


@dataclass(frozen=True)
class Quality:
    """The metric on new rows. bounds: lower and upper, one-sided at `level`; None, with the `reason`, where the rows
    allow none. interval: two-sided at 1 - 2 level, of new minus promised; worse: it lies below zero. needed: rows in
    all that would show on which side of the bar the metric is, if it is what it reads."""

    metric: str
    estimate: float
    level: float
    bounds: tuple[float, float] | None
    reason: str | None
    promise: Promise | None
    interval: tuple[float, float] | None
    needed: int | None

    @property
    def worse(self) -> bool:
        """Whether it was shown to be less than promised."""
        return self.interval is not None and self.interval[1] < 0

    @property
    def below_bar(self) -> bool:
        """Whether it was shown to be under the bar."""
        return self.promise is not None and self.bounds is not None and self.bounds[1] < self.promise.target

    @property
    def above_bar(self) -> bool:
        """Whether it was shown to be over the bar."""
        return self.promise is not None and self.bounds is not None and self.bounds[0] > self.promise.target


@dataclass(frozen=True)
class Levels:
    """What error the `number`-th look at a skin may make: 6α/(π²j²), so that all looks together stay within α. Of
    labelled rows half of it is for shifts, and a quarter each for the promise and for the bar."""

    number: int
    alpha: float
    labelled: bool

    @property
    def spent(self) -> float:
        return spent_alpha(self.alpha, self.number)

    @property
    def shifts(self) -> float:
        return self.spent / 2 if self.labelled else self.spent

    @property
    def quality(self) -> float:
        return self.spent / 4


@dataclass(frozen=True)
class Drift:
    """verdict: climb again, label new rows first, keep the skin, or undecided; `sentence` says why. look: the number of
    this look at the skin, whose error is `spent` of `alpha` for all."""

    verdict: Verdict
    sentence: str
    look: int
    alpha: float
    spent: float
    shifts: tuple[Shift, ...]
    quality: Quality | None
    old_rows: int
    new_rows: int
    notes: tuple[str, ...]
    evaluation: Evaluation | None

    def to_json(self) -> dict[str, Any]:
        """Plain values, the rows of the evaluation among them."""
        values = asdict(self)
        if self.quality is not None:
            values["quality"] |= {name: getattr(self.quality, name) for name in ("worse", "below_bar", "above_bar")}
        return values


# --- inputs and labels


def whitened(vectors: NDArray[np.float64], components: int) -> NDArray[np.float64]:
    """The leading components of vectors [n, d] as features of equal spread [n, components or fewer]. The distance of
    their means is Hotelling's statistic (1931, Annals of Mathematical Statistics 2:360), up to what no permutation
    changes its order by; without equal spread the few directions in which all texts vary would hide the rest."""
    left, size, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    kept = min(components, max(1, len(vectors) // 4), int((size > 1e-9 * max(size[0], 1e-300)).sum()))
    return left[:, :kept] * np.sqrt(len(vectors))


def shifts(old: Sample, new: Sample, level: float, seed: int = 0) -> tuple[Shift, ...]:
    """Every comparison that the samples allow, at `level` together."""
    found = [_length(old, new, level, seed)]
    if old.features is not None and new.features is not None:
        found = [_inputs(old, new, level, seed), *found]
    if old.labels is not None and new.labels is not None:
        found.append(_labels(old.labels, new.labels, _groups(old, new), level, seed))
    corrected = holm([one.p_value for one in found])
    return tuple(replace(one, p_holm=p, differs=p <= level) for one, p in zip(found, corrected, strict=True))


def _inputs(old: Sample, new: Sample, level: float, seed: int) -> Shift:
    """Maximum mean discrepancy of the features' kernel."""
    assert old.features is not None
    assert new.features is not None
    groups = _groups(old, new)
    if groups is not None:
        chosen = [*old.featured, *(len(old.texts) + row for row in new.featured)]
        groups = [groups[row] for row in chosen]
    parts = np.concatenate([old.features, new.features])
    found = _test(parts, len(old.features), groups, mean_distance, level, seed, "inputs")
    times = found.statistic / found.expected if found.expected > 0 else 1.0
    says = f"new inputs lie {times:.1f} times as far from old ones as chance would put them"
    return _shift("inputs", times, found, says, level, _words(old.texts, new.texts))


def _length(old: Sample, new: Sample, level: float, seed: int) -> Shift:
    """Characters, by mean rank (Wilcoxon's statistic)."""
    from scipy.stats import rankdata

    lengths = np.array([len(text) for text in (*old.texts, *new.texts)], dtype=float)
    n = len(old.texts)
    found = _test(np.asarray(rankdata(lengths))[:, None], n, _groups(old, new), mean_distance, level, seed, "length")
    before, after = float(lengths[:n].mean()), float(lengths[n:].mean())
    says = f"a new row has {after:.0f} characters on average, an old one {before:.0f}"
    return _shift("length", after - before, found, says, level)


def _labels(
    old: Sequence[Sequence[str]],
    new: Sequence[Sequence[str]],
    groups: Sequence[Hashable] | None,
    level: float,
    seed: int,
) -> Shift:
    """The share of rows that have each label, by Pearson's statistic."""
    wanted = [set(one) for one in (*old, *new)]
    names = sorted(set[str]().union(*wanted)) or [""]
    marks = np.array([[float(name in one) for name in names] for one in wanted])
    found = _test(marks, len(old), groups, share_distance, level, seed, "labels")
    before, after = marks[: len(old)].mean(0), marks[len(old) :].mean(0)
    most = int(np.abs(after - before).argmax())
    says = f"{names[most]!r} is right for {after[most]:.1%} of new rows, {before[most]:.1%} of old ones"
    return _shift("labels", float(np.abs(after - before).sum() / 2), found, says, level)


def _shift(
    what: What,
    value: float,
    found: TwoSample,
    says: str,
    level: float,
    words: tuple[tuple[str, ...], tuple[str, ...]] = ((), ()),
) -> Shift:
    if found.least > level:
        says += "; so few groups could not show a difference"
    return Shift(what, value, found.p_value, found.p_value, False, says, words)


def _test(
    rows: NDArray[np.float64],
    old: int,
    groups: Sequence[Hashable] | None,
    statistic: Between,
    level: float,
    seed: int,
    what: What,
) -> TwoSample:
    """The first `old` rows against the rest, with so many permutations that the smallest p-value is well below what
    Holm's first step asks for."""
    parts = np.column_stack([rows, np.ones(len(rows))])
    second = np.arange(len(rows)) >= old
    most = max(4_999, round(20 / level))
    with Progress(what, most, "permutations at most") as bar:
        return two_sample(parts, second, groups, statistic, seed=seed, resamples=most, advance=bar.advance)


def _groups(old: Sample, new: Sample) -> list[Hashable] | None:
    """Of all rows; None where each stands for itself. Where one side alone has groups, the other's rows are their
    own."""
    if old.groups is None and new.groups is None:
        return None
    found: list[Hashable] = []
    for name, sample in (("old", old), ("new", new)):
        found += [(name, row) for row in range(len(sample.texts))] if sample.groups is None else sample.groups
    return found


def _words(old: Sequence[str], new: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words in more of the rows than before, and in fewer: those furthest from one share for both, in standard
    errors."""
    from sklearn.feature_extraction.text import CountVectorizer

    found = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]")
    marks: Any = found.fit_transform([*old, *new])
    before, after, both = (np.asarray(p.mean(0)).ravel() for p in (marks[: len(old)], marks[len(old) :], marks))
    error = np.sqrt(np.maximum(both * (1 - both), 0.0) * (1 / len(old) + 1 / len(new)))  # a share of 1 can round up
    away = np.divide(after - before, error, out=np.zeros_like(error), where=error > 0)
    names, order = found.get_feature_names_out(), np.argsort(away)
    came = tuple(str(names[i]) for i in order[::-1][:WORDS] if away[i] > 0)
    return came, tuple(str(names[i]) for i in order[:WORDS] if away[i] < 0)


# --- quality


def quality(after: Evaluation, promise: Promise | None, level: float) -> Quality:
    """The metric on new rows against the promise and the bar, each one-sided at `level`. UsageError where the promise
    is of another metric."""
    if promise is not None and promise.metric != after.metric:
        raise UsageError(
            f"the skin's report tells of {promise.metric}, but the task scores {after.metric}; give the task file that "
            "the skin was made for"
        )
    bounds, reason = None, None
    try:
        low, high = after.bound(1 - level, "lower"), after.bound(1 - level, "upper")
        bounds = min(low, after.estimate), max(high, after.estimate)
    except InsufficientGroups as error:
        reason = error.message
    interval = needed = None
    if promise is not None:
        needed = _needed(after, promise.target, 1 - level)
        if bounds is not None:
            interval = independent_difference(after.estimate, promise.estimate, bounds, promise.bounds(1 - level))
    return Quality(after.metric, after.estimate, level, bounds, reason, promise, interval, needed)


def _needed(after: Evaluation, target: float, confidence: float) -> int | None:
    """Rows that would show on which side of the bar the metric is."""
    estimate = after.estimate
    if estimate < target:
        estimate, target = 1 - estimate, 1 - target
    return needed_n(estimate, target, confidence, deff=max(1.0, after.design_effect), variance=after.row_variance)


# --- what to do


def decide(found: Sequence[Shift], measured: Quality | None) -> tuple[Verdict, str]:
    """The verdict and its sentence. found: nothing, where there are no old rows to compare inputs with."""
    shifted = [one.what for one in found if one.differs]
    if not found:
        differ = "inputs were not compared"
    elif shifted:
        differ = f"new rows differ from old ones in {' and '.join(shifted)}"
    else:
        differ = "new rows were not shown to differ from old ones"
    if measured is None:
        if shifted:
            return "label", f"Label some of the new rows: {differ}, and without labels the quality on them is unknown."
        if not found:
            return "undecided", f"Undecided: {differ}, and the new rows have no labels."
        return "keep", f"Keep the skin: {differ}; only labels would tell whether its answers are still right."
    read = f"{measured.metric} is {measured.estimate:.3f} on the new rows"
    if measured.promise is None:
        return "undecided", f"Undecided: {read}, and the skin carries no report to hold it to; {differ}."
    promised, target = measured.promise.estimate, measured.promise.target
    read = f"{read} where the skin's report says {promised:.3f} and the bar is {target:g}"
    if measured.bounds is None:
        return "undecided", f"Undecided: {read}, but {measured.reason}; {differ}."
    below = [name for name, so in (("bar", measured.below_bar), ("report", measured.worse)) if so]
    if below:
        return "climb", f"Climb again: {read}: it is below the {' and the '.join(below)} beyond chance; {differ}."
    if measured.above_bar:
        return "keep", f"Keep the skin: {read}: it is above the bar beyond chance; {differ}."
    more = "more rows" if measured.needed is None else f"some {measured.needed:,} rows in all, if that is what it is"
    return "undecided", f"Undecided: {read}: to tell on which side of the bar it is takes {more}; {differ}."
