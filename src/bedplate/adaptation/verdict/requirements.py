"""What a target asks for beside its bar, of one nominee: other metrics, slices, coverage, calibration, and what it is
compared with.

All have to hold, so each is tested at the nominee's own level without correction: that any of several false claims is
made is no likelier than that one of them is (intersection-union, Berger 1982, Technometrics 24:295). Over nominees that
level is Holm's, which the bar shares. That a requirement is *broken* is one claim of several, so that the requirements
and the bar share the error (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bedplate.adaptation.task.target_spec import CALIBRATION, COVERAGE, RequirementSpec, TargetSpec
from bedplate.adaptation.verdict.estimates import (
    NOTHING,
    POWER,
    Calibrated,
    CallPrice,
    MetricEstimate,
    Priced,
    ReferenceComparison,
)
from bedplate.core.statistics import InsufficientGroups, needed_n
from bedplate.core.statistics.proportions import Side
from bedplate.evaluation.costs import PLAIN, Scale
from bedplate.evaluation.evaluated import Evaluation
from bedplate.evaluation.slices import ROW_SCORE, by_metric, coverage_of, rows_of, sure, values_of
from bedplate.evaluation.task import LABEL
from bedplate.report.schema_parts import Requirement


@dataclass(frozen=True)
class RequirementResult:
    """One requirement and what the rows say of it. measured: None where there is nothing to measure, for the reason
    `nothing`. bar: a score, of which more is better (of a calibration error 1 minus it). is_difference: whether it is a
    difference. rows: of the whole split; claims: how many claims share the error of one that it is broken."""

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
        """Whether the estimate is on the right side of the bar."""
        return self.measured is not None and self.measured.estimate > self.bar

    def is_shown(self, confidence: float) -> bool:
        """Whether that is shown at this confidence."""
        try:
            return self.measured is not None and self.measured.bound(confidence) > self.bar
        except InsufficientGroups:
            return False

    def at(self, confidence: float) -> Requirement:
        """What the report says of it at this confidence."""
        if self.measured is None:
            return self._requirement(None, None, None, confidence, None, f"{self.words}: {self.nothing}")
        measured = self.measured
        try:
            lower, upper = measured.bound(confidence), measured.bound(confidence, "upper")
            broken = measured.bound(1 - (1 - confidence) / self.claims, "upper") < self.bar
        except InsufficientGroups as error:
            reason = f"{self.words}: {self._number(measured.estimate)} on {self._rows_text()}; {error.message}"
            needed = None
            if error.worth is None:  # rows of as many groups as are wanted, if they come as they did
                needed = math.ceil(self.rows * error.needed / max(error.groups, 1))
                reason += f" (about {needed:,} test rows in all)"
            return self._requirement(None, None, None, confidence, needed, reason)
        fulfilled = True if lower > self.bar else False if broken else None
        needed = None
        if fulfilled is None:
            needed = measured.needed(self.bar, confidence)
            needed = None if needed is None else math.ceil(needed * self.rows / measured.n)
        estimate_note = f"{self.words}: {self._number(measured.estimate)} on {self._rows_text()}"
        if fulfilled:
            bounds_note = f"{self._word('lower')} {self._number(lower)} with {confidence:.1%} confidence"
        elif fulfilled is False:
            bounds_note = f"{self._word('upper')} {self._number(upper)} with {confidence:.1%} confidence"
        else:
            ends = sorted((lower, upper), key=self._value)
            bounds_note = f"from {self._number(ends[0])} to {self._number(ends[1])}, so that these rows do not decide"
            bounds_note += "" if needed is None else f" (about {needed:,} test rows in all would)"
        return self._requirement(fulfilled, lower, upper, confidence, needed, f"{estimate_note}, {bounds_note}")

    def _requirement(
        self,
        fulfilled: bool | None,
        lower: float | None,
        upper: float | None,
        confidence: float,
        needed: int | None,
        reason: str,
    ) -> Requirement:
        flipped = self._flipped
        ends = (upper, lower) if flipped else (lower, upper)
        low, high = (None if end is None else self._value(end) for end in ends)
        measured = self.measured
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

    @property
    def _flipped(self) -> bool:
        return self.error or self.scale.lower_is_better

    def _value(self, score: float) -> float:
        if self.error:
            return 1 - score
        return self.scale.difference(score) if self.is_difference else self.scale.value(score)

    def _number(self, score: float) -> str:
        value = self._value(score)
        if self.scale.lower_is_better:
            return f"{'-' if value < 0 else '+' if self.is_difference else ''}${abs(value):.4f}"
        return f"{value:+.3f}" if self.is_difference else f"{value:.3f}"

    def _word(self, side: str) -> str:
        return "at least" if (side == "lower") != self._flipped else "at most"

    def _rows_text(self) -> str:
        assert self.measured is not None
        n, groups = self.measured.n, self.measured.groups
        return f"{n} rows" + (f" in {groups} groups" if groups < n else "")


def requirements_of(
    target: TargetSpec, evaluation: Evaluation, price: CallPrice = NOTHING, reference: Priced | None = None
) -> list[RequirementResult]:
    """All that a target asks of a candidate beside its bar. reference: what the target is against, on the same rows."""
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
    measured = ReferenceComparison(nominee, reference)
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
        values = evaluation.labels if column == LABEL else values_of(evaluation, column)
    for value in values:
        yield _requirement_on(spec, evaluation, price, (column, value))


def _requirement_on(
    spec: RequirementSpec, evaluation: Evaluation, price: CallPrice, part: tuple[str, str] | None
) -> RequirementResult:
    """The requirement on all rows, or on those of one slice."""
    rows = evaluation.rows if part is None else rows_of(evaluation, *part)
    named = None if part is None else f"{part[0]}: {part[1] or '(none)'}"
    is_task_metric = spec.metric in (None, evaluation.metric)
    scale = evaluation.scale if is_task_metric else PLAIN
    threshold = spec.at_most if spec.at_least is None else spec.at_least
    assert threshold is not None
    plain = ROW_SCORE if part is not None and evaluation.scoring == "counts" else evaluation.metric
    by = spec.metric or plain
    metric = by.replace("_", " ")
    side = "at least" if spec.at_least is not None else "at most"
    error = spec.at_most is not None and not scale.lower_is_better
    bar = scale.score(threshold) if not error else 1 - threshold
    money = "$" if scale.lower_is_better else ""
    words = f"{metric}{'' if named is None else f' where {named}'} {side} {money}{threshold:g}"
    measured: MetricEstimate | None = None
    nothing = f"there is no test row of {named}, so that nothing is known of it; label such rows"
    if rows and spec.metric == CALIBRATION:
        measured = Calibrated(rows) if sure(rows) else None
        nothing = "its answers carry no probabilities"
    elif rows and spec.metric == COVERAGE:
        measured = Priced(coverage_of(evaluation, rows))
    elif rows:
        measured = Priced(by_metric(evaluation, rows, by), price if is_task_metric else NOTHING)
    if error and isinstance(measured, Priced):
        measured = _Flipped(measured)
    return RequirementResult(
        words, metric, named, bar, measured, evaluation.n, scale=scale, error=error, nothing=nothing
    )


@dataclass(frozen=True)
class _Flipped:
    """One minus a metric, of which less is wanted."""

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
