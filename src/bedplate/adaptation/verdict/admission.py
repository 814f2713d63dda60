"""What would let a candidate in that a budget kept out: keys of the task file's `budget`, and values that would do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bedplate.adaptation.context.outcome import RungOutcome
from bedplate.adaptation.task.spec import BudgetSpec
from bedplate.adaptation.verdict.candidate import Nominable, over
from bedplate.core.processor import is_busy
from bedplate.evaluation.costs.scale import PLAIN, Scale


@dataclass(frozen=True)
class Change:
    """A key of `budget`, what the task file gives it, and the least round value that would do."""

    key: str
    given: float
    needed: float

    @property
    def said(self) -> str:
        return f"{self.key}: {self.given:g} → {self.needed:g}"


@dataclass(frozen=True)
class Admission:
    """Of one candidate: every change that it needs. estimate: on valid; None where it was not tried. load: processes
    that wanted a processor while its calls were timed, where those were more than there are."""

    rung: str
    changes: tuple[Change, ...]
    estimate: float | None = None
    load: float | None = None
    scale: Scale = PLAIN

    @property
    def said(self) -> str:
        """`p95_ms: 500 → 640 would admit lora (0.912 on valid)`."""
        changes = " and ".join(change.said for change in self.changes)
        seen = "which was not tried" if self.estimate is None else f"{self.scale.said(self.estimate)} on valid"
        beside = "" if self.load is None else f", timed beside other work at a load average of {self.load:.1f}"
        return f"{changes} would admit {self.rung} ({seen}{beside})"


def round_up(value: float) -> float:
    """The least number of two significant digits that is not below this."""
    if value <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step - 1e-9) * step:.12g}")


def admissions(
    candidates: Sequence[Nominable],
    outcomes: Mapping[str, RungOutcome],
    budget: BudgetSpec,
    limits: Mapping[str, float],
    scale: Scale = PLAIN,
    loads: Mapping[str, float | None] | None = None,
) -> list[Admission]:
    """Of every candidate that was measured to be over the budget, and every rung that a limit left out: those that
    look best first, then those that ask for the least.

    limits: what was given for keys that the command line may have set in the place of the task file. scale: says the
    candidates' estimates. loads: the load average while a candidate's calls were timed.
    """
    given = {**{key: value for key, value in budget.model_dump().items() if value is not None}, **limits}
    found: list[Admission] = []
    for one in candidates:
        keys = over(one, budget)
        if keys and one.broken is None:
            shown = {"p95_ms": one.p95_ms}  # as it was measured: only its bound keeps it out
            changes = tuple(Change(key, limit, round_up(shown.get(key, value))) for key, value, limit in keys)
            timed = {key for key, *_ in keys} & {"p95_ms", "usd_per_1k_calls"}
            load = (loads or {}).get(one.rung) if timed else None
            busy = load if load is not None and is_busy(load) else None
            found.append(Admission(one.rung, changes, one.estimate, busy, scale))
    for name, outcome in outcomes.items():
        needs = {key: value for key, value in outcome.needs.items() if key in given}
        if outcome.status == "skipped" and needs:
            changes = tuple(Change(key, given[key], round_up(value)) for key, value in needs.items())
            found.append(Admission(name, changes))
    return sorted(found, key=lambda one: (-(one.estimate or 0.0), len(one.changes), _growth(one)))


def _growth(one: Admission) -> float:
    return max(change.needed / change.given for change in one.changes)
