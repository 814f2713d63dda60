"""The gate: which candidates may be judged on test, and what the verdict is. Pure functions of evaluations.

Holm (1979) over the nominees; levels that Bonferroni holds together for the upper bounds of a FAIL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from bedplate.adaptation.context.estimate import BoundedEstimate, Estimated
from bedplate.adaptation.context.outcome import SLOW, Latency
from bedplate.adaptation.task.spec import AdaptSpec, BudgetSpec, Testing
from bedplate.adaptation.verdict.admission import BudgetChanges
from bedplate.adaptation.verdict.candidate import Nominable, infeasible
from bedplate.adaptation.verdict.expected import expected
from bedplate.core.errors import UsageError
from bedplate.core.statistics import (
    InsufficientGroups,
    groups_needed,
    holm,
    holm_bounds,
    needed_n,
    sequence_bounds,
    simultaneous,
    values_needed,
)
from bedplate.evaluation.comparison import PairedComparison, compare
from bedplate.evaluation.costs import PLAIN, Scale
from bedplate.evaluation.harness import Evaluation
from bedplate.report.schema import Confirmation
from bedplate.report.schema_parts import Requirement
from bedplate.report.schema_plan import Guard, Limit

MOST_NOMINEES = 3
Status = Literal["PASS", "FAIL", "INSUFFICIENT_DATA", "OUT_OF_BUDGET"]
SHOWN = 3
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


def nominate(
    candidates: Sequence[Nominable],
    budget: BudgetSpec,
    *,
    target: float,
    confidence: float,
    test_n: int,
    baseline: str | None = None,
    scale: Scale = PLAIN,
) -> Nomination:
    """At most three feasible candidates: the cheapest that look good enough, and always the best of these on valid.
    baseline: what the best of them is claimed to be better than. Estimates and target are scores, said by `scale`.

    Good enough: with the valid estimate as the truth, `test_n` rows would clear the target at least half the time
    after Holm, and what is required beside it is met on valid. Where none is, those above the target that meet it;
    where none is, the best alone (more would only cost power), of those that meet it if there are any.
    """
    reasons: dict[str, str] = {}
    feasible: list[Nominable] = []
    for candidate in candidates:
        reason = infeasible(candidate, budget)
        if reason is None:
            feasible.append(candidate)
        else:
            reasons[candidate.rung] = f"not feasible: {reason}"
    if not feasible:
        return Nomination((), None, None, reasons)
    level = simultaneous(confidence, MOST_NOMINEES)
    whole = [c for c in feasible if not c.short]
    likely = [c for c in whole if _enough(c, target, level, test_n)]
    above_target = [c for c in whole if c.estimate > target]
    best = max(whole or feasible, key=lambda c: (c.estimate, -c.usd_per_1k_calls))
    pool = likely or above_target or [best]
    by_cost = sorted(pool, key=lambda c: (c.usd_per_1k_calls, -c.estimate, c.rung))
    chosen = by_cost[:MOST_NOMINEES]
    if best in pool and best not in chosen:
        chosen = [*chosen[: MOST_NOMINEES - 1], best]
    for candidate in feasible:
        reasons[candidate.rung] = _why(candidate, chosen, pool, target, scale)
    primary = max(chosen, key=lambda c: (c.estimate, -c.usd_per_1k_calls)).rung
    versus = None if primary == baseline else baseline
    return Nomination(tuple(c.rung for c in chosen), primary, versus, reasons)


def _enough(candidate: Nominable, target: float, level: float, test_n: int) -> bool:
    effect = max(candidate.design_effect, 1.0)
    estimate = min(max(candidate.estimate, 0.0), 1.0)  # the price of a call may take it below 0
    needed = needed_n(estimate, target, level, power=0.5, deff=effect, variance=candidate.row_variance)
    return needed is not None and needed <= test_n


def _why(
    candidate: Nominable, chosen: Sequence[Nominable], pool: Sequence[Nominable], target: float, scale: Scale
) -> str:
    score_note = f"{scale.format_score(candidate.estimate)} on valid"
    short = f" (on valid it is not {'; nor '.join(candidate.short)})" if candidate.short else ""
    if candidate in chosen:
        return f"nominated: {score_note} at ${candidate.usd_per_1k_calls:.4f} per 1,000 calls{short}"
    if candidate in pool:
        return f"not nominated: {MOST_NOMINEES} nominees are taken by cheaper ones and the best"
    if candidate.estimate <= target:
        return f"not nominated: {score_note} does not reach the target of {scale.bar(target)}"
    if candidate.short:
        return f"not nominated: on valid it is not {'; nor '.join(candidate.short)}"
    return f"not nominated: {score_note} is too near the target for the test rows to decide"


def confirm(
    tested: Sequence[tuple[str, BoundedEstimate]],
    valid: Mapping[str, BoundedEstimate],
    *,
    target: float,
    alpha: float,
    next_alpha: float | None = None,
    checks: Mapping[str, Callable[[float], bool]] | None = None,
    order: Sequence[str] | None = None,
    claims: int = 1,
) -> list[Confirmation]:
    """Bounds of the nominees on test with the family-wise error held at `alpha`: Holm below, Bonferroni above.

    `lower` and `upper` are None, with the `reason`, where a nominee's rows allow no bound; it does not pass, and counts
    among the nominees. valid: of all candidates. `needed_n` is for the `expected` estimate, were the nominee the only
    one of a next verdict, which may spend `next_alpha` (as much as this one where it is None). checks: whether what else
    is asked of a nominee (its guards) is shown at a confidence; it shares the error with the bound. order: of the
    nominees, where they are tested one after the other, each with the whole error, until the first that fails. claims:
    that a nominee falls short, of the bar or a requirement: so many share the error of one, and so of an upper bound.
    """
    if not tested:
        return []
    level = simultaneous(1 - alpha, len(tested) * claims)
    unbounded: dict[int, str] = {}

    def lower_of(i: int, at: float) -> float:
        try:
            return tested[i][1].bound(at)
        except InsufficientGroups as error:
            unbounded[i] = error.message
            return -math.inf

    rung_checks = [(checks or {}).get(rung, _nothing_else) for rung, _ in tested]
    bounds = [partial(lower_of, i) for i in range(len(tested))]
    if order is None:
        lower = holm_bounds(bounds, target, 1 - alpha, rung_checks)
    else:
        names = [rung for rung, _ in tested]
        lower = sequence_bounds(bounds, target, 1 - alpha, rung_checks, [names.index(rung) for rung in order])
    upper = [None if i in unbounded else judged.bound(level, "upper") for i, (_, judged) in enumerate(tested)]
    confirmations: list[Confirmation] = []
    for i, (rung, evaluation) in enumerate(tested):
        hope = valid[rung]
        effect = max(evaluation.design_effect, hope.design_effect, 1.0)
        likely = min(max(expected(rung, evaluation, valid), 0.0), 1.0)
        next_confidence = 1 - (alpha if next_alpha is None else next_alpha)
        confirmations.append(
            Confirmation(
                rung=rung,
                estimate=evaluation.estimate,
                lower=None if i in unbounded else lower[i].lower,
                lower_confidence=lower[i].confidence,
                upper=upper[i],
                upper_confidence=level,
                passed=lower[i].passed,
                reached=lower[i].reached,
                expected=likely,
                needed_n=needed_n(likely, target, next_confidence, deff=effect, variance=hope.row_variance),
                reason=unbounded.get(i),
            )
        )
    return confirmations


def order_of(testing: Testing, nomination: Nomination, valid: Mapping[str, Estimated]) -> list[str] | None:
    """The order in which nominees are tested, fixed on valid; None for Holm, which has none."""
    if testing == "holm":
        return None
    names = list(nomination.nominees)
    return names if testing == "cheapest_first" else sorted(names, key=lambda name: -valid[name].estimate)


def _nothing_else(confidence: float) -> bool:
    return True


@dataclass(frozen=True)
class GateDecision:
    """The verdict; `rung` is the skin that passed, or the nominee that came nearest, or None."""

    status: Status
    rung: str | None
    reason: str


def decide(
    nomination: Nomination,
    confirmations: Sequence[Confirmation],
    *,
    metric: str,
    target: float,
    n: int,
    groups: int,
    guards: Mapping[str, Sequence[Guard]] | None = None,
    limits: Mapping[str, Sequence[Limit]] | None = None,
    requirements: Mapping[str, Sequence[Requirement]] | None = None,
    scale: Scale = PLAIN,
    kept_out: Sequence[BudgetChanges] = (),
) -> GateDecision:
    """PASS: the cheapest nominee whose lower bound clears the target and whose guards and limits hold. FAIL: every
    upper bound lies below it (or a guard or limit of the nominee is broken), or no skin could be made whatever the
    budget. OUT_OF_BUDGET: nothing fitted the budget, or what did is shown to be below the target and something above it
    on valid did not; it names the keys and values that would do. Otherwise INSUFFICIENT_DATA, with the rows that would
    be needed.

    guards: of the nominees that change their base; limits: of what a call takes; requirements: what the target asks for
    beside its bar. One that is undecided is no reason to PASS, and none to FAIL. kept_out: what a budget kept out,
    those that look best first. scale: says the scores of the confirmations and the target.
    """
    guards, limits, requirements = guards or {}, limits or {}, requirements or {}
    bar, floor_word, clears = scale.bar(target), scale.lower_phrase, f"{scale.lower_bound} clears the target"
    if not nomination.nominees:
        why = "; ".join(f"{rung} is {reason}" for rung, reason in nomination.reasons.items())
        if kept_out:
            reasons_note = f" ({why})" if why else ""
            return GateDecision("OUT_OF_BUDGET", None, f"Nothing fits the budget: {_ways_out(kept_out)}{reasons_note}.")
        return GateDecision("FAIL", None, f"No skin could be judged: {why or 'no rung made one'}.")
    by_rung = {c.rung: c for c in confirmations}
    if set(by_rung) != set(nomination.nominees):
        raise UsageError("every nominee needs exactly one confirmation")
    ordered = [by_rung[rung] for rung in nomination.nominees]
    best = max(ordered, key=lambda c: c.estimate)
    rows = f"{n} test rows" + (f" in {groups} groups" if groups < n else "")
    conditions: dict[str, list[Guard | Limit | Requirement]] = {
        c.rung: [*requirements.get(c.rung, ()), *guards.get(c.rung, ()), *limits.get(c.rung, ())] for c in ordered
    }
    conditions_met = {c.rung: _all_met(conditions[c.rung]) for c in ordered}
    for c in ordered:
        if c.passed and c.lower is not None and conditions_met[c.rung] is True:
            text = (
                f"{c.rung} is the cheapest nominee whose {clears}: {metric} {scale.format_score(c.estimate)} on "
                f"{rows}, {floor_word} {scale.format_score(c.lower)} with {c.lower_confidence:.1%} confidence, target {bar}."
            )
            if c.expected is not None and scale.format_score(min(c.expected, c.estimate)) != scale.format_score(
                c.estimate
            ):
                text += (
                    f" What passed scores {'low' if scale.lower_is_better else 'high'} by luck as well: with valid and "
                    f"the others, expect {scale.format_score(c.expected)}."
                )
            if requirements.get(c.rung):
                text += f" What else is required holds: {'; '.join(requirement.reason for requirement in requirements[c.rung])}."
            if guards.get(c.rung):
                text += f" Its guards hold: {'; '.join(guard.reason for guard in guards[c.rung])}."
            text += "".join(f" Its {limit.reason}." for limit in limits.get(c.rung, ()))
            return GateDecision("PASS", c.rung, text)
    stopped = " ".join(
        f"{c.rung} clears the target ({scale.format_score(c.estimate)}, {floor_word} {scale.format_score(c.lower)}) and is held back by its "
        f"{_named(condition)}{condition.reason}."
        for c in ordered
        for condition in conditions[c.rung]
        if c.passed and c.lower is not None and condition.holds is not True
    )
    unbounded = next((c for c in ordered if c.reason is not None), None)
    if unbounded is not None:
        text = (
            f"No nominee's {clears} of {bar} on {rows}, and for {unbounded.rung} there is "
            f"none, whatever the estimate (best: {best.rung}, {scale.format_score(best.estimate)}): {unbounded.reason}."
        )
        return GateDecision("INSUFFICIENT_DATA", None, text)
    below = [c for c in ordered if c.upper is not None and c.upper < target]
    missed = f"{scale.upper_bound} lies {'above' if scale.lower_is_better else 'below'} the target"
    broken = " ".join(
        f"{c.rung} does not fulfil what is required: {requirement.reason}."
        for c in ordered
        for requirement in requirements.get(c.rung, ())
        if not c.passed and c not in below and requirement.holds is False
    )
    if (stopped or broken) and all(c in below or conditions_met[c.rung] is False for c in ordered):
        missed_note = f"Every other nominee's {missed}." if below else ""
        return GateDecision("FAIL", None, " ".join(filter(None, (stopped, broken, missed_note))))
    if stopped:
        return GateDecision("INSUFFICIENT_DATA", None, stopped)
    if len(below) == len(ordered):
        text = (
            f"Every nominee's {missed} of {bar}; the best is {best.rung} with {metric} {scale.format_score(best.estimate)}, "
            f"{scale.upper_phrase} {scale.format_score(best.upper or 0.0)} with {best.upper_confidence:.1%} confidence, on {rows}."
        )
        promising = [
            admission for admission in kept_out if admission.estimate is not None and admission.estimate > target
        ]
        if promising:
            return GateDecision(
                "OUT_OF_BUDGET", None, f"{text} The budget kept out what looks better: {_ways_out(promising)}."
            )
        return GateDecision("FAIL", None, text)
    first = by_rung[nomination.primary or best.rung]
    expect = first.estimate if first.expected is None else first.expected
    likely = (
        f"{first.rung} is expected to be at {scale.format_score(expect)}, by valid and test and the other candidates"
    )
    hope = (
        f"{likely}: about {first.needed_n:,} test rows in all would then pass it in 80% of next verdicts"
        if first.needed_n is not None
        else f"{likely}, which is not {'below' if scale.lower_is_better else 'above'} the target: no number of rows is "
        "promised to show that it clears it"
    )
    behind = [c.rung for c in ordered if not c.reached and c.lower is not None and c.lower > target]
    subject = f"No {'reached ' if behind else ''}nominee's {clears}"
    text = (
        f"{subject} of {bar} on {rows}, and not every {scale.upper_bound} is "
        f"{'above' if scale.lower_is_better else 'below'} it (best: {best.rung}, {scale.format_score(best.estimate)}, "
        f"{'up to' if scale.lower_is_better else 'from'} {scale.format_score(best.lower or 0.0)}); {hope}."
    )
    if behind:
        text += f" {', '.join(behind)} would clear it alone, and was not reached in the order that was fixed before."
    if 0 < target < 1 and groups < min(n, enough := groups_needed(target, first.lower_confidence)):
        shown = f"{enough} groups without a failure would show {bar}"
        text += f" With so few groups, some that fail may have been missed: {shown}."
    undecided = [
        requirement.reason for requirement in requirements.get(first.rung, ()) if requirement.holds is not True
    ]
    if undecided:
        text += f" Nor is shown of {first.rung}: {'; '.join(undecided)}."
    return GateDecision("INSUFFICIENT_DATA", None, text)


def _named(condition: Guard | Limit | Requirement) -> str:
    return (
        f"{condition.guard} guard: "
        if isinstance(condition, Guard)
        else "requirement: "
        if isinstance(condition, Requirement)
        else ""
    )


def _ways_out(kept_out: Sequence[BudgetChanges]) -> str:
    hidden_count = len(kept_out) - SHOWN
    named = "; ".join(admission.summary for admission in kept_out[:SHOWN])
    return f"{named}; and {hidden_count} more" if hidden_count > 0 else named


def _all_met(conditions: Sequence[Guard | Limit | Requirement]) -> bool | None:
    """Whether all hold: False where one is broken, None where one is undecided and none broken."""
    if any(condition.holds is False for condition in conditions):
        return False
    return None if any(condition.holds is None for condition in conditions) else True


def limits(spec: AdaptSpec, timed: Mapping[str, Latency]) -> dict[str, list[Limit]]:
    """What the budget asks of the nominees' single calls, by nominee."""
    budget = spec.budget.p95_ms
    if budget is None:
        return {}
    return {name: [p95_limit(calls, budget, spec.target.confidence)] for name, calls in timed.items()}


