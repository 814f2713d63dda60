"""What a guard's rows show at some confidence: the bounds of what has become worse, and what they say in a sentence.

A verdict over several nominees, or one that is not the first, asks for more than the confidence that candidates are
looked at with before test is opened; nothing is measured anew for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from bedplate.core.statistics.noninferiority import Drop, mean_drop, rate_rise
from bedplate.evaluation.suites import refusals
from bedplate.report.schema_plan import Guard, GuardRow

GuardName = Literal["retention", "loss", "refusal"]


class GuardResult(Guard):
    """A guard of one child base, with the rows that it rests on."""

    rows: tuple[GuardRow, ...] = Field((), repr=False)

    def at(self, confidence: float) -> GuardResult:
        """The same rows at another confidence. What could not be measured stays undecided."""
        if not self.rows:
            return self.model_copy(update={"confidence": confidence})
        assert self.parent is not None
        assert self.child is not None
        drop = drop_of(self.guard, self.rows, confidence)
        return self.model_copy(update=bounded(self.guard, self.measure, self.parent, self.child, drop, self.limit))


def drop_of(guard: GuardName, rows: Sequence[GuardRow], confidence: float) -> Drop:
    """How much worse the child is, with one-sided bounds."""
    before, after, groups = [row.parent for row in rows], [row.child for row in rows], [row.group for row in rows]
    if guard == "loss":
        return rate_rise(before, after, [float(row.tokens or 0) for row in rows], groups, confidence)
    observed_drop = mean_drop(before, after, groups, confidence)
    if guard == "retention":
        return observed_drop
    # a detector that misses refusals sees only part of a change: at worst this part, at best all of it
    detector = refusals.calibrate()
    scale = 1 / detector.least_informedness
    return Drop(
        observed_drop.value / detector.informedness,
        None if observed_drop.lower is None else min(observed_drop.lower, observed_drop.lower * scale),
        None if observed_drop.upper is None else max(observed_drop.upper, observed_drop.upper * scale),
        observed_drop.se / detector.informedness,
        observed_drop.confidence,
        observed_drop.n,
        observed_drop.groups,
    )


def bounded(guard: GuardName, measure: str, parent: float, child: float, drop: Drop, limit: float) -> dict[str, object]:
    """The fields of a Guard that follow from its bounds."""
    within_limit, needed = drop.is_within(limit), drop.needed(limit)
    numbers = f"{measure}: {parent:.3f} before, {child:.3f} after"
    if guard == "refusal" and parent < limit:
        numbers += " (the parent refuses so few that there is little to lose: this guard says little)"
    if drop.upper is None or drop.lower is None:
        reason = f"{numbers}; {drop.groups} groups are too few for a bound"
    elif within_limit:
        reason = f"{numbers}; worse by at most {drop.upper:.3f} with {drop.confidence:.1%} confidence, under {limit:g}"
    elif within_limit is False:
        reason = f"{numbers}; worse by at least {drop.lower:.3f} with {drop.confidence:.1%} confidence, over {limit:g}"
    else:
        reason = (
            f"{numbers}; worse by {drop.lower:.3f} to {drop.upper:.3f}, so {drop.n} rows do not decide on {limit:g}"
        )
        if needed is not None:
            reason += f" (about {needed:,} would)"
    return {
        "holds": within_limit,
        "drop": drop.value,
        "reason": reason,
        "needed_n": None if within_limit is not None else needed,
        **{name: getattr(drop, name) for name in ("lower", "upper", "confidence", "n", "groups")},
    }


def guards_pass(guards: Sequence[GuardResult], confidence: float) -> bool:
    """Whether all of them are shown to hold at this confidence."""
    return all(guard.at(confidence).holds is True for guard in guards)
