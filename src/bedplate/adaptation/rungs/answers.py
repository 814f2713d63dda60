"""Asking skins on valid: answers that survive an over-long row, calibration, and the exported skin's own numbers."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import ExportCheck, OutOfTime, RungResult, latency, rows_left_out
from bedplate.core.errors import ContextLengthExceeded
from bedplate.core.progress import progress
from bedplate.core.values import Values
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import AT_ONCE, Evaluation, evaluate_predictions
from bedplate.evaluation.slices import confidence_of
from bedplate.inference.predict.callable_skin import SkinPredictor
from bedplate.inference.predict.predictor import Prediction, Predictor
from bedplate.skins.files import read_skin, skin_id, write_skin
from bedplate.skins.output import Output
from bedplate.skins.skin import Skin


def predict_examples(
    predictor: SkinPredictor, examples: Sequence[Example], *, one_by_one: bool = False, tenant: str = ""
) -> list[Prediction | None]:
    """A prediction for each example; None for one that is too long for the context (it counts as wrong). What another
    tenant has asked before is computed again."""

    def answers(rows: Sequence[Values], *, one_by_one: bool = one_by_one) -> list[Prediction | None]:
        try:
            return list(predictor.predict(rows, one_by_one=one_by_one, tenant=tenant))
        except ContextLengthExceeded:
            return [None] if len(rows) == 1 else [answers([row], one_by_one=False)[0] for row in rows]

    rows = [example.inputs for example in examples]
    return [answer for at in range(0, len(rows), AT_ONCE) for answer in answers(rows[at : at + AT_ONCE])]


STOP_ROWS, STOP_SHARE = 16, 0.1
"""Rows between two looks at the clock, where a fit stops when the time is over: at least these, and as many as take
this share of what is left, since an engine answers many rows at once in less time for each."""


def predict_in_time(
    context: Context,
    predictor: SkinPredictor,
    examples: Sequence[Example],
    then: int = 0,
    by_id: dict[str, Prediction | None] | None = None,
    left: Callable[[], float] | None = None,
) -> list[Prediction | None]:
    """The same, as long as there is time for more (`Context.check_time`). then: rows that a `smallest` fit leaves the
    time for. by_id: filled with the predictions as they come. left: seconds that there still are, if not a fit's.
    OutOfTime."""
    seconds_left = left or (lambda: context.fit_seconds_left)
    limited = not math.isinf(seconds_left())
    predictions, start, size = list[Prediction | None](), time.perf_counter(), STOP_ROWS if limited else len(examples)
    while len(predictions) < len(examples):
        part = examples[len(predictions) : len(predictions) + size]
        predictions += predict_examples(predictor, part)
        if by_id is not None:
            by_id |= zip([example.id for example in part], predictions[-len(part) :], strict=True)
        if not limited:
            break
        seconds_per_row = max(time.perf_counter() - start, 1e-9) / len(predictions)
        size = max(STOP_ROWS, int(STOP_SHARE * max(seconds_left(), 0.0) / seconds_per_row))
        following = then if context.smallest else min(size, len(examples) - len(predictions))
        context.check_time(start, len(predictions), len(examples), following, seconds_left())
    return predictions


LEAST_ANSWERED = 64
"""The fewest rows of valid that a fitted skin is judged on; with fewer answered the fit is discarded."""


def answers_in_time(context: Context, predictor: SkinPredictor, then: int = 0) -> dict[str, Prediction | None]:
    """A fitted skin's predictions on valid, by row id: all rows, or, where time runs out, a random part of at least
    `LEAST_ANSWERED`. then: as in `predict_in_time`. OutOfTime where even those were not answered."""
    examples, by_id = context.ordered(context.valid, "answers"), dict[str, Prediction | None]()
    try:
        predict_in_time(context, predictor, examples, then, by_id)
    except OutOfTime:
        if len(by_id) < min(LEAST_ANSWERED, len(examples)):
            raise
    return by_id


def with_bias(predictions: Sequence[Prediction | None], biased: Output) -> list[Prediction | None]:
    """The predictions of a skin without bias, as the same skin with this output gives them."""

    def read(prediction: Prediction) -> Prediction:
        label, scores = biased.read_scores([prediction.scores[name] for name in biased.all_labels])
        return dataclasses.replace(prediction, output=label, text=label, scores=scores)

    return [p if p is None or not biased.label_texts else read(p) for p in predictions]


def fit_bias(
    predictions: Sequence[Prediction | None], targets: Sequence[str], labels: Sequence[str]
) -> tuple[float, ...]:
    """What to add to the labels' log-scores so that the model's preference for a label's words is taken out.

    Maximum likelihood of softmax(a s + b) with a slope a > 0 and a slight ridge on b; the answer is (b / a), centred:
    the decision is the same. (Calibrate before use, arXiv 2102.09690, with labels instead of content-free inputs.)
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax, softmax

    answered = [(p, labels.index(t)) for p, t in zip(predictions, targets, strict=True) if p is not None]
    if not answered:
        return (0.0,) * len(labels)
    scores = np.array([[p.scores[name] for name in labels] for p, _ in answered])
    scores = np.maximum(scores, -50.0)
    target_codes = np.array([code for _, code in answered])
    onehot = np.eye(len(labels))[target_codes]

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        slope, bias = np.exp(x[0]), x[1:]
        logits = slope * scores + bias
        error = (softmax(logits, axis=1) - onehot) / len(target_codes)
        value = -float(log_softmax(logits, axis=1)[np.arange(len(target_codes)), target_codes].mean()) + 1e-4 * float(
            x @ x
        )
        gradient = np.concatenate([[slope * float((error * scores).sum())], error.sum(axis=0)]) + 2e-4 * x
        return value, gradient

    best = minimize(
        loss, np.zeros(len(labels) + 1), jac=True, method="L-BFGS-B", bounds=[(-4.0, 3.0)] + [(-60, 60)] * len(labels)
    ).x
    bias = best[1:] / np.exp(best[0])
    return tuple(round(float(b), 6) for b in bias - bias.mean())


