"""The verdict of a ladder: one object that is filled on the way (who is nominated, their bounds on test, guards, limits
and requirements, what a budget kept out), and decides by what it holds.

PASS: the cheapest nominee whose lower bound clears the target and whose guards, limits and requirements hold. FAIL:
every upper bound lies below the target (or a condition of the nominee is broken), or no skin could be made whatever the
budget. OUT_OF_BUDGET: nothing fitted the budget, or what did is shown to be below the target and something above it on
valid did not fit. Otherwise INSUFFICIENT_DATA, with the rows that would be needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bedplate.adaptation.context.outcome import RungResult
from bedplate.adaptation.verdict.admission import BudgetChanges
from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import atomic_write, read_text
from bedplate.core.statistics.clusters import groups_needed
from bedplate.evaluation.costs import PLAIN, Scale
from bedplate.report.schema import Confirmation
from bedplate.report.schema_parts import Guard, Limit, Requirement

Status = Literal["PASS", "FAIL", "INSUFFICIENT_DATA", "OUT_OF_BUDGET"]
Condition = Guard | Limit | Requirement
WAYS_SHOWN = 3
"""Ways out of the budget that the verdict's sentence names."""


@dataclass(frozen=True)
class Nomination:
    """Who goes to test, cheapest first. `primary` is the best of them on valid: its pair with `versus` is the
    superiority claim. `reasons` says for every candidate why it is in or out."""

    nominees: tuple[str, ...]
    primary: str | None
    versus: str | None
    reasons: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "nominees": list(self.nominees)}

    def write(self, path: Path, results: Mapping[str, RungResult], test: str) -> None:
        """Write it down, with the ids of the nominees' skins and the hash of the test rows that it is for."""
        skins = {name: results[name].skin_id for name in self.nominees}
        atomic_write(path, json.dumps({**self.to_json(), "skins": skins, "test": test}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path, results: Mapping[str, RungResult]) -> Nomination:
        """The nomination that an earlier look at test fixed: whoever is judged there once is judged there to the end.
        DataError for a damaged file; UsageError where a nominee is gone."""
        try:
            fields: Any = json.loads(read_text(path))
            names = tuple(map(str, fields["nominees"]))
            reasons = {str(name): str(reason) for name, reason in fields["reasons"].items()}
            nomination = cls(names, fields["primary"], fields["versus"], reasons)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged ({error!r}); begin another run") from error
        missing = [name for name in names if name not in results or results[name].skin is None]
        if missing:
            raise UsageError(
                f"{path}: {', '.join(missing)} was judged at an earlier look and is not climbed now; give the command "
                "with the options of that time"
            )
        return nomination


@dataclass(frozen=True)
class GateDecision:
    """The status, the skin that passed (None for every other status), and why, in sentences."""

    status: Status
    rung: str | None
    reason: str


@dataclass
class GateVerdict:
    """What a verdict rests on. metric, target (a score), n and groups (of test) are known at the start.

    guards: of the nominees that change their base; limits: of what a call takes; requirements: what the target asks for
    beside its bar. One that is undecided is no reason to PASS, and none to FAIL. kept_out: what a budget kept out,
    those that look best first. scale: formats the scores of the confirmations and the target.
    """

    nomination: Nomination
    confirmations: Sequence[Confirmation] = ()
    metric: str = field(kw_only=True)
    target: float = field(kw_only=True)
    n: int = field(kw_only=True)
    groups: int = field(kw_only=True)
    guards: Mapping[str, Sequence[Guard]] = field(default_factory=dict[str, list[Guard]], kw_only=True)
    limits: Mapping[str, Sequence[Limit]] = field(default_factory=dict[str, list[Limit]], kw_only=True)
    requirements: Mapping[str, Sequence[Requirement]] = field(
        default_factory=dict[str, list[Requirement]], kw_only=True
    )
    kept_out: Sequence[BudgetChanges] = field(default=(), kw_only=True)
    scale: Scale = field(default=PLAIN, kw_only=True)

    @cached_property
    def decision(self) -> GateDecision:
        """The decision; asked for once everything is filled in. UsageError for a nominee without a confirmation."""
        if not self.nomination.nominees:
            return self._nobody_nominated()
        if {c.rung for c in self.confirmations} != set(self.nomination.nominees):
            raise UsageError("every nominee needs exactly one confirmation")
        return (
            self._passed()
            or self._no_bound()
            or self._conditions_broken()
            or self._all_below()
            or GateDecision("INSUFFICIENT_DATA", None, self._undecided())
        )

    # --- what the sentences are made of

    @cached_property
    def _ordered(self) -> list[Confirmation]:
        """The nominees, cheapest first."""
        by_rung = {c.rung: c for c in self.confirmations}
        return [by_rung[rung] for rung in self.nomination.nominees]

    @property
    def _best(self) -> Confirmation:
        return max(self._ordered, key=lambda c: c.estimate)

    @property
    def _bar(self) -> str:
        return self.scale.bar(self.target)

    @property
    def _clears(self) -> str:
        return f"{self.scale.lower_bound} clears the target"

    @property
    def _rows(self) -> str:
        return f"{self.n} test rows" + (f" in {self.groups} groups" if self.groups < self.n else "")

    @property
    def _below(self) -> list[Confirmation]:
        """The nominees that are shown to be below the target."""
        return [c for c in self._ordered if c.upper is not None and c.upper < self.target]

    @property
    def _missed(self) -> str:
        return f"{self.scale.upper_bound} lies {'above' if self.scale.lower_is_better else 'below'} the target"

    def _conditions(self, rung: str) -> list[Condition]:
        return [*self.requirements.get(rung, ()), *self.guards.get(rung, ()), *self.limits.get(rung, ())]

    def _conditions_met(self, rung: str) -> bool | None:
        """Whether all conditions hold: False where one is broken, None where one is undecided and none broken."""
        holding = [condition.holds for condition in self._conditions(rung)]
        return False if False in holding else None if None in holding else True

    # --- the cases, in the order in which they are looked at

    def _nobody_nominated(self) -> GateDecision:
        why = "; ".join(f"{rung} is {reason}" for rung, reason in self.nomination.reasons.items())
        if self.kept_out:
            reasons = f" ({why})" if why else ""
            return GateDecision("OUT_OF_BUDGET", None, f"Nothing fits the budget: {_ways_out(self.kept_out)}{reasons}.")
        return GateDecision("FAIL", None, f"No skin could be judged: {why or 'no rung made one'}.")

    def _passed(self) -> GateDecision | None:
        """PASS for the first nominee that clears the target and meets its conditions."""
        passing = (c for c in self._ordered if c.passed and c.lower is not None and self._conditions_met(c.rung))
        c, score = next(passing, None), self.scale.format_score
        if c is None or c.lower is None:
            return None
        estimate = score(c.estimate)
        text = (
            f"{c.rung} is the cheapest nominee whose {self._clears}: {self.metric} {estimate} on {self._rows}, "
            f"{self.scale.lower_phrase} {score(c.lower)} with {c.lower_confidence:.1%} confidence, target {self._bar}."
        )
        if c.expected is not None and score(min(c.expected, c.estimate)) != estimate:
            text += (
                f" What passed scores {'low' if self.scale.lower_is_better else 'high'} by luck as well: with valid "
                f"and the others, expect {score(c.expected)}."
            )
        for said, conditions in (
            ("What else is required holds", self.requirements.get(c.rung)),
            ("Its guards hold", self.guards.get(c.rung)),
        ):
            if conditions:
                text += f" {said}: {'; '.join(condition.reason for condition in conditions)}."
        text += "".join(f" Its {limit.reason}." for limit in self.limits.get(c.rung, ()))
        return GateDecision("PASS", c.rung, text)

    def _no_bound(self) -> GateDecision | None:
        """INSUFFICIENT_DATA where the rows of a nominee allow no bound at all."""
        unbounded = next((c for c in self._ordered if c.reason is not None), None)
        if unbounded is None:
            return None
        best = self._best
        text = (
            f"No nominee's {self._clears} of {self._bar} on {self._rows}, and for {unbounded.rung} there is none, "
            f"whatever the estimate (best: {best.rung}, {self.scale.format_score(best.estimate)}): {unbounded.reason}."
        )
        return GateDecision("INSUFFICIENT_DATA", None, text)

    def _conditions_broken(self) -> GateDecision | None:
        """FAIL where every nominee is below the target or breaks a condition; INSUFFICIENT_DATA where one clears the
        target and a condition of it is not shown to hold."""
        score, below = self.scale.format_score, self._below
        stopped = " ".join(
            f"{c.rung} clears the target ({score(c.estimate)}, {self.scale.lower_phrase} {score(c.lower)}) and is held "
            f"back by its {_name(condition)}{condition.reason}."
            for c in self._ordered
            for condition in self._conditions(c.rung)
            if c.passed and c.lower is not None and condition.holds is not True
        )
        broken = " ".join(
            f"{c.rung} does not fulfil what is required: {requirement.reason}."
            for c in self._ordered
            for requirement in self.requirements.get(c.rung, ())
            if not c.passed and c not in below and requirement.holds is False
        )
        if (stopped or broken) and all(c in below or self._conditions_met(c.rung) is False for c in self._ordered):
            missed = f"Every other nominee's {self._missed}." if below else ""
            return GateDecision("FAIL", None, " ".join(filter(None, (stopped, broken, missed))))
        return GateDecision("INSUFFICIENT_DATA", None, stopped) if stopped else None

    def _all_below(self) -> GateDecision | None:
        """FAIL where every nominee is below the target; OUT_OF_BUDGET where the budget kept out something above it."""
        if len(self._below) < len(self._ordered):
            return None
        best, score = self._best, self.scale.format_score
        text = (
            f"Every nominee's {self._missed} of {self._bar}; the best is {best.rung} with {self.metric} "
            f"{score(best.estimate)}, {self.scale.upper_phrase} {score(best.upper or 0.0)} with "
            f"{best.upper_confidence:.1%} confidence, on {self._rows}."
        )
        promising = [out for out in self.kept_out if out.estimate is not None and out.estimate > self.target]
        if promising:
            better = f"The budget kept out what looks better: {_ways_out(promising)}."
            return GateDecision("OUT_OF_BUDGET", None, f"{text} {better}")
        return GateDecision("FAIL", None, text)

    def _undecided(self) -> str:
        """What the rows leave open, and how many would do."""
        scale, best, score = self.scale, self._best, self.scale.format_score
        first = next(c for c in self._ordered if c.rung == (self.nomination.primary or best.rung))
        expect = first.estimate if first.expected is None else first.expected
        hope = f"{first.rung} is expected to be at {score(expect)}, by valid and test and the other candidates"
        if first.needed_n is not None:
            hope += f": about {first.needed_n:,} test rows in all would then pass it in 80% of next verdicts"
        else:
            hope += (
                f", which is not {'below' if scale.lower_is_better else 'above'} the target: no number of rows is "
                "promised to show that it clears it"
            )
        behind = [c.rung for c in self._ordered if not c.reached and c.lower is not None and c.lower > self.target]
        text = (
            f"No {'reached ' if behind else ''}nominee's {self._clears} of {self._bar} on {self._rows}, and not every "
            f"{scale.upper_bound} is {'above' if scale.lower_is_better else 'below'} it (best: {best.rung}, "
            f"{score(best.estimate)}, {'up to' if scale.lower_is_better else 'from'} {score(best.lower or 0.0)}); "
            f"{hope}."
        )
        if behind:
            text += (
                f" {', '.join(behind)} would clear it alone, and was not reached in the order that was fixed before."
            )
        if 0 < self.target < 1:
            enough = groups_needed(self.target, first.lower_confidence)
            if self.groups < min(self.n, enough):
                shown = f"{enough} groups without a failure would show {self._bar}"
                text += f" With so few groups, some that fail may have been missed: {shown}."
        undecided = [r.reason for r in self.requirements.get(first.rung, ()) if r.holds is not True]
        if undecided:
            text += f" Nor is shown of {first.rung}: {'; '.join(undecided)}."
        return text


def _name(condition: Condition) -> str:
    if isinstance(condition, Guard):
        return f"{condition.guard} guard: "
    return "requirement: " if isinstance(condition, Requirement) else ""


def _ways_out(kept_out: Sequence[BudgetChanges]) -> str:
    hidden = len(kept_out) - WAYS_SHOWN
    named = "; ".join(changes.summary for changes in kept_out[:WAYS_SHOWN])
    return f"{named}; and {hidden} more" if hidden > 0 else named
