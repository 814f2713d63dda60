"""The gate: nominates candidates for test, and bounds their scores there. Pure functions of evaluations.

1. `nominate`: at most three candidates that fit the budget, by their estimates on valid.
2. `order_of`: the order in which nominees are tested, where the task asks for one; Holm (1979) has none.
3. `confirm`: bounds on test with the family-wise error held: Holm below, Bonferroni above for a FAIL.
4. `limits`: the latency of single calls on test, against the budget.
5. `compare_with`: each nominee against the baseline on the same test rows.
6. `decision.GateVerdict` puts these together and decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from bedplate.adaptation.context.outcome import SLOW, BoundedEstimate, Latency
from bedplate.adaptation.task.spec import AdaptSpec, BudgetSpec, Testing
from bedplate.adaptation.verdict.decision import Nominable, Nomination, infeasible
from bedplate.core.display import confidence_text
from bedplate.core.errors import DataError
from bedplate.core.statistics import multiplicity, proportions, unequal
from bedplate.core.statistics.clusters import units_to_show
from bedplate.core.statistics.multiplicity import spent_alpha
from bedplate.evaluation.costs import PLAIN, Scale
from bedplate.evaluation.evaluated import MINIMUM_LABEL_GROUPS, PairedComparison, compare
from bedplate.evaluation.examples import TestHandle
from bedplate.evaluation.harness import Evaluation
from bedplate.evaluation.metrics import METRICS
from bedplate.evaluation.task import Task
from bedplate.report.schema import Confirmation
from bedplate.report.schema_parts import Limit

MAX_NOMINEES = 3


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
    """Nominates at most three feasible candidates: the cheapest that look good enough, and always the best of these on
    valid.

    Good enough: were the valid estimate the truth, `test_n` rows would clear the target at least half the time after
    Holm, and the further requirements are met on valid. Where no candidate is, those above the target that meet the
    requirements; where none is, the best alone (more would only cost power), of those that meet them if there are any.
    baseline: the candidate that the best nominee is claimed to be better than. Estimates and target are scores,
    formatted by `scale`.
    """
    excluded = {candidate.rung: infeasible(candidate, budget) for candidate in candidates}
    reasons = {rung: f"not feasible: {reason}" for rung, reason in excluded.items() if reason is not None}
    feasible = [candidate for candidate in candidates if excluded[candidate.rung] is None]
    if not feasible:
        return Nomination((), None, None, reasons)
    level = multiplicity.simultaneous(confidence, MAX_NOMINEES)
    whole = [c for c in feasible if not c.unmet_requirements]
    likely = [c for c in whole if _likely_to_pass(c, target, level, test_n)]
    above_target = [c for c in whole if c.estimate > target]
    best = max(whole or feasible, key=lambda c: (c.estimate, -c.usd_per_1k_calls))
    pool = likely or above_target or [best]
    by_cost = sorted(pool, key=lambda c: (c.usd_per_1k_calls, -c.estimate, c.rung))
    chosen = by_cost[:MAX_NOMINEES]
    if best in pool and best not in chosen:
        chosen = [*chosen[: MAX_NOMINEES - 1], best]
    for candidate in feasible:
        reasons[candidate.rung] = _nomination_reason(candidate, chosen, pool, target, scale)
    primary = max(chosen, key=lambda c: (c.estimate, -c.usd_per_1k_calls)).rung
    return Nomination(tuple(c.rung for c in chosen), primary, None if primary == baseline else baseline, reasons)


def _likely_to_pass(candidate: Nominable, target: float, level: float, test_n: int) -> bool:
    effect = max(candidate.design_effect, 1.0)
    estimate = min(max(candidate.estimate, 0.0), 1.0)  # the price of a call may take it below 0
    needed = multiplicity.needed_n(estimate, target, level, power=0.5, deff=effect, variance=candidate.row_variance)
    return needed is not None and needed <= test_n


def _nomination_reason(
    candidate: Nominable, chosen: Sequence[Nominable], pool: Sequence[Nominable], target: float, scale: Scale
) -> str:
    score_note = f"{scale.format_score(candidate.estimate)} on valid"
    missed = f"on valid it does not meet: {'; '.join(candidate.unmet_requirements)}"
    if candidate in chosen:
        short = f" ({missed})" if candidate.unmet_requirements else ""
        return f"nominated: {score_note} at ${candidate.usd_per_1k_calls:.4f} per 1,000 calls{short}"
    if candidate in pool:
        return f"not nominated: the {MAX_NOMINEES} places went to cheaper candidates and the best"
    if candidate.estimate <= target:
        return f"not nominated: {score_note} does not reach the target of {scale.bar(target)}"
    if candidate.unmet_requirements:
        return f"not nominated: {missed}"
    return f"not nominated: {score_note} is too close to the target for this many test rows to decide"


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
    one of a next verdict, which may spend `next_alpha` (None: as much as this one). checks: whether a nominee's other
    conditions (its guards) are shown at a confidence; they share the error with the bound. order: of the nominees, for
    testing in sequence, each with the whole error, until the first that fails. claims: the number of claims that a
    nominee misses the bar or another condition; they share the error of an upper bound.
    """
    if not tested:
        return []
    level = multiplicity.simultaneous(1 - alpha, len(tested) * claims)
    unbounded: dict[int, str] = {}

    def lower_of(i: int, at: float) -> float:
        try:
            return tested[i][1].bound(at)
        except unequal.InsufficientGroups as error:
            unbounded[i] = error.message
            return -math.inf

    rung_checks: list[Callable[[float], bool]] = [(checks or {}).get(rung, lambda _: True) for rung, _ in tested]
    bounds = [partial(lower_of, i) for i in range(len(tested))]
    if order is None:
        lower = multiplicity.holm_bounds(bounds, target, 1 - alpha, rung_checks)
    else:
        names = [rung for rung, _ in tested]
        lower = multiplicity.sequence_bounds(
            bounds, target, 1 - alpha, rung_checks, [names.index(rung) for rung in order]
        )
    upper = [None if i in unbounded else judged.bound(level, "upper") for i, (_, judged) in enumerate(tested)]
    confirmations: list[Confirmation] = []
    for i, (rung, evaluation) in enumerate(tested):
        on_valid = valid[rung]
        effect = max(evaluation.design_effect, on_valid.design_effect, 1.0)
        likely = min(max(expected(rung, evaluation, valid), 0.0), 1.0)
        next_confidence = 1 - (alpha if next_alpha is None else next_alpha)
        variance = on_valid.row_variance
        needed = multiplicity.needed_n(likely, target, next_confidence, deff=effect, variance=variance)
        low = None if needed is None else _lower_end(likely, on_valid, evaluation)
        power = None
        if low is not None and needed is not None:
            power = multiplicity.power_at(low, needed, target, next_confidence, effect, variance)
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
                needed_n=needed,
                expected_low=low,
                power_at_low=power,
                reason=unbounded.get(i),
            )
        )
    return confirmations


