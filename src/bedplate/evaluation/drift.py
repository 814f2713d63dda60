"""Drift: whether new rows differ from those a skin was made from, whether it keeps its promised quality on them, and
what to do: climb again, label some of them first, keep the skin, or undecided.

The old rows stay as they are: half of them says what is looked at (directions in which their vectors vary, ranks),
the others how it is on average, with bounds that are paid for once. New rows are then bet on to lie outside of these
bounds, at every look anew and all looks together (`core.statistics.betting`), whole groups at a time. A row counts
once, and is known by its text. Texts that come often are therefore missing from later looks, and those that are left
are other ones than the old rows have: so the old rows are then taken without these texts as well.

The metric is tested against the bound in the skin's report and against its bar. The promise is the bound that the
verdict showed, not the estimate: that was the best of several, and reads high. A mean of row scores is bet on to have
fallen below, over all looks; other metrics are bounded at each look by itself, the j-th with 6/(π²j²) of the error.

Where texts recur, the new rows that are judged are those whose text came in neither the task's data nor an earlier
look. They are to the traffic what texts are that came once in the data (Good 1953, Biometrika 40:237): nothing is
called worse that is not worse than the skin was on those of the test rows. Once texts have recurred, a look in which
none does by chance is one at rarer texts as well.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import UsageError
from bedplate.core.statistics import betting, multiplicity
from bedplate.core.statistics.betting import BettingEvidence, Gains
from bedplate.core.statistics.unequal import InsufficientGroups
from bedplate.data.splits import SplitRecord, subsample
from bedplate.evaluation.evaluated import Evaluation

Aspect = Literal["inputs", "words", "length", "labels"]
"""Inputs are compared by what the base makes of them and, beside it, by the words in them: of a base that was made for
other text the vectors of two topics may be all but alike."""
COMPONENTS = 8
"""Directions in which the old rows' vectors vary that are looked at, beside their mean and what is left."""
WORDS = 3
"""Words that are named on either side."""
RECURRING_SHARE = 0.25
"""Of the error of a claim over all looks, what is for the bounds of test rows where texts recur; bets have the rest at
every look. A quarter takes 4/3 of the evidence; the first bound is then 2.9 standard errors off (a half: 2.7)."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Rows of one side. groups: None where each row stands for itself. labels: those that are right for each row.
    vectors, word_vectors [m, d]: of the rows numbered in `embedded`. unseen: the rows whose text no earlier look had,
    unjudged: that none had with its target; None for all."""

    texts: Sequence[str]
    groups: Sequence[Hashable] | None
    labels: Sequence[Sequence[str]] | None = None
    vectors: Floats | None = None
    embedded: Sequence[int] = ()
    unseen: Sequence[bool] | None = None
    unjudged: Sequence[bool] | None = None
    word_vectors: Floats | None = None

    def groups_of(self, rows: Sequence[int]) -> list[Hashable] | None:
        return None if self.groups is None else [self.groups[row] for row in rows]

    def fresh(self, aspect: Aspect, rows: Sequence[int]) -> list[int]:
        """Places in `rows` of those that count at this look."""
        marks = self.unjudged if aspect == "labels" else self.unseen
        return [place for place, row in enumerate(rows) if marks is None or marks[row]]


