"""Decides what new rows mean for a skin: climb again, label some of them first, keep it, or undecided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bedplate.evaluation.drift.promised_quality import Quality
from bedplate.evaluation.drift.shifts import Shift
from bedplate.evaluation.evaluated import Evaluation

Verdict = Literal["climb", "label", "keep", "undecided"]


@dataclass(frozen=True)
class Levels:
    """What error all looks at a skin together may make, `alpha`: half of it for inputs, length and labels in equal
    parts, a quarter each for the promise and for the bar."""

    alpha: float

    @property
    def shift(self) -> float:
        return self.alpha / 6

    @property
    def quality(self) -> float:
        return self.alpha / 4


@dataclass(frozen=True)
class Drift:
    """verdict: climb again, label new rows first, keep the skin, or undecided; `sentence` says why. look: the number of
    this look at the skin; alpha: the error of all of them together."""

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

    def to_json(self) -> dict[str, Any]:
        """Plain values, the rows of the evaluation among them."""
        return {
            **vars(self),
            "shifts": [shift.to_json() for shift in self.shifts],
            "quality": None if self.quality is None else self.quality.to_json(),
            "evaluation": None if self.evaluation is None else asdict(self.evaluation),
        }


def decide(shifts: Sequence[Shift], measured: Quality | None) -> tuple[Verdict, str]:
    """The verdict and its sentence. shifts: nothing, where there are no old rows to compare inputs with."""
    shifted = [shift.aspect for shift in shifts if shift.differs]
    if not shifts:
        differ = "inputs were not compared"
    elif shifted:
        differ = f"new rows differ from old ones in {' and '.join(shifted)}"
    else:
        differ = "new rows were not shown to differ from old ones"
    if measured is None:
        if shifted:
            return "label", f"Label some of the new rows: {differ}, and without labels the quality on them is unknown."
        if not shifts:
            return "undecided", f"Undecided: {differ}, and the new rows have no labels."
        return "keep", f"Keep the skin: {differ}; only labels would tell whether its answers are still right."
    read = f"{measured.metric} is {measured.estimate:.3f} on the new rows"
    if measured.promise is None:
        return "undecided", f"Undecided: {read}, and the skin carries no report to hold it to; {differ}."
    promise = measured.promise
    by = "the skin's verdict" if promise.by_verdict else "the interval in the skin's report"
    bar = (
        "its bar was a comparison on the test rows alone"
        if promise.target is None
        else f"the bar is {promise.target:g}"
    )
    read = f"{read} where {by} promises {promise.floor:.3f} and {bar}"
    below = [name for name, so in (("bar", measured.below_bar), ("promise", measured.worse)) if so]
    if below:
        return "climb", f"Climb again: {read}: it is below the {' and the '.join(below)} beyond chance; {differ}."
    if measured.bounds is None:
        return "undecided", f"Undecided: {read}, but {measured.reason}; {differ}."
    criterion = "promise" if promise.target is None else "bar"
    if measured.above_bar:
        return "keep", f"Keep the skin: {read}: it is above the {criterion} beyond chance; {differ}."
    sample_size = (
        "more rows" if measured.needed is None else f"some {measured.needed:,} rows in all, if that is what it is"
    )
    return (
        "undecided",
        f"Undecided: {read}: to tell on which side of the {criterion} it is takes {sample_size}; {differ}.",
    )
