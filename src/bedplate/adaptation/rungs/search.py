"""Choosing between prompts on valid by successive halving: all on few rows, the better ones on more, the best on all.

Successive halving: Jamieson & Talwalkar (2016), AISTATS. Rankings use the calibrated answers, because a preference
for a label's words is taken out of the skin as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bedplate.adaptation.context import Context
from bedplate.adaptation.rungs.answers import ask, fit_bias, with_bias
from bedplate.core.errors import TemplateError
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import evaluate_predictions
from bedplate.inference.predict import Prediction
from bedplate.skins.output import LabelOutput
from bedplate.skins.prompt import Demonstration, Prompt


@dataclass
class Variant:
    """One prompt to try, and what it has answered so far."""

    name: str
    prompt: Prompt
    output: LabelOutput
    demonstrations: tuple[Demonstration, ...] = ()
    predictions: list[Prediction | None] = field(default_factory=list["Prediction | None"])
    bias: tuple[float, ...] = ()
    estimate: float = 0.0
    raw_estimate: float = 0.0
    failure: str | None = None


@dataclass(frozen=True)
class Stage:
    """Look at each surviving variant on the first `rows` rows (None: all), then keep the best `keep`."""

    rows: int | None
    keep: int


def stages_for(n: int, first: int, keeps: Sequence[int] = (2, 1)) -> list[Stage]:
    """Halving stages for `n` rows: `first` rows, growing 2.5-fold, the last stage on all rows for the winner."""
    found: list[Stage] = []
    rows = first
    for keep in keeps:
        if rows < n:
            found.append(Stage(rows, keep))
        rows = round(rows * 2.5)
    if not found or n <= first:
        return [Stage(None, 1)]
    if found[-1].keep != 1:
        found[-1] = Stage(found[-1].rows, 1)
    return [*found, Stage(None, 1)]


def row_cost(stages: Sequence[Stage], variants: int, n: int) -> int:
    """How many rows are asked in all."""
    total, done = 0, 0
    for stage in stages:
        rows = n if stage.rows is None else stage.rows
        total += variants * (rows - done)
        variants, done = min(variants, stage.keep), rows
    return total


def choose(
    context: Context, variants: Sequence[Variant], stages: Sequence[Stage]
) -> tuple[Variant, list[Example], list[dict[str, Any]]]:
    """The winner with its answers on all of valid (in the returned order), and one row for everything that was tried.

    Raises TemplateError when no variant can be used with this base.
    """
    order = context.ordered(context.valid, "search")
    alive = list(variants)
    tried: dict[str, dict[str, Any]] = {}
    for stage in stages:
        rows = len(order) if stage.rows is None else min(stage.rows, len(order))
        for variant in alive:
            _extend(context, variant, order[:rows])
            tried[variant.name] = _row(variant, rows)
        alive = [v for v in alive if v.failure is None]
        if not alive:
            raise TemplateError(f"no prompt works with this base: {variants[0].failure}")
        alive = sorted(alive, key=lambda v: (-v.estimate, -v.raw_estimate, variants.index(v)))[: stage.keep]
    return alive[0], order, list(tried.values())


def _extend(context: Context, variant: Variant, rows: Sequence[Example]) -> None:
    """Ask the rows that are new to the variant, then calibrate and score on all it has seen."""
    new = rows[len(variant.predictions) :]
    try:
        if new:
            skin = context.skin(
                "search", "prompt", variant.prompt, variant.output, demonstrations=variant.demonstrations
            )
            predictor = context.predictor(skin)
            try:
                variant.predictions += ask(predictor, new)
            finally:
                predictor.close()
    except TemplateError as error:
        variant.failure = error.message
        return
    targets = [e.target for e in rows]
    variant.raw_estimate = evaluate_predictions(context.task, rows, variant.predictions).estimate
    variant.bias = fit_bias(variant.predictions, targets, context.labels)
    biased = with_bias(variant.predictions, variant.output, variant.bias)
    variant.estimate = evaluate_predictions(context.task, rows, biased).estimate
    if variant.raw_estimate >= variant.estimate:  # likelihood is not the metric: a bias that does not help it is none
        variant.bias, variant.estimate = (0.0,) * len(context.labels), variant.raw_estimate


def _row(variant: Variant, rows: int) -> dict[str, Any]:
    if variant.failure is not None:
        return {"name": variant.name, "n": 0, "split": "valid", "failure": variant.failure}
    return {
        "name": variant.name,
        "estimate": variant.estimate,
        "uncalibrated": variant.raw_estimate,
        "n": rows,
        "split": "valid",
    }
