"""Where a skin abstains: below a probability of its own answer that the task gives, or that valid gives for the share
of rows that are to be answered (selective classification, Geifman & El-Yaniv, arXiv 1705.08500)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungResult
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.evaluation.slices import confidence_of
from bedplate.evaluation.task import AbstainSpec
from bedplate.inference.predict.predictor import Prediction
from bedplate.skins.files import read_skin, skin_id, write_skin
from bedplate.skins.output import Abstain


def abstaining(context: Context, result: RungResult) -> RungResult:
    """The rung's skin, and its answers on valid, with the task's abstention; as they are where the task has none.

    What the skin chooses by is not fitted again: only the least sure answers give way. A cascade abstains where the
    skin that it ends with does, and what tells no probabilities never does.
    """
    spec = context.task.output.abstain
    if spec is None or result.skin is None:
        return result
    directory = context.out / result.skin
    skin = read_skin(directory)
    if skin.cascade is not None:
        return replace(result, details={**result.details, **_facts(result.evaluation)})
    sure = [_sure(row.scores, row.prediction) for row in result.evaluation.rows]
    if not any(probability is not None for probability in sure):
        return replace(result, reason=f"{result.reason}; its answers carry no probabilities, so it never abstains")
    below = threshold(spec, [0.0 if probability is None else probability for probability in sure])
    if below == 0.0:
        return replace(result, details={**result.details, **_facts(result.evaluation)})
    output = skin.output.model_copy(update={"abstain": Abstain(below=below, answer=spec.answer)})
    skin = replace(skin, output=output, directory=None)
    write_skin(skin, directory, replace=True)
    by_id = {row.id: row for row in result.evaluation.rows}
    predictions: list[Prediction | None] = []
    for example in context.valid:
        row = by_id[example.id]
        if row.prediction is None:
            predictions.append(None)
            continue
        confidence = _sure(row.scores, row.prediction)
        answer = spec.answer if confidence is not None and confidence < below else row.prediction
        predictions.append(Prediction(answer, answer, row.scores or {}, seconds=row.seconds or 0.0))
    evaluation = evaluate_predictions(context.task, context.valid, predictions, seed=context.seed)
    facts = _facts(evaluation) | {"abstains_below": below}
    right = evaluation.answered
    return replace(
        result,
        evaluation=evaluation,
        skin_id=skin_id(skin),
        reason=(
            f"{result.reason}; abstains below a probability of {below:.3f}, answers {evaluation.coverage:.0%} of valid"
            f"{'' if right is None else f', {right:.1%} of them rightly'}"
        ),
        details={**result.details, **facts},
    )


def threshold(spec: AbstainSpec, sure: Sequence[float]) -> float:
    """The probability below which answers are withheld: the task's own, or the highest that leaves at least `coverage`
    of these rows answered."""
    if spec.min_confidence is not None:
        return spec.min_confidence
    assert spec.coverage is not None
    answered = math.ceil(spec.coverage * len(sure) - 1e-9)
    return float(np.sort(np.asarray(sure))[::-1][answered - 1])


def _sure(scores: dict[str, float] | None, prediction: str | None) -> float | None:
    """The probability of a row's own answer, as the skin itself compares it; None where it tells none."""
    if not scores or prediction is None or prediction not in scores:
        return None
    return confidence_of(scores, prediction)


def _facts(evaluation: Evaluation) -> dict[str, float | None]:
    return {"coverage": evaluation.coverage, "answered": evaluation.answered}