def p95_limit(timed: Latency, budget_ms: float, confidence: float) -> Limit:
    """Whether the 95th percentile of single calls is under the budget: shown to be, shown not to be, or undecided. Each
    nominee at the full confidence: what a call takes is read anew with every verdict, and PASS needs it beside quality.
    """
    bounds = [None if bound is None else 1000 * bound for bound in timed.p95_bounds(confidence)]
    lower, upper = bounds
    needed, calls = values_needed(SLOW, confidence), len(timed.seconds)
    observed = f"p95 of {calls} calls is {1000 * timed.p95:.0f} ms"
    budget = f"the budget of {budget_ms:g} ms"
    if upper is not None and upper <= budget_ms:
        within_budget, bounds_note = True, f"at most {upper:.0f} ms with {confidence:.1%} confidence, within {budget}"
    elif lower is not None and lower > budget_ms:
        within_budget, bounds_note = False, f"at least {lower:.0f} ms with {confidence:.1%} confidence, over {budget}"
    elif calls < needed:
        within_budget, bounds_note = None, f"and {needed} calls are the least that can show {budget} to be kept"
    else:
        reach = "" if upper is None else f" to {upper:.0f} ms"
        within_budget, bounds_note = None, f"from {lower or 0:.0f}{reach}, so that they do not decide on {budget}"
    return Limit(
        limit="p95_ms",
        holds=within_budget,
        value=1000 * timed.p95,
        lower=lower,
        upper=upper,
        budget=budget_ms,
        confidence=confidence,
        calls=calls,
        needed=needed,
        reason=f"{observed}, {bounds_note}",
    )


def compare_with(
    tested: Mapping[str, Evaluation], nominees: Sequence[str], versus: str | None, seed: int
) -> list[tuple[str, str, PairedComparison, float]]:
    """Each nominee against `versus` on the same test rows: (a, b, comparison, Holm-corrected p-value)."""
    if versus is None or versus not in tested:
        return []
    pairs = [(rung, compare(tested[rung], tested[versus], seed)) for rung in nominees if rung != versus]
    corrected = holm([comparison.p_value for _, comparison in pairs])
    return [(rung, versus, c, p) for (rung, c), p in zip(pairs, corrected, strict=True)]
