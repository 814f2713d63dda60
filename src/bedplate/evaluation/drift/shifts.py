"""Tests whether inputs, lengths and labels of new rows differ from those of the rows that a skin was made from.

The old rows stay as they are: half of them says what is looked at (directions in which their vectors vary, ranks),
the others how it is on average, with bounds that are paid for once. New rows are then bet on to lie outside of these
bounds, at every look anew and all looks together (`core.statistics.betting`), whole groups at a time.

A row counts once, and is known by its text. Texts that come often are therefore missing from later looks, and those
that are left are other ones than the old rows have: so the old rows are then taken without these texts as well.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bedplate.core.statistics.betting import BettingEvidence, Gains, evidence, gains_apart, mean_bounds
from bedplate.core.statistics.multiplicity import spent_alpha
from bedplate.data.splits import SplitRecord, subsample

Aspect = Literal["inputs", "length", "labels"]
COMPONENTS = 8
"""Directions in which the old rows' vectors vary that are looked at, beside their mean and what is left."""
WORDS = 3
"""Words that are named on either side."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Rows of one side. groups: None where each row stands for itself. labels: those that are right for each row.
    vectors [m, d]: of the rows numbered in `embedded`. unseen: the rows whose text no earlier look had, unjudged: that
    none had with its target; None for all."""

    texts: Sequence[str]
    groups: Sequence[Hashable] | None
    labels: Sequence[Sequence[str]] | None = None
    vectors: Floats | None = None
    embedded: Sequence[int] = ()
    unseen: Sequence[bool] | None = None
    unjudged: Sequence[bool] | None = None

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
    fewer. gains: what the bets of this look alone gained."""

    aspect: Aspect
    value: float
    evidence: BettingEvidence
    enough: float
    explanation: str
    words: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    gains: Gains = field(default_factory=lambda: np.zeros((0, 0)), repr=False, compare=False)

    @property
    def differs(self) -> bool:
        return self.evidence.value >= self.enough

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the bets."""
        plain = {"what": self.aspect, "value": self.value, "evidence": self.evidence.value, "enough": self.enough}
        return {
            **plain,
            "p_value": self.evidence.p_value,
            "differs": self.differs,
            "says": self.explanation,
            "words": self.words,
        }


def shifts(
    old: Sample,
    new: Sample,
    level: float,
    *,
    earlier: Sequence[dict[str, Gains]] = (),
    largest: int = 1,
    seed: int = 0,
) -> tuple[Shift, ...]:
    """Every comparison that the samples allow, each with an error of `level` over all looks.

    earlier: what earlier looks gained, by what was looked at. largest: rows of a group that are bet on at most.
    """
    looks = _Looks(level, earlier, largest)
    comparisons = [_length(old, new, looks, seed)]
    if old.vectors is not None and new.vectors is not None:
        comparisons = [_inputs(old, new, looks, seed), *comparisons]
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
        level = spent_alpha(self.level / 2, look) / old.shape[1]
        bounds = [mean_bounds(column, old_groups, level) if before else (0.0, 1.0) for column in old[before].T]
        new_gains = gains_apart(new[after], groups, bounds, self.largest)
        looked = [
            earlier_gains[aspect]
            for earlier_gains in self.earlier
            if aspect in earlier_gains and earlier_gains[aspect].shape == new_gains.shape
        ]
        sure = [
            gains_apart(np.full((len(after), 1), end), groups, [bound], self.largest)
            for bound in bounds
            for end in (0, 1)
        ]
        max_evidence = max(evidence([bet]).value for bet in sure) / old.shape[1]
        caveat = "; so few groups could not show a difference" if not looked and max_evidence < self.enough else ""
        return evidence([*looked, new_gains]), new_gains, caveat

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


def _inputs(old: Sample, new: Sample, looks: _Looks, seed: int) -> Shift:
    """Ranks along the leading directions of the old vectors and along their mean, of the distance from that, and of
    what lies outside of all these directions."""
    assert old.vectors is not None
    assert new.vectors is not None
    learned, reference, compared = parts(old.groups_of(old.embedded), len(old.embedded), seed)
    made_of = old.vectors[learned]
    mean = made_of.mean(0)
    _, size, directions = np.linalg.svd(made_of - mean, full_matrices=False)
    component_count = int((size[:COMPONENTS] > 1e-9 * max(float(size[0]) if len(size) else 0.0, 1e-300)).sum())

    def marks(vectors: Floats) -> Floats:
        centered = vectors - mean
        projections = centered @ directions[:component_count].T
        residuals = np.linalg.norm(centered - projections @ directions[:component_count], axis=1)
        return np.column_stack([projections, vectors @ mean, np.linalg.norm(centered, axis=1), residuals])

    ranked, before, after = (
        marks(sample_vectors) for sample_vectors in (old.vectors[reference], old.vectors[compared], new.vectors)
    )
    before, after = (
        np.column_stack([_ranks(a, v) for a, v in zip(ranked.T, m.T, strict=True)]) for m in (before, after)
    )
    rows = [old.embedded[place] for place in compared], list(new.embedded)
    shift_evidence, gained, caveat = looks.against("inputs", before, after, (old, new), rows)
    rank_shift = after.mean(0) - before.mean(0)
    widest = int(np.abs(rank_shift).argmax())
    explanation = (
        f"where they differ most, a new input is above {after[:, widest].mean():.0%} of old ones on average, an "
        f"old one above {before[:, widest].mean():.0%}{caveat}"
    )
    words = _words(old.texts, new.texts) if shift_evidence.value >= looks.enough else ((), ())
    return Shift("inputs", float(np.abs(rank_shift[widest])), shift_evidence, looks.enough, explanation, words, gained)


def _length(old: Sample, new: Sample, looks: _Looks, seed: int) -> Shift:
    """Characters, by rank."""
    learned, reference, compared = parts(old.groups, len(old.texts), seed)
    compared = [*learned, *compared]  # there is nothing to learn
    before, after = (np.array([len(text) for text in sample.texts], dtype=float) for sample in (old, new))
    was, new_ranks = (_ranks(before[reference], lengths)[:, None] for lengths in (before[compared], after))
    shift_evidence, gained, caveat = looks.against(
        "length", was, new_ranks, (old, new), (compared, list(range(len(after))))
    )
    explanation = f"a new row has {after.mean():.0f} characters on average, an old one {before.mean():.0f}{caveat}"
    return Shift("length", float(after.mean() - before.mean()), shift_evidence, looks.enough, explanation, gains=gained)


def _labels(old: Sample, new: Sample, looks: _Looks) -> Shift:
    """The share of rows that have each label of the old rows, or another."""
    assert old.labels is not None
    assert new.labels is not None
    names = sorted(set[str]().union(*map(set, old.labels)))

    def marks(rows: Sequence[Sequence[str]]) -> Floats:
        return np.array(
            [[*(name in row for name in names), any(label not in names for label in row)] for row in rows], float
        )

    before, after = marks(old.labels), marks(new.labels)
    rows = list(range(len(old.texts))), list(range(len(new.texts)))
    shift_evidence, gained, caveat = looks.against("labels", before, after, (old, new), rows)
    share_shift = after.mean(0) - before.mean(0)
    widest = int(np.abs(share_shift).argmax())
    name = repr(names[widest]) if widest < len(names) else "another label"
    new_share, old_share = after[:, widest].mean(), before[:, widest].mean()
    explanation = f"{name} is right for {new_share:.1%} of new rows, {old_share:.1%} of old ones{caveat}"
    return Shift(
        "labels", float(np.abs(share_shift).sum() / 2), shift_evidence, looks.enough, explanation, gains=gained
    )


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
