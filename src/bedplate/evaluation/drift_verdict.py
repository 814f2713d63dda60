"""The verdict of a drift check on a skin: climb again, label new rows first, keep the skin, or undecided, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bedplate.core import display
from bedplate.evaluation.drift import Quality, Shift
from bedplate.evaluation.evaluated import Evaluation

Verdict = Literal["climb", "label", "keep", "undecided"]


@dataclass(frozen=True)
class Drift:
    """The result of a drift check. verdict: climb again, label new rows first, keep the skin, or undecided; sentence:
    the reason. look: the number of this check of the skin; alpha: the error rate of all its checks together."""

    verdict: Verdict
    sentence: str
    look: int
    alpha: float
    shifts: tuple[Shift, ...]
    quality: Quality | None
    old_rows: int
    new_rows: int
    notes: tuple[str, ...]
    evaluation: Evaluation | None

    def __repr__(self) -> str:
        return display.line("new rows", f"{self.new_rows:,} against {self.old_rows:,}", self.sentence)

    def to_json(self) -> dict[str, Any]:
        """JSON values, including the rows of the evaluation."""
        return {
            **vars(self),
            "shifts": [shift.to_json() for shift in self.shifts],
            "quality": None if self.quality is None else self.quality.to_json(),
            "evaluation": None if self.evaluation is None else asdict(self.evaluation),
        }


def decide(shifts: Sequence[Shift], measured: Quality | None) -> tuple[Verdict, str]:
    """The verdict and its sentence. shifts: empty where there are no old rows to compare inputs with."""
    shifted = [shift.aspect for shift in shifts if shift.differs]
    differ = "new rows were not shown to differ from old ones" if shifts else "inputs were not compared"
    if shifted:
        listed = " and ".join(filter(None, (", ".join(shifted[:-1]), shifted[-1])))
        differ = f"new rows differ from old ones in {listed}"
    if measured is None:
        if shifted:
            return "label", f"Label some of the new rows: {differ}, and without labels the quality on them is unknown."
        if not shifts:
            return "undecided", f"Undecided: {differ}, and the new rows have no labels."
        unsure = [shift for shift in shifts if shift.may_differ]
        if unsure:
            evidence = " and ".join(f"{s.aspect} (evidence {s.evidence.value:.3g} of {s.enough:.3g})" for s in unsure)
            advice = "label some of them, or look again with more"
            return "undecided", f"Undecided: {differ}, but they lean that way in {evidence}; {advice}."
        if all(shift.powerless for shift in shifts):
            return "undecided", f"Undecided: {differ}, which so few could not show; look again with more, or label."
        return "keep", f"Keep the skin: {differ}; only labels would tell whether its answers are still right."
    read = f"{measured.metric} is {measured.estimate:.3f} on the new rows"
    if measured.promise is None:
        return "undecided", f"Undecided: {read}, and the skin has no report to compare it with; {differ}."
    promise = measured.promise
    by = "the skin's verdict" if promise.by_verdict else "the interval in the skin's report"
    bar = "its target was a comparison on the test rows only"
    bar = bar if promise.target is None else f"the bar is {promise.target:g}"
    read = f"{read}, where {by} promised {promise.floor:.3f} and {bar}"
    below = [name for name, so in (("bar", measured.below_bar), ("promise", measured.worse)) if so]
    if below:
        return "climb", f"Adapt again: {read}; it is significantly below the {' and the '.join(below)}; {differ}."
    if measured.bounds is None:
        return "undecided", f"Undecided: {read}, but {measured.reason}; {differ}."
    criterion = "promise" if promise.target is None else "bar"
    if measured.above_bar:
        return "keep", f"Keep the skin: {read}; it is significantly above the {criterion}; {differ}."
    rows = "more rows"
    if measured.needed is not None:
        rows = f"about {measured.needed:,} rows in all, if {measured.estimate:.3f} is right,"
    return "undecided", f"Undecided: {read}; {rows} would tell on which side of the {criterion} it is; {differ}."
