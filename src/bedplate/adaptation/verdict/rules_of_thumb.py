"""Rules of thumb about prompting and tuning: predictions recorded before the ladder runs, and scored afterwards.

They determine the order of the ladder, and do not affect the verdict. That more than about 1,000 good labels, long
prompts and a stable structure of the answer favour tuning is common advice (e.g.
https://platform.openai.com/docs/guides/fine-tuning); each run records whether it held on its task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungOutcome, Tested
from bedplate.adaptation.rungs import in_role, rung_of
from bedplate.adaptation.rungs.rung import Side
from bedplate.core.files import atomic_write
from bedplate.evaluation.evaluated import compare
from bedplate.evaluation.harness import Evaluation
from bedplate.evaluation.slices import on_shared_rows

PREDICTIONS_FILE = "predictions.json"
MANY_LABELS = 1000
LONG_PROMPT = 512
SHOTS = 8
SAME_COST = 0.05
"""Relative difference below which the costs of two calls count as equal."""

Favoured = Literal["tuning", "prompting"]
Claim = Literal["tuned_beats_prompted", "prompted_beats_tuned", "tuned_is_cheaper"]
RuleOutcome = Literal["true", "false", "undecided", "not_tested"]


@dataclass(frozen=True)
class Expectation:
    """The prediction of one rule for this task, with its reason. `claim` is what is tested afterwards."""

    rule: str
    prediction: str
    because: str
    favours: Favoured
    claim: Claim


def expect(context: Context) -> list[Expectation]:
    """The rules' predictions, from the task alone, before any model is run."""
    labels, structure, tokens = len(context.train), context.task.output.form.structure, _few_shot_tokens(context)
    is_rich = labels > MANY_LABELS
    because = f"there are {labels:,} labels, {'' if is_rich else 'not '}more than {MANY_LABELS:,}"
    tuning_wins = "the best tuned skin beats the best prompted one"
    prompting_wins = "the best prompted skin beats the best tuned one"
    expectations = [
        Expectation("labels", tuning_wins, because, "tuning", "tuned_beats_prompted")
        if is_rich
        else Expectation("labels", prompting_wins, because, "prompting", "prompted_beats_tuned")
    ]
    if tokens > LONG_PROMPT:
        cheaper = f"a call of the best tuned skin costs less than one of {in_role('examples')}"
        because = f"a prompt with {SHOTS} examples has about {tokens:,.0f} tokens, more than {LONG_PROMPT}"
        expectations.append(Expectation("prompt length", cheaper, because, "tuning", "tuned_is_cheaper"))
    if structure is not None:
        because = f"an answer is {structure}"
        expectations.append(Expectation("structure", tuning_wins, because, "tuning", "tuned_beats_prompted"))
    return expectations


def favoured(expectations: Sequence[Expectation]) -> Favoured:
    """The side that most rules favour; the number of labels breaks a tie."""
    tuning = sum(expectation.favours == "tuning" for expectation in expectations)
    if 2 * tuning == len(expectations):
        return expectations[0].favours
    return "tuning" if 2 * tuning > len(expectations) else "prompting"


def record_predictions(context: Context) -> list[Expectation]:
    """Writes the predictions to a file before the first rung runs, and returns them. They depend on the task alone, so
    a resumed run predicts the same."""
    expectations = expect(context)
    text = json.dumps([asdict(expectation) for expectation in expectations], indent=1, ensure_ascii=False) + "\n"
    atomic_write(context.out / PREDICTIONS_FILE, text)
    return expectations


def score(
    expectations: Sequence[Expectation], outcomes: Mapping[str, RungOutcome], tested: Mapping[str, Tested], seed: int
) -> list[dict[str, Any]]:
    """Scores each expectation: `held` ("true", "false", "undecided" or "not_tested") and the evidence.

    A rule compares how the two sides use the labels: it is not tested where one side has no rung that learned from
    them. Quality: the paired comparison of the best skin of each side, on test where both were tested, else on valid,
    where the best of several reads slightly high; undecided unless the 95% interval excludes zero. Costs: measured
    calls.
    """
    scored: list[dict[str, Any]] = []
    for expectation in expectations:
        tuned, prompted = (_best(outcomes, _on_side(outcomes, side)) for side in SIDES)
        if expectation.claim == "tuned_is_cheaper":
            outcome, rests_on = _cheaper(tuned, outcomes)
        else:
            outcome, rests_on = _better(tuned, prompted, outcomes, tested, seed)
            if expectation.claim == "prompted_beats_tuned" and outcome in ("true", "false"):
                outcome = "false" if outcome == "true" else "true"
        values = {key: value for key, value in asdict(expectation).items() if key != "claim"}
        scored.append({**values, "held": outcome, "rests_on": rests_on})
    return scored