def own_probability(scores: Mapping[str, float] | None, prediction: str | None) -> float | None:
    """The probability of a row's own answer, as the skin itself compares it; None where it tells none."""
    if not scores or prediction is None or prediction not in scores:
        return None
    return confidence_of(scores, prediction)


def export(skin: Skin, directory: Path) -> Skin:
    """Write the skin and read it back: from here on only what is on disk is judged."""
    write_skin(skin, directory, replace=True)
    return read_skin(directory)


FEWEST_TIMED = 4
"""Single calls that are made however long they take."""


def single_calls(
    predictor: SkinPredictor, sample: Sequence[Example], tenant: str = "timing", seconds: float = math.inf
) -> list[Prediction]:
    """One call after the other, of the rows that fit, as a served skin sees them: new. They may have been asked before,
    and their prompts be cached; another tenant's are not. seconds: after which no more than FEWEST_TIMED are made."""
    predict_examples(predictor, sample[:1], one_by_one=True)  # the first call is never typical
    if math.isinf(seconds):
        return [p for p in predict_examples(predictor, sample, one_by_one=True, tenant=tenant) if p is not None]
    calls, start = list[Prediction](), time.perf_counter()
    for example in progress(sample, "single calls", unit=""):
        if len(calls) >= FEWEST_TIMED and time.perf_counter() - start > seconds:
            break
        calls += [p for p in predict_examples(predictor, [example], one_by_one=True, tenant=tenant) if p is not None]
    return calls


def agreement(
    sample: Sequence[Example], calls: Sequence[Prediction], chosen_by: Mapping[str, Prediction | None]
) -> ExportCheck:
    """Single calls of a sample against the predictions, by example id, that the skin was chosen by."""
    equal, difference = 0, 0.0
    for example, prediction in zip(sample, calls, strict=True):
        before = chosen_by[example.id]
        assert before is not None
        equal += prediction.output == before.output
        difference = max([difference, *(abs(prediction.scores[k] - before.scores[k]) for k in before.scores)])
    return ExportCheck(len(calls), equal, difference)


def judged(
    context: Context,
    rung: str,
    skin: Skin,
    seconds: float,
    reason: str,
    by_id: Mapping[str, Prediction | None] | None = None,
    *,
    evaluation: Evaluation | None = None,
    skin_context: Context | None = None,
) -> RungResult:
    """The rung's skin written and read back, and what it does on valid: its calls, its longest prompt, its answers.

    by_id, evaluation: those that it was chosen by, where they are known; of a part of valid, where that is all.
    skin_context: the context of the base that it stands on, where the rung made one.
    """
    place = context.out / "skins" / rung
    skin = export(skin, place)
    with (skin_context or context).predictor(skin) as predictor:
        if by_id is None:
            by_id = answers_in_time(skin_context or context, predictor, then=context.test_n)
        sample = context.ordered(context.valid, "latency")[: context.latency_calls]
        sample = [e for e in sample if by_id.get(e.id) is not None]
        calls = single_calls(predictor, sample, seconds=context.timing_limit)
        longest = longest_prompt(predictor, context.valid)
    if evaluation is None:
        asked = [e for e in context.valid if e.id in by_id]
        evaluation = evaluate_predictions(context.task, asked, [by_id[e.id] for e in asked], seed=context.seed)
    n = len(context.valid)
    return RungResult(
        rung=rung,
        evaluation=evaluation,
        latency=latency([call.seconds for call in calls]),
        train_seconds=seconds,
        reason=reason,
        skin=str(place.relative_to(context.out)),
        skin_id=skin_id(skin),
        prompt_tokens=longest,
        export=agreement(sample[: len(calls)], calls, by_id),
        left_out=(rows_left_out(evaluation.n, n, "valid"),) if evaluation.n < n else (),
    )


def longest_prompt(predictor: Predictor, examples: Sequence[Example]) -> int:
    """Tokens of the longest prompt among the examples that fit the context."""
    longest = 0
    for example in examples:
        try:
            longest = max(longest, len(predictor.request(example.inputs).tokens))
        except ContextLengthExceeded:
            continue
    return longest
