"""What would let a candidate in that a budget kept out: keys of the task file's `budget`, and values that would do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bedplate.adaptation.context.outcome import RungOutcome
from bedplate.adaptation.task.spec import BudgetSpec
from bedplate.adaptation.verdict.candidate import Nominable, over
from bedplate.core.processor import is_busy
from bedplate.evaluation.costs import PLAIN, Scale


@dataclass(frozen=True)
class RequiredChange:
    """A key of `budget`, what the task file gives it, and the least round value that would do."""

    key: str
    given: float
    needed: float

    @property
    def summary(self) -> str:
        return f"{self.key}: {self.given:g} → {self.needed:g}"


@dataclass(frozen=True)
class BudgetChanges:
    """Of one candidate: every change that it needs. estimate: on valid; None where it was not tried. load: processes
    that wanted a processor while its calls were timed, where those were more than there are."""

    rung: str
    changes: tuple[RequiredChange, ...]
    estimate: float | None = None
    load: float | None = None
    scale: Scale = PLAIN

    @property
    def summary(self) -> str:
        """`p95_ms: 500 → 640 would admit lora (0.912 on valid)`."""
        changes = " and ".join(change.summary for change in self.changes)
        estimate_note = (
            "which was not tried" if self.estimate is None else f"{self.scale.format_score(self.estimate)} on valid"
        )
        load_note = "" if self.load is None else f", timed beside other work at a load average of {self.load:.1f}"
        return f"{changes} would admit {self.rung} ({estimate_note}{load_note})"


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
) -> list[BudgetChanges]:
    """Of every candidate that was measured to be over the budget, and every rung that a limit left out: those that
    look best first, then those that ask for the least.

    limits: what was given for keys that the command line may have set in the place of the task file. scale: says the
    candidates' estimates. loads: the load average while a candidate's calls were timed.
    """
    limits_by_key = {**{key: value for key, value in budget.model_dump().items() if value is not None}, **limits}
    proposed: list[BudgetChanges] = []
    for candidate in candidates:
        keys = over(candidate, budget)
        if keys and candidate.broken is None:
            shown = {"p95_ms": candidate.p95_ms}  # as it was measured: only its bound keeps it out
            changes = tuple(RequiredChange(key, limit, round_up(shown.get(key, value))) for key, value, limit in keys)
            timed = {key for key, *_ in keys} & {"p95_ms", "usd_per_1k_calls"}
            load = (loads or {}).get(candidate.rung) if timed else None
            busy = load if load is not None and is_busy(load) else None
            proposed.append(BudgetChanges(candidate.rung, changes, candidate.estimate, busy, scale))
    for name, outcome in outcomes.items():
        needs = {key: value for key, value in outcome.needs.items() if key in limits_by_key}
        if outcome.status == "skipped" and needs:
            changes = tuple(RequiredChange(key, limits_by_key[key], round_up(value)) for key, value in needs.items())
            proposed.append(BudgetChanges(name, changes))
    return sorted(
        proposed, key=lambda admission: (-(admission.estimate or 0.0), len(admission.changes), _growth(admission))
    )


def _growth(admission: BudgetChanges) -> float:
    return max(change.needed / change.given for change in admission.changes)