def expected(name: str, test: BoundedEstimate, valid: Mapping[str, BoundedEstimate]) -> float:
    """Shrinkage estimate of a nominee's true score, from valid and test together.

    The best of several estimates reads too high, and so does one that is reported because it passed. The estimate on
    valid is shrunk toward the mean of all candidates by empirical Bayes (Efron & Morris 1975, JASA 70:311) and then
    averaged with the one on test, weighted by effective rows: weighted by their own variances, the higher one would
    count more, as a share near 1 varies less. valid: all candidates that the nominee was chosen from.
    """
    valid_estimate, variance = valid[name].estimate, _variance(valid[name])
    shrunk = valid_estimate
    if len(valid) > 1:
        read = np.array([candidate.estimate for candidate in valid.values()])
        noise = float(np.mean([_variance(candidate) for candidate in valid.values()]))
        spread = max(0.0, float(read.var(ddof=1)) - noise)
        shrunk = float(read.mean()) + spread / (spread + variance) * (valid_estimate - float(read.mean()))
    rows = [measured.n / max(measured.design_effect, 1.0) for measured in (valid[name], test)]
    return (rows[0] * shrunk + rows[1] * test.estimate) / sum(rows)


def _variance(estimated: BoundedEstimate) -> float:
    """The variance of the estimate; of a share with one row of each outcome added, so that no estimate is certain."""
    return _mean_variance(estimated.estimate, estimated.row_variance, estimated.n) * max(estimated.design_effect, 1.0)