@dataclass(frozen=True)
class Shift:
    """One comparison of new rows with old ones. value: how far the mean rank is away where it is furthest; mean
    characters, new minus old; the share of rows that would need another label. evidence: of all looks that it differs;
    enough: what is needed to say so. words: where inputs differ, those that are in more of the new rows, and those in
    fewer. gains: what the bets of this look alone gained. powerless: whether rows of so few groups could not show a
    difference, whatever they hold."""

    aspect: Aspect
    value: float
    evidence: BettingEvidence
    enough: float
    explanation: str
    words: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    gains: Gains = field(default_factory=lambda: np.zeros((0, 0)), repr=False, compare=False)
    powerless: bool = False

    @property
    def differs(self) -> bool:
        return self.evidence.value >= self.enough

    @property
    def may_differ(self) -> bool:
        """Whether as many rows again would show it, at the pace of these: evidence grows by a factor with each row."""
        return self.evidence.value >= math.sqrt(self.enough)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the bets."""
        plain = {"what": self.aspect, "value": self.value, "evidence": self.evidence.value, "enough": self.enough}
        p_value, differs = self.evidence.p_value, self.differs
        return {**plain, "p_value": p_value, "differs": differs, "says": self.explanation, "words": self.words}


def shifts(
    old: Sample, new: Sample, level: float, *, earlier: Sequence[dict[str, Gains]] = (), largest: int = 1, seed: int = 0
) -> tuple[Shift, ...]:
    """Every comparison that the samples allow, each with an error of `level` over all looks. earlier: what earlier
    looks gained, by what was looked at. largest: rows of a group that are bet on at most."""
    looks = _Looks(level, earlier, largest)
    vectors: dict[Aspect, tuple[Floats | None, Floats | None]] = {
        "inputs": (old.vectors, new.vectors),
        "words": (old.word_vectors, new.word_vectors),
    }
    comparisons = [
        _vectors(aspect, was, now, (old, new), looks, seed)
        for aspect, (was, now) in vectors.items()
        if was is not None and now is not None
    ]
    comparisons.append(_length(old, new, looks, seed))
    if old.labels is not None and new.labels is not None:
        comparisons.append(_labels(old, new, looks))
    return tuple(comparisons)


@dataclass(frozen=True)
class _Looks:
    level: float
    earlier: Sequence[dict[str, Gains]]
    largest: int

    def against(
        self,
        aspect: Aspect,
        old: Floats,
        new: Floats,
        samples: tuple[Sample, Sample],
        rows: tuple[list[int], list[int]],
    ) -> tuple[BettingEvidence, Gains, str]:
        """The bets on new marks [m, d] against the means of old ones [n, d], each of the rows of its sample that are
        numbered so; and what is to be said of them. Half of the level is for the old means' bounds: those of all old
        rows have the first look's part of it, those without the texts of earlier looks the part of this look."""
        before, after = (sample.fresh(aspect, numbers) for sample, numbers in zip(samples, rows, strict=True))
        old_groups, groups = (
            sample.groups_of([numbers[place] for place in fresh_places])
            for sample, numbers, fresh_places in zip(samples, rows, (before, after), strict=True)
        )
        look = 1 if len(before) == len(old) else len(self.earlier) + 1
        level = multiplicity.spent_alpha(self.level / 2, look) / old.shape[1]
        means = (betting.mean_bounds(column, old_groups, level) for column in old[before].T)
        bounds = list(means) if before else [(0.0, 1.0)] * old.shape[1]
        new_gains = betting.gains_apart(new[after], groups, bounds, self.largest)
        looked = [look[aspect] for look in self.earlier if aspect in look and look[aspect].shape == new_gains.shape]
        extremes = [(np.full((len(after), 1), end), [bound]) for bound in bounds for end in (0, 1)]
        sure = (betting.gains_apart(marks, groups, bound, self.largest) for marks, bound in extremes)
        max_evidence = max(betting.evidence([bet]).value for bet in sure) / old.shape[1]
        caveat = "; so few groups could not show a difference" if not looked and max_evidence < self.enough else ""
        return betting.evidence([*looked, new_gains]), new_gains, caveat

    @property
    def enough(self) -> float:
        return 2 / self.level


class Parts(NamedTuple):
    """Places of old rows, whole groups in one part: a quarter that directions and words are learned from, a quarter
    that ranks are taken among, and the others, which say where the old ones stand on average."""

    learned: list[int]
    reference: list[int]
    compared: list[int]