SIDES: dict[Side, str] = {"weights": "tuned", "prompt": "prompted"}


def _on_side(outcomes: Mapping[str, RungOutcome], side: Side) -> list[str]:
    """The candidates of rungs on this side that have a learning curve."""
    traits = {name: rung_of(name).traits for name in outcomes}
    return [name for name, rung_traits in traits.items() if rung_traits.side == side and rung_traits.no_curve is None]


def _best(outcomes: Mapping[str, RungOutcome], names: Sequence[str]) -> str | None:
    """The candidate with the best estimate on valid, on any base."""
    results = {name: outcomes[name].result for name in names}
    estimates = {name: result.evaluation.estimate for name, result in results.items() if result is not None}
    return max(estimates, key=lambda name: estimates[name]) if estimates else None


def _better(
    tuned: str | None,
    prompted: str | None,
    outcomes: Mapping[str, RungOutcome],
    tested: Mapping[str, Tested],
    seed: int,
) -> tuple[RuleOutcome, str]:
    for side, adjective in SIDES.items():
        learners = [name for name in _on_side(outcomes, side) if rung_of(name).traits.learns]
        if all(outcomes[name].result is None for name in learners):
            why = "; ".join(f"{name}: {outcomes[name].reason}" for name in learners) or "none was on the ladder"
            return "not_tested", f"no {adjective} rung used the labels ({why})"
    assert tuned is not None
    assert prompted is not None
    on_test = tuned in tested and prompted in tested
    pair: list[Evaluation] = []
    for name in (tuned, prompted):
        result = outcomes[name].result
        assert result is not None
        pair.append(tested[name].evaluation if on_test else result.evaluation)
    comparison = compare(*on_shared_rows(pair[0], pair[1]), seed)
    low, high = comparison.interval
    outcome: RuleOutcome = "true" if low > 0 else "false" if high < 0 else "undecided"
    to_difference = pair[0].scale.difference
    low, high = sorted((to_difference(low), to_difference(high)))
    difference = f"{to_difference(comparison.difference):+.3f} ({low:+.3f} to {high:+.3f})"
    return outcome, f"{tuned} minus {prompted} is {difference} on {comparison.n} rows of {comparison.split}"


def _cheaper(tuned: str | None, outcomes: Mapping[str, RungOutcome]) -> tuple[RuleOutcome, str]:
    few_shot = _best(outcomes, [name for name in outcomes if rung_of(name).traits.role == "examples"])
    if tuned is None or few_shot is None:
        return "not_tested", f"no {'tuned' if tuned is None else in_role('examples')} rung made a skin"
    ours, theirs = outcomes[tuned].result, outcomes[few_shot].result
    assert ours is not None
    assert theirs is not None
    a, b = ours.latency.mean * 1000, theirs.latency.mean * 1000
    outcome: RuleOutcome = "true" if a < b * (1 - SAME_COST) else "false" if a > b * (1 + SAME_COST) else "undecided"
    return outcome, f"a call of {tuned} takes {a:.1f} ms and one of {few_shot} {b:.1f} ms, at the same price of an hour"


def _few_shot_tokens(context: Context) -> float:
    """Tokens of a prompt with eight examples: eight rows with their answers, and the row itself."""
    prompt, _ = context.task_prompt()
    tokenizer = context.model.tokenizer
    sample = context.ordered(context.train, "lengths")[:64]
    rows = [len(prompt.tokens(tokenizer, e.inputs)) for e in sample]
    answers = [len(tokenizer.encode(e.target, parse_special=False)) for e in sample]
    return sum(rows) / len(rows) * (SHOTS + 1) + sum(answers) / len(answers) * SHOTS