def _mean_variance(estimate: float, row_variance: float | None, n: float) -> float:
    share = (estimate * n + 1) / (n + 2)
    return (share * (1 - share) if row_variance is None else max(row_variance, 1 / n)) / n


LOW_QUANTILE = 0.1
"""The lower end of an 80% interval."""


def _lower_end(likely: float, *read: BoundedEstimate) -> float:
    """The lower end of an 80% interval of an `expected` estimate, from the rows of all estimates in `read`."""
    from scipy.special import ndtri

    rows = sum(measured.n / max(measured.design_effect, 1.0) for measured in read)
    return max(0.0, likely + float(ndtri(LOW_QUANTILE)) * math.sqrt(_mean_variance(likely, read[0].row_variance, rows)))


def order_of(testing: Testing, nomination: Nomination, valid: Mapping[str, BoundedEstimate]) -> list[str] | None:
    """The order in which nominees are tested, fixed on valid; None for Holm, which has none."""
    if testing == "holm":
        return None
    names = list(nomination.nominees)
    return names if testing == "cheapest_first" else sorted(names, key=lambda name: -valid[name].estimate)


def too_few_rows(task: Task, spec: AdaptSpec, rows: int, groups: int) -> str | None:
    """Why no verdict is possible on `rows` test rows in `groups` groups, whatever the skin; None where one is."""
    value, worst = spec.target.value, task.scale.worst_usd
    if value is None or worst is not None:
        return None
    needed = units_to_show(value, 1 - spent_alpha(1 - spec.target.confidence, 1), grouped=groups < rows)
    if groups < rows or task.scorer.scoring not in ("binary", "answered"):
        needed = max(needed, unequal.MINIMUM_GROUPS)
    if groups >= needed:
        return None
    counted, unit = (
        (f"{rows} test rows in {groups} groups", "groups") if groups < rows else (f"{rows} test rows", "rows")
    )
    return (
        f"no PASS is possible on {counted}: at least {needed} {unit} are needed to show {task.metric_name} {value:g}. "
        "Label more, or lower the bar; the run goes on, to INSUFFICIENT_DATA at best"
    )


def too_rare_label(task: Task, test: TestHandle) -> str | None:
    """Why no verdict is possible by a metric that weighs every label alike: a label is too rare in test. None if one
    is. DataError for a label that no row of test has, since then no skin can be judged."""
    labels = task.output.labels or ()
    if not labels or not isinstance(task.metric, str) or not METRICS[task.metric].per_label:
        return None
    counts = test.label_groups(task.output.form.several_labels)
    label, unit = min(labels, key=lambda name: counts[name]), "rows" if test.groups == test.n else "groups"
    if counts[label] >= MINIMUM_LABEL_GROUPS:
        return None
    reason = (
        f"no verdict is possible by {task.metric}, which weighs every label alike: of {test.groups:,} test {unit} "
        f"{counts[label]} have the label {label!r}, and at least {MINIMUM_LABEL_GROUPS} must. Label more, take it off "
        "output.labels, or measure accuracy"
    )
    if not counts[label]:
        raise DataError(reason)
    return f"{reason}; the run goes on, to INSUFFICIENT_DATA at best"


