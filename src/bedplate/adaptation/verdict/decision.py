"""The verdict of a ladder: its parts (nomination, confirmations, conditions, candidates over the budget) and the
decision that follows from them.

PASS: the cheapest nominee whose lower bound clears the target and whose guards, limits and requirements hold. FAIL:
every upper bound lies below the target (or a condition of the nominee is broken), or no skin could be made whatever the
budget. OUT_OF_BUDGET: nothing fitted the budget, or what did is shown to be below the target and something above it on
valid did not fit. Otherwise INSUFFICIENT_DATA, with the rows that would be needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bedplate.adaptation.context.outcome import RungOutcome, RungResult
from bedplate.adaptation.task.spec import BudgetSpec
from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import atomic_write, read_text
from bedplate.core.processor import is_busy
from bedplate.core.statistics.clusters import groups_needed
from bedplate.evaluation.costs import PLAIN, Scale
from bedplate.report.formatting import at_confidence
from bedplate.report.schema import Confirmation
from bedplate.report.schema_parts import Guard, Limit, Requirement

_KEY_FORMATS = {
    "p95_ms": ("p95 latency", "{:.0f} ms"),
    "usd_per_1k_calls": ("price", "${:.4f} per 1,000 calls"),
    "max_prompt_tokens": ("longest prompt", "{:.0f} tokens"),
}
"""Names and number formats of the budget keys that a candidate can exceed."""
Status = Literal["PASS", "FAIL", "INSUFFICIENT_DATA", "OUT_OF_BUDGET"]
Condition = Guard | Limit | Requirement
POSTPONED = "not judged before a rung with a base has a result"
POSTPONED_ROWS = "not judged before a rung with a base has had the time for more rows"
"""A nomination's reasons for each skin where test stays closed until there is time for a base."""
CHANGES_SHOWN = 3
"""Maximum number of budget changes that the verdict's reason names."""


@dataclass(frozen=True)
class Nominable:
    """A candidate as nomination uses it: its estimate on valid and its measured cost."""

    rung: str
    estimate: float
    design_effect: float
    usd_per_1k_calls: float
    p95_ms: float
    prompt_tokens: int
    broken: str | None = None
    """The guard that it was shown to break before test was opened, and why."""
    row_variance: float | None = None
    """The variance of a row's score, for a metric that is not a share of rows."""
    p95_least_ms: float | None = None
    """The lower bound of `p95_ms`, which must exceed the budget to exclude the candidate. None: `p95_ms` itself."""
    unmet_requirements: tuple[str, ...] = ()
    """Requirements of the target that its estimates on valid do not meet."""


def over(candidate: Nominable, budget: BudgetSpec) -> list[tuple[str, float, float]]:
    """The budget keys that a candidate exceeds, each with its value and the limit."""
    values = {
        "p95_ms": (candidate.p95_ms if candidate.p95_least_ms is None else candidate.p95_least_ms, budget.p95_ms),
        "usd_per_1k_calls": (candidate.usd_per_1k_calls, budget.usd_per_1k_calls),
        "max_prompt_tokens": (candidate.prompt_tokens, budget.max_prompt_tokens),
    }
    return [(key, value, limit) for key, (value, limit) in values.items() if limit is not None and value > limit]


def infeasible(candidate: Nominable, budget: BudgetSpec) -> str | None:
    """Why a candidate exceeds the budget or breaks a guard; None where it does neither."""
    if candidate.broken is not None:
        return candidate.broken
    for key, value, limit in over(candidate, budget):
        name, shape = _KEY_FORMATS[key]
        return f"{name} {shape.format(value)} is over the budget of {shape.format(limit)}"
    return None


@dataclass(frozen=True)
class RequiredChange:
    """A change of one `budget` key: the value given, and the least round value that would admit a candidate."""

    key: str
    given: float
    needed: float


@dataclass(frozen=True)
class BudgetChanges:
    """All budget changes that one candidate needs. estimate: on valid; None where it was not tried. load: the load
    average while its calls were timed, where that exceeded the number of processors."""

    rung: str
    changes: tuple[RequiredChange, ...]
    estimate: float | None = None
    load: float | None = None
    scale: Scale = PLAIN

    @property
    def summary(self) -> str:
        """Such as `p95_ms: 500 → 640 would admit lora (0.912 on valid)`."""
        changes = " and ".join(f"{change.key}: {change.given:g} → {change.needed:g}" for change in self.changes)
        estimate_note = (
            "which was not tried" if self.estimate is None else f"{self.scale.format_score(self.estimate)} on valid"
        )
        load_note = "" if self.load is None else f", timed beside other work at a load average of {self.load:.1f}"
        return f"{changes} would admit {self.rung} ({estimate_note}{load_note})"


