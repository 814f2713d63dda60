"""Requirements of a target in addition to its bar (other metrics, slices, coverage, calibration, differences from a
reference), and the estimates with bounds that they are tested on. All values are scores: higher is better.

A nominee must meet all of them, so each is tested at the nominee's own level without correction: the probability of any
false claim is no larger than that of one (intersection-union, Berger 1982, Technometrics 24:295). Over nominees that
level is Holm's, which the bar shares. That a requirement is *broken* is one claim of several, so the requirements, the
bar, guards and limits share the error (Bonferroni).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from bedplate.adaptation.context.outcome import Resting
from bedplate.adaptation.task.target_spec import CALIBRATION, COVERAGE, RequirementSpec, TargetSpec
from bedplate.core.display import confidence_text
from bedplate.core.statistics.multiplicity import needed_n, simultaneous
from bedplate.core.statistics.noninferiority import Drop
from bedplate.core.statistics.paired import independent_difference
from bedplate.core.statistics.proportions import Side
from bedplate.core.statistics.unequal import MINIMUM_GROUPS, InsufficientGroups, worth
from bedplate.evaluation import slices
from bedplate.evaluation.costs import PLAIN, Scale
from bedplate.evaluation.evaluated import Evaluation, drop_between
from bedplate.evaluation.grading import GradedRow
from bedplate.evaluation.task import LABEL
from bedplate.report.schema_parts import Requirement

POWER = 0.8


class MetricEstimate(Protocol):
    """An estimate with its one-sided bounds (InsufficientGroups where there are none), and the rows it is based on."""

    @property
    def estimate(self) -> float: ...
    @property
    def n(self) -> int: ...
    @property
    def groups(self) -> int: ...
    def bound(self, confidence: float, side: Side = "lower") -> float: ...
    def needed(self, bar: float, confidence: float) -> int | None:
        """Rows for 80% power to show that it is above the bar, were the estimate the truth; None where it is not
        above."""
        ...


@dataclass(frozen=True)
class CallPrice:
    """The price of a call, as a share of the worst cost of a row. bounds: lower and upper, one-sided, at a
    confidence."""

    share: float
    bounds: Callable[[float], tuple[float, float]]

    @classmethod
    def fixed(cls, share: float) -> CallPrice:
        """A price that is known, not measured."""
        return cls(share, lambda _: (share, share))


NO_PRICE = CallPrice.fixed(0.0)


@dataclass(frozen=True)
class Priced(Resting):
    """The metric of an evaluation, less the price of a call where scores stand for costs.

    The bounds are those of a sum of independent estimates (MOVER, Zou & Donner 2008).
    """

    evaluation: Evaluation
    price: CallPrice = NO_PRICE

    @property
    def estimate(self) -> float:
        return self.evaluation.estimate - self.price.share

    @property
    def groups(self) -> int:
        return self.evaluation.groups

    def bound(self, confidence: float, side: Side = "lower") -> float:
        quality_bound = self.evaluation.bound(confidence, side)
        return quality_bound if self.price is NO_PRICE else self._net_of_price(quality_bound, confidence, side)

    def _net_of_price(self, quality_bound: float, confidence: float, side: Side) -> float:
        estimate, price = self.evaluation.estimate, self.price
        ends = (min(quality_bound, estimate), estimate) if side == "lower" else (estimate, max(quality_bound, estimate))
        low, high = price.bounds(confidence)
        low, high = independent_difference(estimate, price.share, ends, (min(low, price.share), max(high, price.share)))
        return low if side == "lower" else high

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided, at the evaluation's confidence."""
        if self.price is NO_PRICE:
            return self.evaluation.interval
        one_sided = (1 + self.evaluation.confidence) / 2
        low, high = self.evaluation.interval
        return self._net_of_price(low, one_sided, "lower"), self._net_of_price(high, one_sided, "upper")

    def needed(self, bar: float, confidence: float) -> int | None:
        value, at = (min(max(score, 0.0), 1.0) for score in (self.estimate, bar))
        effect = max(self.design_effect, 1.0)
        return needed_n(value, at, confidence, POWER, effect, self.row_variance)