def testing_question(testing: Testing, nomination: Nomination) -> dict[str, str]:
    """The procedure's part of a verdict's question: empty for Holm, and for one nominee, which all procedures test
    alike. The best of several procedures on the same rows would pass too often."""
    return {} if testing == "holm" or len(nomination.nominees) < 2 else {"testing": testing}


def limits(spec: AdaptSpec, timed: Latency, confidence: float, claims: int = 1) -> list[Limit]:
    """The budget's latency limit on a nominee's single calls. confidence, claims: as for `p95_limit`."""
    budget = spec.budget.p95_ms
    return [] if budget is None else [p95_limit(timed, budget, confidence, claims)]


def p95_limit(timed: Latency, budget_ms: float, confidence: float, claims: int = 1) -> Limit:
    """Whether the 95th percentile of single calls is under the budget: shown to be, shown not to be, or undecided.

    confidence: the nominee's, as for its quality, since PASS requires both. claims: the number of claims that a nominee
    misses a condition, which share the error of the lower bound.
    """
    shared, limit = multiplicity.simultaneous(confidence, claims), budget_ms / 1000
    bounds = timed.p95_bounds(shared, limit)[0], timed.p95_bounds(confidence, limit)[1]
    lower, upper = (None if bound is None else 1000 * bound for bound in bounds)
    needed, calls, worth = proportions.values_needed(SLOW, confidence), len(timed.seconds), timed.worth(limit)
    observed = f"p95 of {calls} calls" + (f" in {max(timed.spread, 1):.0f} s" if timed.spread else "")
    observed += f", worth {worth:.0f} independent ones," if worth < calls - 0.5 else ""
    observed += f" is {1000 * timed.p95:.0f} ms"
    budget = f"the budget of {budget_ms:g} ms"
    if upper is not None and upper <= budget_ms:
        within_budget, bounds_note = True, f"at most {upper:.0f} ms with {confidence_text(confidence)}, within {budget}"
        bounds_note += " (slow spells outside of that time are not in it)" if timed.spread else ""
    elif lower is not None and lower > budget_ms:
        within_budget, bounds_note = False, f"at least {lower:.0f} ms with {confidence_text(shared)}, over {budget}"
    elif worth < needed:
        least = f"{needed} independent calls are the least that can show"
        within_budget, bounds_note = None, f"and {least} {budget} to be kept"
        bounds_note += f": time {needed} different rows, not {timed.rows}" if (timed.rows or needed) < needed else ""
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
        worth=worth,
        needed=needed if within_budget is not None else _deciding_calls(timed, limit, needed, worth, confidence),
        reason=f"{observed}, {bounds_note}",
    )


def _deciding_calls(timed: Latency, limit: float, needed: int, worth: float, confidence: float) -> int:
    """The number of calls that would decide on a limit if the same share of them exceeded it: the present number times
    the smallest sufficient power of 2, at most 64; `needed` where the calls are of too few rows."""
    if (timed.rows or needed) < needed:
        return needed
    calls = max(len(timed.seconds), 1)
    share = sum(seconds > limit for seconds in timed.seconds) / calls

    def decide(n: float) -> bool:
        upper = proportions.binomial_upper(share * n, n, confidence)
        return upper <= 1 - SLOW or proportions.binomial_lower(share * n, n, confidence) > 1 - SLOW

    return calls * next((times for times in (2, 4, 8, 16, 32) if decide(max(times * worth, 1.0))), 64)


def compare_with(
    tested: Mapping[str, Evaluation], nominees: Sequence[str], versus: str | None, seed: int
) -> list[tuple[str, str, PairedComparison, float]]:
    """Each nominee against `versus` on the same test rows: (a, b, comparison, Holm-corrected p-value)."""
    if versus is None or versus not in tested:
        return []
    pairs = [(rung, compare(tested[rung], tested[versus], seed)) for rung in nominees if rung != versus]
    corrected = multiplicity.holm([comparison.p_value for _, comparison in pairs])
    return [(rung, versus, c, p) for (rung, c), p in zip(pairs, corrected, strict=True)]