def round_up(value: float) -> float:
    """The least number with two significant digits that is not below `value`."""
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
    """Budget changes that would admit candidates measured to be over the budget, and rungs that a limit left out: the
    best estimates first, then the smallest changes.

    limits: values in force for keys that the command line may have set instead of the task file. scale: formats the
    estimates. loads: the load average while a candidate's calls were timed.
    """
    limits_by_key = {**{key: value for key, value in budget.model_dump().items() if value is not None}, **limits}
    proposed: list[BudgetChanges] = []
    for candidate in candidates:
        keys = over(candidate, budget)
        if keys and candidate.broken is None:
            shown = {"p95_ms": candidate.p95_ms}  # the measured value, although its bound excludes the candidate
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

    def rank(admission: BudgetChanges) -> tuple[float, int, float]:
        growth = max(change.needed / change.given for change in admission.changes)
        return -(admission.estimate or 0.0), len(admission.changes), growth

    return sorted(proposed, key=rank)


@dataclass(frozen=True)
class Nomination:
    """The nominees for test, cheapest first. primary: the best of them on valid; its pair with `versus` is the
    superiority claim. reasons: by candidate, why it is or is not nominated."""

    nominees: tuple[str, ...]
    primary: str | None
    versus: str | None
    reasons: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "nominees": list(self.nominees)}

    def write(self, path: Path, results: Mapping[str, RungResult], test: str) -> None:
        """Writes the nomination to disk, with the ids of the nominees' skins and the hash of the test rows."""
        skins = {name: results[name].skin_id for name in self.nominees}
        atomic_write(path, json.dumps({**self.to_json(), "skins": skins, "test": test}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path, results: Mapping[str, RungResult]) -> Nomination:
        """Reads the nomination that an earlier opening of test fixed, which stays in force. DataError for a damaged
        file; UsageError where a nominee's skin is missing."""
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
    """The status, the skin that passed (None for every other status), and the reason, in sentences."""

    status: Status
    rung: str | None
    reason: str


@dataclass
class GateVerdict:
    """The evidence of a verdict. metric, target (a score), confidence (of all verdicts on these rows), n and groups (of
    test) are known at the start.

    guards: of nominees that change their base; limits: of a call's cost and latency; requirements: of the target in
    addition to its bar. An undecided condition prevents PASS, but does not cause FAIL. kept_out: candidates that the
    budget excluded, the best first. enough_minutes: the budget with which a rung on a base is expected to be judged.
    scale: formats scores.
    """

    nomination: Nomination
    confirmations: Sequence[Confirmation] = ()
    _: KW_ONLY
    metric: str
    target: float
    confidence: float | None = None
    n: int
    groups: int
    guards: Mapping[str, Sequence[Guard]] = field(default_factory=dict[str, list[Guard]])
    limits: Mapping[str, Sequence[Limit]] = field(default_factory=dict[str, list[Limit]])
    requirements: Mapping[str, Sequence[Requirement]] = field(default_factory=dict[str, list[Requirement]])
    kept_out: Sequence[BudgetChanges] = ()
    enough_minutes: int | None = None
    scale: Scale = PLAIN

    @cached_property
    def decision(self) -> GateDecision:
        """The decision; read it once all evidence is filled in. UsageError for a nominee without a confirmation."""
        if not self.nomination.nominees:
            return self._without_nominees()
        if {c.rung for c in self.confirmations} != set(self.nomination.nominees):
            raise UsageError("every nominee needs exactly one confirmation")
        return (
            self._passed()
            or self._no_bound()
            or self._conditions_broken()
            or self._all_below()
            or GateDecision("INSUFFICIENT_DATA", None, self._undecided())
        )

    # --- parts of the sentences

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

    def _at(self, level: float) -> str:
        return at_confidence(level, self.confidence, len(self._ordered))

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

    # --- the cases, in the order in which they are checked

    def _without_nominees(self) -> GateDecision:
        why = "; ".join(f"{rung} is {reason}" for rung, reason in self.nomination.reasons.items())
        if self.kept_out:
            reasons = f" ({why})" if why else ""
            enough = self.enough_minutes
            longer = "" if enough is None else f" Continue with --budget {enough}m: what is finished is kept."
            text = f"Nothing fits the budget: {_changes_text(self.kept_out)}{reasons}.{longer}"
            if (reasons_given := {*self.nomination.reasons.values()}) & {POSTPONED, POSTPONED_ROWS}:
                rows = " for more than a few rows" if POSTPONED_ROWS in reasons_given else ""
                text = f"No rung with a base had the time{rows}, so test stays closed."
                text += longer or f" Of the budget, {_changes_text(self.kept_out)}."
                text += f" Or judge what there is: --rungs {','.join(self.nomination.reasons)}."
            return GateDecision("OUT_OF_BUDGET", None, text)
        return GateDecision("FAIL", None, f"No skin could be judged: {why or 'no rung made one'}.")

    def _passed(self) -> GateDecision | None:
        """PASS for the first nominee that clears the target and meets its conditions."""
        passing = (c for c in self._ordered if c.passed and c.lower is not None and self._conditions_met(c.rung))
        c, score = next(passing, None), self.scale.format_score
        if c is None or c.lower is None:
            return None
        estimate = score(c.estimate)
        text = (
            f"{c.rung} is the cheapest nominee that clears the bar: {self.metric} {estimate} on {self._rows}, "
            f"{self.scale.lower_phrase} {score(c.lower)} with {self._at(c.lower_confidence)}, target {self._bar}."
        )
        if c.expected is not None and score(min(c.expected, c.estimate)) != estimate:
            text += f" Expect about {score(c.expected)} in use: of several, the one that passes was partly lucky."
        for claim, conditions in (
            ("The further requirements hold", self.requirements.get(c.rung)),
            ("Its guards hold", self.guards.get(c.rung)),
        ):
            if conditions:
                text += f" {claim}: {'; '.join(condition.reason for condition in conditions)}."
        text += "".join(f" Its {limit.reason}." for limit in self.limits.get(c.rung, ()))
        text += "".join(f" {self._passed_over(cheaper)}" for cheaper in self._ordered[: self._ordered.index(c)])
        return GateDecision("PASS", c.rung, text)

    def _passed_over(self, c: Confirmation) -> str:
        """Why a nominee that costs less than the one that passed did not pass, and what would decide it."""
        score, costs_less = self.scale.format_score, f"{c.rung} costs less per call"
        if c.lower is None:
            return f"{costs_less}, but no bound can be given for it ({score(c.estimate)}): {c.reason}."
        bounds = f"{score(c.estimate)}, {self.scale.lower_phrase} {score(c.lower)}"
        if c.lower > self.target and not c.reached:
            return f"{costs_less} and would clear the target alone ({bounds}), but the fixed order ended before it."
        if c.lower > self.target:
            return f"{costs_less} and clears the target ({bounds}), but {self._shortfalls(c.rung)}."
        if c in self._below:
            highest = f"{self.scale.upper_phrase} {score(c.upper or 0.0)}"
            return f"{costs_less}, but is below the target ({score(c.estimate)}, {highest})."
        return f"{costs_less}, but is not shown to clear the target ({bounds}){self._rows_needed(c)}."

    def _rows_needed(self, c: Confirmation) -> str:
        """The number of rows that would show that a nominee clears the target, as the end of a sentence."""
        if c.needed_n is None or c.expected is None:
            return "; no number of rows is promised to show it"
        return (
            f"; about {c.needed_n:,} test rows in all would show it, if {self.scale.format_score(c.expected)} is right"
        )

    def _shortfalls(self, rung: str) -> str:
        """The conditions that a nominee is not shown to meet, and what would decide each."""
        return "; ".join(_shortfall(condition) for condition in self._conditions(rung) if condition.holds is not True)

    def _no_bound(self) -> GateDecision | None:
        """INSUFFICIENT_DATA where the rows of a nominee allow no bound at all."""
        unbounded = next((c for c in self._ordered if c.reason is not None), None)
        if unbounded is None:
            return None
        best, score = self._best, self.scale.format_score
        text = (
            f"No nominee's {self._clears} of {self._bar} on {self._rows} (best estimate: {best.rung}, "
            f"{score(best.estimate)}). No bound can be given for {unbounded.rung}: {unbounded.reason}."
        )
        return GateDecision("INSUFFICIENT_DATA", None, text)

    def _conditions_broken(self) -> GateDecision | None:
        """FAIL where every nominee is below the target or breaks a condition; INSUFFICIENT_DATA where one clears the
        target and a condition of it is not shown to hold."""
        score, below = self.scale.format_score, self._below
        stopped = " ".join(
            f"{c.rung} clears the target ({score(c.estimate)}, {self.scale.lower_phrase} {score(c.lower)}), but "
            f"{self._shortfalls(c.rung)}."
            for c in self._ordered
            if c.passed and c.lower is not None and not self._conditions_met(c.rung)
        )
        broken = " ".join(
            f"{c.rung} does not meet a requirement: {requirement.reason}."
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
            f"{self._at(best.upper_confidence)}, on {self._rows}."
        )
        promising = [out for out in self.kept_out if out.estimate is not None and out.estimate > self.target]
        if promising:
            better = f"The budget excludes what looks better: {_changes_text(promising)}."
            return GateDecision("OUT_OF_BUDGET", None, f"{text} {better}")
        return GateDecision("FAIL", None, text)

    def _undecided(self) -> str:
        """The sentence that says what the rows leave open, and how many rows would decide it."""
        scale, best, score = self.scale, self._best, self.scale.format_score
        first = next(c for c in self._ordered if c.rung == (self.nomination.primary or best.rung))
        behind = [c.rung for c in self._ordered if not c.reached and c.lower is not None and c.lower > self.target]
        text = (
            f"No {'reached ' if behind else ''}nominee's {self._clears} of {self._bar} on {self._rows}, and not every "
            f"{scale.upper_bound} is {'above' if scale.lower_is_better else 'below'} it (best: {best.rung}, "
            f"{score(best.estimate)}, {scale.lower_phrase} {score(best.lower or 0.0)}). {self._outlook(first)}"
        )
        if behind:
            text += f" {', '.join(behind)} would clear it alone, but the order of testing that was fixed ended before."
        if 0 < self.target < 1:
            enough = groups_needed(self.target, first.lower_confidence)
            if self.groups < min(self.n, enough):
                shown = f"{enough} groups without a failure would show {self._bar}"
                text += f" With so few groups, failing ones may have been missed: {shown}."
        undecided = [r.reason for r in self.requirements.get(first.rung, ()) if r.holds is not True]
        if undecided:
            text += f" Requirements that {first.rung} is not shown to meet either: {'; '.join(undecided)}."
        return text

    def _outlook(self, first: Confirmation) -> str:
        """The nominee's expected score, the number of rows that a next verdict needs if it is right, and the power of
        that many rows if the score is at the lower end of its interval."""
        score = self.scale.format_score
        estimate = score(first.estimate if first.expected is None else first.expected)
        text = f"All validation and test rows together put {first.rung} at {estimate}"
        if first.needed_n is None:
            side = "below" if self.scale.lower_is_better else "above"
            return f"{text}, which is not {side} the target: no number of rows is promised to show that it clears it."
        rows = "test rows in all" if first.needed_n > self.n else "fresh test rows"
        text += f": if that is right, a verdict on about {first.needed_n:,} {rows} would pass it 80% of the time"
        if first.expected_low is not None and first.power_at_low is not None:
            end = "upper" if self.scale.lower_is_better else "lower"
            text += f"; if it is {score(first.expected_low)}, the {end} end of an 80% interval, "
            text += f"{first.power_at_low:.0%} of the time"
        return f"{text}."


def _shortfall(condition: Condition) -> str:
    """A condition that is broken or undecided, as the end of a sentence, and what would decide it."""
    state = "is undecided" if condition.holds is None else "is not met"
    if isinstance(condition, Guard):
        return f"the {condition.guard} guard {state}: {condition.reason}"
    if isinstance(condition, Requirement):
        return f"a requirement {state}: {condition.reason}"
    upper = condition.upper
    change = None if upper is None else f"{condition.limit}: {condition.budget:g} → {round_up(upper):g}"
    remedies = [f"{change} would admit it"] if change else []
    if condition.holds is None:
        more = condition.needed > condition.calls  # else they are calls of too few rows
        remedies = [f"about {condition.needed:,} calls would decide (`adapt.budget.p95_calls`)"] if more else []
        remedies += [f"these show {change}"] if change else []
    return f"its {condition.reason}" + (f" ({'; '.join(remedies)})" if remedies else "")


def _changes_text(kept_out: Sequence[BudgetChanges]) -> str:
    hidden = len(kept_out) - CHANGES_SHOWN
    named = "; ".join(changes.summary for changes in kept_out[:CHANGES_SHOWN])
    return f"{named}; and {hidden} more" if hidden > 0 else named