@dataclass(frozen=True)
class Calibrated:
    """One minus the calibration error, of the rows whose answers carry probabilities; there must be at least one."""

    rows: Sequence[GradedRow]

    @cached_property
    def _scored_rows(self) -> list[GradedRow]:
        return slices.sure(self.rows)

    @property
    def n(self) -> int:
        return len(self._scored_rows)

    @property
    def groups(self) -> int:
        return len({row.group for row in self._scored_rows})

    @property
    def estimate(self) -> float:
        return 1 - slices.calibration_error(self._scored_rows)

    def bound(self, confidence: float, side: Side = "lower") -> float:
        calibration = slices.calibration_of(self._scored_rows, confidence)
        return 1 - (calibration.upper if side == "lower" else calibration.lower)

    def needed(self, bar: float, confidence: float) -> int | None:
        """Rows needed, from the width of the bound, which shrinks as the root of the rows."""
        from scipy.special import ndtri

        try:
            width = self.estimate - self.bound(confidence)
        except InsufficientGroups:
            return None
        if self.estimate <= bar:
            return None
        reach = 1 + float(ndtri(POWER) / ndtri(confidence))
        return max(self.n, round(self.n * (reach * width / (self.estimate - bar)) ** 2))


def compared(nominee: Priced, reference: Priced) -> tuple[Priced, Priced]:
    """Both evaluations, restricted to the rows that both contain."""
    ours, theirs = slices.on_shared_rows(nominee.evaluation, reference.evaluation)
    return replace(nominee, evaluation=ours), replace(reference, evaluation=theirs)


@dataclass(frozen=True)
class ReferenceComparison:
    """The difference of a nominee from its reference on the same rows, the price of a call in both."""

    nominee: Priced
    reference: Priced

    @property
    def _price_difference(self) -> float:
        return self.nominee.price.share - self.reference.price.share

    @property
    def estimate(self) -> float:
        return self.nominee.estimate - self.reference.estimate

    @property
    def n(self) -> int:
        return self.nominee.n

    @property
    def groups(self) -> int:
        return self.nominee.groups

    def _drop(self, confidence: float) -> Drop:
        """The drop in quality from the reference to the nominee, without prices. Raises InsufficientGroups."""
        drop = drop_between(self.reference.evaluation, self.nominee.evaluation, confidence)
        if drop.upper is None:
            sizes = list(Counter(row.group for row in self.nominee.evaluation.rows).values())
            enough = drop.groups >= MINIMUM_GROUPS
            count = worth(np.array(sizes, float)) if enough else None
            raise InsufficientGroups(drop.groups, MINIMUM_GROUPS, count, drop.n)
        return drop

    def bound(self, confidence: float, side: Side = "lower") -> float:
        drop = self._drop(confidence)
        assert drop.lower is not None
        assert drop.upper is not None
        ours, theirs = self.nominee.price, self.reference.price
        prices = independent_difference(ours.share, theirs.share, ours.bounds(confidence), theirs.bounds(confidence))
        low, high = independent_difference(-drop.value, self._price_difference, (-drop.upper, -drop.lower), prices)
        return low if side == "lower" else high

    def needed(self, bar: float, confidence: float) -> int | None:
        try:
            drop = self._drop(confidence)
        except InsufficientGroups:
            return None
        return drop.needed(-bar - self._price_difference, POWER)


@dataclass(frozen=True)
class ReferenceLevel(ReferenceComparison):
    """A nominee whose bar is its reference, on the metric's own scale: its bounds are those of the difference, added to
    the reference's estimate as if that were known."""

    design_effect = 1.0

    @property
    def estimate(self) -> float:
        return self.nominee.estimate

    @property
    def row_variance(self) -> float:
        """The variance of a row's difference, groups and weights included: that of their mean times the rows. At least
        as if one row differed, since systems that agree on all these rows may differ on others."""
        return self._variance

    @cached_property
    def _variance(self) -> float:
        drop = drop_between(self.reference.evaluation, self.nominee.evaluation, 0.95)
        return max(drop.se**2 * drop.n, 1 / drop.n) if math.isfinite(drop.se) else 1.0

    def bound(self, confidence: float, side: Side = "lower") -> float:
        return self.reference.estimate + super().bound(confidence, side)


