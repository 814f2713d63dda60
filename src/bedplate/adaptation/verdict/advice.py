"""Advice in a report, in addition to the verdict's reason: candidates that were not tried, and a comparison with a
classical model of the task's labels. Only the skin that passed is recommended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bedplate.adaptation.context.outcome import RungOutcome
from bedplate.adaptation.rungs import in_role
from bedplate.adaptation.verdict.decision import GateVerdict, Status
from bedplate.evaluation.evaluated import compare
from bedplate.evaluation.harness import Evaluation
from bedplate.report.schema_parts import NotTried

CALL_LIMITS = {"p95_ms", "usd_per_1k_calls"}
"""Keys of the budget that limit a call of the skin, not the run of the ladder."""
ALPHA = 0.05
OVER_BUDGET = "because a call is over the budget"


def untried(left_out: Sequence[NotTried], outcomes: Mapping[str, RungOutcome], status: Status) -> str | None:
    """Names the candidates that a larger budget would admit, or a rule of thumb left out, by cause, and their meaning
    for the verdict; None without any, and for OUT_OF_BUDGET, whose reason names them."""
    names: dict[str, list[str]] = {}
    for omission in left_out:
        if omission.what != "rung" or omission.kind == "impossible":
            continue
        needs = outcomes[omission.rung].needs.keys()
        if omission.kind == "rule":
            cause = "by a rule of thumb"
        elif needs & CALL_LIMITS:
            cause = OVER_BUDGET
        else:
            cause = "for lack of money" if "train_usd" in needs else "for lack of time"
        names.setdefault(cause, []).append(omission.rung)
    if not names or status == "OUT_OF_BUDGET":
        return None
    better = "a cheaper skin may be" if status == "PASS" else "a skin that reaches the target may be"
    causes = "; ".join(f"{cause}: {', '.join(rungs)}" for cause, rungs in names.items())
    # a candidate whose calls exceed the budget cannot be the better skin
    return f"Untested {causes}" + (f" ({better} among these)." if names.keys() - {OVER_BUDGET} else ".")


def classical(verdict: GateVerdict, evaluations: Mapping[str, Evaluation], seed: int, *, servable: bool) -> str | None:
    """Compares the classical baseline with the skin that passed, or else with the best nominee, on the same test rows;
    explains why it is not recommended, where it is not measurably worse. evaluations: on test, by candidate; servable:
    whether the baseline has a skin."""
    baseline, nomination = in_role("classical"), verdict.nomination
    judged = verdict.decision.rung or nomination.primary
    if judged is None or judged == baseline or judged not in evaluations or baseline not in evaluations:
        return None
    ours, theirs = evaluations[judged], evaluations[baseline]
    comparison = compare(ours, theirs, seed)
    score, p_value = theirs.scale.format_score(theirs.estimate), f"p = {comparison.p_value:.2g}"
    text = f"A classical model of the task's own labels ({baseline}) scores {score} on the same rows"
    if comparison.difference > 0 and comparison.p_value <= ALPHA:
        return f"{text} ({p_value} for the difference)."
    text += f", {'no' if comparison.difference <= 0 else 'not measurably'} worse than {judged} ({p_value})"
    if not servable:
        return f"{text}, but cannot be served: no skin was written for it."
    if baseline in nomination.nominees or baseline not in nomination.reasons:
        return f"{text}."
    return f"{text}, but was {nomination.reasons[baseline]}; fresh test rows with --rungs {baseline} would judge it."