def parts(groups: Sequence[Hashable] | None, count: int, seed: int) -> Parts:
    """Divides `count` old rows. Whatever new rows are looked at by is learned from the first two parts, so that the
    others are to it what new ones are."""
    names = [str(i) for i in range(count)] if groups is None else [repr(group) for group in groups]
    remaining = [SplitRecord(str(i), f"{i:09d}", "", name) for i, name in enumerate(names)]
    drawn: list[list[int]] = []
    for number in range(2):
        quarter = max(1, count // 4)
        # where groups are so large that none fits, rows are taken: the bounds of the means are the others' alone
        chosen = {int(record.id) for record in subsample(remaining, quarter, seed + number) or remaining[:quarter]}
        remaining = [record for record in remaining if int(record.id) not in chosen]
        drawn.append(sorted(chosen))
    return Parts(drawn[0], drawn[1], [int(record.id) for record in remaining])


def _ranks(reference: Floats, values: Floats) -> Floats:
    """The share of values in `reference` [n] that is smaller, with half of those that are equal."""
    ordered = np.sort(reference)
    below, upto = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return (below + upto) / (2 * len(ordered))


def _vectors(
    aspect: Aspect, old_vectors: Floats, new_vectors: Floats, samples: tuple[Sample, Sample], looks: _Looks, seed: int
) -> Shift:
    """Ranks along the leading directions of the old vectors and along their mean, of the distance from that, and of
    what lies outside of all these directions."""
    old, new = samples
    learned, reference, compared = parts(old.groups_of(old.embedded), len(old.embedded), seed)
    made_of = old_vectors[learned]
    mean = made_of.mean(0)
    _, size, directions = np.linalg.svd(made_of - mean, full_matrices=False)
    component_count = int((size[:COMPONENTS] > 1e-9 * max(float(size[0]) if len(size) else 0.0, 1e-300)).sum())

    def marks(vectors: Floats) -> Floats:
        centered = vectors - mean
        projections = centered @ directions[:component_count].T
        residuals = np.linalg.norm(centered - projections @ directions[:component_count], axis=1)
        return np.column_stack([projections, vectors @ mean, np.linalg.norm(centered, axis=1), residuals])

    ranked = marks(old_vectors[reference])
    before, after = (
        np.column_stack([_ranks(a, v) for a, v in zip(ranked.T, marks(vectors).T, strict=True)])
        for vectors in (old_vectors[compared], new_vectors)
    )
    rows = [old.embedded[place] for place in compared], list(new.embedded)
    shift_evidence, gained, caveat = looks.against(aspect, before, after, samples, rows)
    rank_shift = after.mean(0) - before.mean(0)
    widest = int(np.abs(rank_shift).argmax())
    explanation = (
        f"on the measure that moved most, a new input ranks above {after[:, widest].mean():.0%} of the old ones on "
        f"average, an old input above {before[:, widest].mean():.0%}{caveat}"
    )
    words = _words(old.texts, new.texts) if shift_evidence.value >= looks.enough else ((), ())
    value = float(np.abs(rank_shift[widest]))
    return Shift(aspect, value, shift_evidence, looks.enough, explanation, words, gained, powerless=bool(caveat))


def _length(old: Sample, new: Sample, looks: _Looks, seed: int) -> Shift:
    """Characters, by rank."""
    learned, reference, compared = parts(old.groups, len(old.texts), seed)
    compared = [*learned, *compared]  # there is nothing to learn
    before, after = (np.array([len(text) for text in sample.texts], dtype=float) for sample in (old, new))
    was, new_ranks = (_ranks(before[reference], lengths)[:, None] for lengths in (before[compared], after))
    rows = compared, list(range(len(after)))
    shift_evidence, gained, caveat = looks.against("length", was, new_ranks, (old, new), rows)
    explanation = f"a new row has {after.mean():.0f} characters on average, an old one {before.mean():.0f}{caveat}"
    value, powerless = float(after.mean() - before.mean()), bool(caveat)
    return Shift("length", value, shift_evidence, looks.enough, explanation, gains=gained, powerless=powerless)


def _labels(old: Sample, new: Sample, looks: _Looks) -> Shift:
    """The share of rows that have each label of the old rows, or another."""
    assert old.labels is not None
    assert new.labels is not None
    names = sorted(set[str]().union(*map(set, old.labels)))

    def marks(rows: Sequence[Sequence[str]]) -> Floats:
        other = (any(label not in names for label in row) for row in rows)
        return np.array([[*(name in row for name in names), odd] for row, odd in zip(rows, other, strict=True)], float)

    before, after = marks(old.labels), marks(new.labels)
    rows = list(range(len(old.texts))), list(range(len(new.texts)))
    shift_evidence, gained, caveat = looks.against("labels", before, after, (old, new), rows)
    share_shift = after.mean(0) - before.mean(0)
    widest = int(np.abs(share_shift).argmax())
    name = repr(names[widest]) if widest < len(names) else "another label"
    new_share, old_share = after[:, widest].mean(), before[:, widest].mean()
    explanation = f"{name} is right for {new_share:.1%} of new rows, {old_share:.1%} of old ones{caveat}"
    value = float(np.abs(share_shift).sum() / 2)
    return Shift("labels", value, shift_evidence, looks.enough, explanation, gains=gained)


def _words(old: Sequence[str], new: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words in more of the rows than before, and in fewer: those furthest from one share for both, in standard
    errors."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]")
    marks: Any = vectorizer.fit_transform([*old, *new])
    before, after, pooled = (np.asarray(p.mean(0)).ravel() for p in (marks[: len(old)], marks[len(old) :], marks))
    error = np.sqrt(np.maximum(pooled * (1 - pooled), 0.0) * (1 / len(old) + 1 / len(new)))  # a share of 1 can round up
    z_scores = np.divide(after - before, error, out=np.zeros_like(error), where=error > 0)
    names, order = vectorizer.get_feature_names_out(), np.argsort(z_scores)
    rising = tuple(str(names[i]) for i in order[::-1][:WORDS] if z_scores[i] > 0)
    return rising, tuple(str(names[i]) for i in order[:WORDS] if z_scores[i] < 0)


@dataclass(frozen=True)
class Promise:
    """What a skin's own record says of its quality: an estimate on a split with its two-sided 95% interval, the bar
    that it had to clear, and what it promises. floor: the verdict's own lower bound, at `confidence`; where no verdict
    gave one, the lower end of the interval. target: None where the skin was compared with another system on the test
    rows alone: what that scored there is no bar for other rows."""

    metric: str
    split: str
    estimate: float
    interval: tuple[float, float]
    n: int
    groups: int
    target: float | None
    floor: float
    confidence: float
    by_verdict: bool

    @property
    def bar(self) -> float:
        """What a skin is kept for: without a target, that it is what was promised."""
        return self.floor if self.target is None else self.target


@dataclass(frozen=True)
class Quality:
    """The metric on new rows. bounds: lower and upper of this look's rows by themselves, each one-sided at `level`;
    None, with the `reason`, where the rows allow none. worse, below_bar: whether all looks show it to be less than
    promised, under the bar; with their evidence, of a mean of rows (the others' is in the bounds). needed: rows in all
    that would show on which side of the bar the metric is, if it is what it reads. gains: what the bets of this look
    gained."""

    metric: str
    estimate: float
    level: float
    bounds: tuple[float, float] | None
    reason: str | None
    promise: Promise | None
    worse: bool
    below_bar: bool
    worse_evidence: BettingEvidence | None
    bar_evidence: BettingEvidence | None
    needed: int | None
    gains: dict[str, Gains]

    @property
    def enough(self) -> float:
        """The evidence that shows it to be less than promised, or under the bar."""
        return 1 / ((1 - RECURRING_SHARE) * self.level)

    @property
    def above_bar(self) -> bool:
        """Whether this look shows it to be over the bar."""
        return self.promise is not None and self.bounds is not None and self.bounds[0] > self.promise.bar

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the bets."""
        plain = {key: value for key, value in vars(self).items() if key != "gains"}
        for name in ("promise", "worse_evidence", "bar_evidence"):
            plain[name] = None if plain[name] is None else asdict(plain[name])
        return {**plain, "above_bar": self.above_bar}


def texts_recur(rows: Set[object], judged: Set[object], task_rows: Set[object]) -> bool:
    """Whether texts come again: one of a look (`rows`), or of those that earlier looks `judged`, is among the task's,
    or the look has some of the judged ones. A file that grows has all of these."""
    return not (task_rows.isdisjoint(rows | judged) and (judged <= rows or judged.isdisjoint(rows)))


def quality(
    after: Evaluation,
    promise: Promise | None,
    level: float,
    *,
    look: int = 1,
    unseen: Sequence[bool] | None = None,
    earlier: Sequence[dict[str, Gains]] = (),
    largest: int = 1,
    alike: tuple[Sequence[tuple[float, str]], int] | None = None,
) -> Quality:
    """The metric on new rows against the promise and the bar, each with an error of `level` over all looks. unseen: the
    rows that no earlier look had; by default all. earlier: what earlier looks gained. largest: rows of a group that are
    bet on at most. alike: where texts recur, scores and groups of the test rows that new ones are like, and how many
    more there were before earlier looks; None where none do. UsageError where the promise is of another metric."""
    if promise is not None and promise.metric != after.metric:
        raise UsageError(
            f"the skin's report tells of {promise.metric}, but the task scores {after.metric}; give the task file that "
            "the skin was made for"
        )
    bounds, reason = None, None
    try:
        bounds = _bounds(after, level)
    except InsufficientGroups as error:
        reason = error.message
    plain = Quality(after.scored_as, after.estimate, level, bounds, reason, None, False, False, None, None, None, {})
    if promise is None:
        return plain
    floors = {"promise": promise.floor, "bar": promise.target}
    if alike is not None:
        rows, left_out = alike  # the same rows are bounded, and paid for, once
        mean = _lowest_mean(after, rows, multiplicity.spent_alpha(RECURRING_SHARE * level, min(look, 1 + left_out)))
        floors = {name: None if floor is None else min(floor, mean) for name, floor in floors.items()}
    floors = {name: floor for name, floor in floors.items() if floor is not None}
    if after.scoring == "counts":
        at = None if bounds is None else _bounds(after, multiplicity.spent_alpha(level, look))[1]
        below = {name: at is not None and at < floor for name, floor in floors.items()}
        evidence_by_floor: dict[str, BettingEvidence | None] = dict.fromkeys(floors)
        gained: dict[str, Gains] = {}
    else:
        gained = {name: _gains(after, floor, unseen, largest) for name, floor in floors.items()}
        bets = {name: [*(look[name] for look in earlier if name in look), gained[name]] for name in floors}
        evidence_by_floor = {name: betting.evidence(bets[name]) for name in floors}
        below = {name: bet is not None and bet.value >= plain.enough for name, bet in evidence_by_floor.items()}
    return replace(
        plain,
        promise=promise,
        worse=below["promise"],
        below_bar=below.get("bar", False),
        worse_evidence=evidence_by_floor["promise"],
        bar_evidence=evidence_by_floor.get("bar"),
        needed=_needed(after, promise.bar, 1 - level),
        gains=gained,
    )


def _lowest_mean(after: Evaluation, alike: Sequence[tuple[float, str]], level: float) -> float:
    """The lower bound of the mean score where test rows come from; 0 for a metric that is no mean of all rows."""
    if not alike or after.scoring in ("counts", "answered"):
        return 0.0
    scores, groups = zip(*alike, strict=True)
    return betting.mean_bounds(scores, groups, 2 * level)[0]


def _bounds(after: Evaluation, level: float) -> tuple[float, float]:
    low, high = after.bound(1 - level, "lower"), after.bound(1 - level, "upper")
    return min(low, after.estimate), max(high, after.estimate)


def _gains(after: Evaluation, floor: float, unseen: Sequence[bool] | None, largest: int) -> Gains:
    """Gains of bets on the rows that the metric is a mean of: all, or those that were answered."""
    counted = np.ones(after.n, dtype=bool) if unseen is None else np.asarray(unseen, dtype=bool)
    row_indices = after.judged_rows[counted[after.judged_rows]]
    rows = [after.rows[row] for row in row_indices.tolist()]
    groups = [row.group for row in rows] if after.groups < after.n else None
    return betting.gains([row.score for row in rows], groups, floor, largest)


def _needed(after: Evaluation, target: float, confidence: float) -> int | None:
    """Rows that would show on which side of the bar the metric is."""
    estimate, deff = after.estimate, max(1.0, after.design_effect)
    if estimate < target:
        estimate, target = 1 - estimate, 1 - target
    return multiplicity.needed_n(estimate, target, confidence, deff=deff, variance=after.row_variance)


@dataclass(frozen=True)
class Levels:
    """What error all looks at a skin together may make, `alpha`: half of it for inputs, words, length and labels in
    equal parts, a quarter each for the promise and for the bar."""

    alpha: float

    @property
    def shift(self) -> float:
        return self.alpha / 8

    @property
    def quality(self) -> float:
        return self.alpha / 4