@dataclass(frozen=True)
class RequirementResult:
    """One requirement and its evidence. measured: None where nothing can be measured, for the reason `nothing`. bar: a
    score, higher is better (1 minus a calibration error). is_difference: whether bar and estimate are differences.
    rows: of the whole split; claims: number of claims that share the error of the claim that it is broken."""

    words: str
    metric: str
    slice: str | None
    bar: float
    measured: MetricEstimate | None
    rows: int
    claims: int = 1
    scale: Scale = PLAIN
    error: bool = False
    is_difference: bool = False
    nothing: str = ""

    @property
    def met(self) -> bool:
        """Whether the estimate is above the bar."""
        return self.measured is not None and self.measured.estimate > self.bar

    def is_shown(self, confidence: float) -> bool:
        """Whether the lower bound at this confidence is above the bar."""
        try:
            return self.measured is not None and self.measured.bound(confidence) > self.bar
        except InsufficientGroups:
            return False

    def at(self, confidence: float, further: int = 0) -> Requirement:
        """The requirement's row in the report, at this confidence. further: number of claims of other conditions that
        share the error of the claim that it is broken."""
        measured, flipped = self.measured, self.error or self.scale.lower_is_better
        fulfilled: bool | None = None
        needed: int | None = None
        ends: tuple[float, float] | None = None
        if measured is None:
            reason = f"{self.words}: {self.nothing}"
        else:
            reason = f"{self.words}: {self._number(measured.estimate)} on {measured.n} rows"
            reason += f" in {measured.groups} groups" if measured.groups < measured.n else ""
            try:
                ends = measured.bound(confidence), measured.bound(confidence, "upper")
                broken = measured.bound(simultaneous(confidence, self.claims + further), "upper") < self.bar
            except InsufficientGroups as error:
                ends, reason = None, f"{reason}; {error.message}"
                if error.worth is None:  # rows of as many groups as are wanted, if they come as they did
                    needed = math.ceil(self.rows * error.needed / max(error.groups, 1))
                    reason += f" (about {needed:,} test rows in all)"
            else:
                fulfilled = True if ends[0] > self.bar else False if broken else None
                if fulfilled is None:
                    needed = measured.needed(self.bar, confidence)
                    needed = None if needed is None else math.ceil(needed * self.rows / measured.n)
                    low, high = (self._number(end) for end in sorted(ends, key=self._value))
                    reason += f", from {low} to {high}, which does not decide"
                    if needed is not None:
                        estimate = self._number(measured.estimate)
                        reason += f" (about {needed:,} test rows in all would, if {estimate} is right)"
                else:
                    word = "at least" if fulfilled != flipped else "at most"
                    reason += f", {word} {self._number(ends[not fulfilled])} with {confidence_text(confidence)}"
        low, high = (None, None) if ends is None else (self._value(end) for end in (ends[::-1] if flipped else ends))
        return Requirement(
            requirement=self.words,
            metric=self.metric,
            slice=self.slice,
            holds=fulfilled,
            value=None if measured is None else self._value(measured.estimate),
            lower=low,
            upper=high,
            bar=self._value(self.bar),
            direction="at_most" if flipped else "at_least",
            confidence=confidence,
            n=0 if measured is None else measured.n,
            groups=0 if measured is None else measured.groups,
            needed_n=needed,
            reason=reason,
        )

    def _value(self, score: float) -> float:
        if self.error:
            return 1 - score
        return self.scale.difference(score) if self.is_difference else self.scale.value(score)

    def _number(self, score: float) -> str:
        value = self._value(score)
        if self.scale.lower_is_better:
            return f"{'-' if value < 0 else '+' if self.is_difference else ''}${abs(value):.4f}"
        return f"{value:+.3f}" if self.is_difference else f"{value:.3f}"


