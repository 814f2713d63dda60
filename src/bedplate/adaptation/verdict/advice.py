"""What a report says beside the verdict's own sentence: what was not tried, and how a classical model of the task's
labels compares. The only skin that it recommends is the one that passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bedplate.adaptation.context.outcome import RungOutcome
from bedplate.adaptation.rungs import in_role
from bedplate.adaptation.verdict.decision import GateVerdict, Status
from bedplate.evaluation.evaluated import compare
from bedplate.evaluation.harness import Evaluation
from bedplate.report.schema_parts import NotTried

CALL_LIMITS = {"p95_ms", "usd_per_1k_calls"}
"""Keys of the budget that limit one call, not the climb."""
ALPHA = 0.05
OVER_BUDGET = "because a call is over the budget"


def untried(left_out: Sequence[NotTried], outcomes: Mapping[str, RungOutcome], status: Status) -> str | None:
    """What was left out that a budget or a rule of thumb could admit, by cause, and what that means for the verdict;
    None where nothing was, or the verdict is about that itself."""
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
    # what a call's own limits leave out cannot be the skin that is looked for
    return f"Untested {causes}" + (f" ({better} among these)." if names.keys() - {OVER_BUDGET} else ".")


def classical(verdict: GateVerdict, evaluations: Mapping[str, Evaluation], seed: int, *, servable: bool) -> str | None:
    """How the classical baseline compares with the skin that passed, or else with the best nominee, on the same test
    rows; and why it is not the one to serve, where it is not measurably worse. evaluations: on test, by candidate;
    servable: whether the baseline has a skin."""
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