def requirements_of(
    target: TargetSpec, evaluation: Evaluation, price: CallPrice = NO_PRICE, reference: Priced | None = None
) -> list[RequirementResult]:
    """All requirements of a target in addition to its bar. reference: the evaluation that the target is against, on the
    same rows."""
    requirements = [] if reference is None else [_against(target, Priced(evaluation, price), reference)]
    for spec in target.all_of:
        requirements += _from_spec(spec, evaluation, price)
    claims = len(requirements) + (target.value is not None)
    return [replace(requirement, claims=max(1, claims)) for requirement in requirements]


def _against(target: TargetSpec, nominee: Priced, reference: Priced) -> RequirementResult:
    scale, name = nominee.evaluation.scale, target.against or ""
    allowed = target.allowed / (scale.worst_usd or 1.0)
    money = "$" if scale.lower_is_better else ""
    if target.margin is not None:
        words = f"worse than {name} by less than {money}{target.margin:g}"
    elif target.better_by:
        words = f"better than {name} by more than {money}{target.better_by:g}"
    else:
        words = f"better than {name}"
    measured = ReferenceComparison(*compared(nominee, reference))
    metric = nominee.evaluation.metric
    return RequirementResult(words, metric, None, -allowed, measured, nominee.n, scale=scale, is_difference=True)


def _from_spec(spec: RequirementSpec, evaluation: Evaluation, price: CallPrice) -> Iterator[RequirementResult]:
    column = spec.column
    if column is None:
        yield _requirement_on(spec, evaluation, price, None)
        return
    if spec.where is not None:
        values: Sequence[str] = [spec.where[column]]
    else:
        values = evaluation.labels if column == LABEL else slices.values_of(evaluation, column)
    for value in values:
        yield _requirement_on(spec, evaluation, price, (column, value))


def _requirement_on(
    spec: RequirementSpec, evaluation: Evaluation, price: CallPrice, part: tuple[str, str] | None
) -> RequirementResult:
    """One requirement on all rows, or on those of one slice."""
    rows = evaluation.rows if part is None else slices.rows_of(evaluation, *part)
    named = None if part is None else f"{part[0]}: {part[1] or '(none)'}"
    is_task_metric = spec.metric in (None, evaluation.metric)
    scale = evaluation.scale if is_task_metric else PLAIN
    threshold = spec.at_most if spec.at_least is None else spec.at_least
    assert threshold is not None
    plain = slices.ROW_SCORE if part is not None and evaluation.scoring == "counts" else evaluation.metric
    by = spec.metric or plain
    metric = by.replace("_", " ")
    side = "at least" if spec.at_least is not None else "at most"
    error = spec.at_most is not None and not scale.lower_is_better
    bar = scale.score(threshold) if not error else 1 - threshold
    money = "$" if scale.lower_is_better else ""
    words = f"{metric}{'' if named is None else f' where {named}'} {side} {money}{threshold:g}"
    measured: MetricEstimate | None = None
    nothing = f"no test row has {named}; label such rows"
    if rows and spec.metric == CALIBRATION:
        measured = Calibrated(rows) if slices.sure(rows) else None
        nothing = "its answers carry no probabilities"
    elif rows and spec.metric == COVERAGE:
        measured = Priced(slices.coverage_of(evaluation, rows))
    elif rows:
        measured = Priced(slices.by_metric(evaluation, rows, by), price if is_task_metric else NO_PRICE)
    if error and isinstance(measured, Priced):
        measured = _Flipped(measured)
    return RequirementResult(
        words, metric, named, bar, measured, evaluation.n, scale=scale, error=error, nothing=nothing
    )


@dataclass(frozen=True)
class _Flipped:
    """One minus a metric of which lower is better."""

    of: Priced

    @property
    def estimate(self) -> float:
        return 1 - self.of.estimate

    @property
    def n(self) -> int:
        return self.of.n

    @property
    def groups(self) -> int:
        return self.of.groups

    def bound(self, confidence: float, side: Side = "lower") -> float:
        return 1 - self.of.bound(confidence, "upper" if side == "lower" else "lower")

    def needed(self, bar: float, confidence: float) -> int | None:
        effect = max(self.of.design_effect, 1.0)
        return needed_n(self.estimate, bar, confidence, POWER, effect, self.of.row_variance)
