"""Choosing between prompts on valid by successive halving: all on few rows, the better ones on more, the best on all.

Successive halving: Jamieson & Talwalkar (2016), AISTATS. Rankings use the calibrated answers where answers are labels,
because a preference for a label's words is taken out of the skin as well; what is written is scored as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.rungs.answers import fit_bias, predict_in_time, with_bias
from bedplate.core.errors import TemplateError
from bedplate.core.files import append_jsonl, read_jsonl, sha256_json
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import evaluate_predictions
from bedplate.inference.predict.predictor import Prediction
from bedplate.skins.lookup_index import Neighbours, Passages
from bedplate.skins.output import Output
from bedplate.skins.prompt import Demonstration, Prompt, prompt_and_longest_answer
from bedplate.skins.skin import Skin


@dataclass
class Variant:
    """One prompt to try, and what it has answered so far. neighbours, embedder: for a skin that chooses its
    demonstrations for each call, and the base that does it (None: the main one)."""

    name: str
    prompt: Prompt
    output: Output
    demonstrations: tuple[Demonstration, ...] = ()
    neighbours: Neighbours | None = None
    passages: Passages | None = None
    embedder: str | None = None
    predictions: list[Prediction | None] = field(default_factory=list["Prediction | None"])
    bias: tuple[float, ...] = ()
    estimate: float = 0.0
    raw_estimate: float = 0.0
    first: tuple[int, float, float] | None = None
    """Rows of the first stage, and the estimates there: calibrated (where there are labels), and as the model
    answered."""
    failure: str | None = None

    @property
    def key(self) -> str:
        """Names what the variant asks, whatever it is called."""
        pool, index = self.neighbours, self.passages
        return sha256_json(
            {
                "prompt": [self.prompt.template, self.prompt.format, self.prompt.system],
                "output": self.output.model_dump(mode="json"),
                "demonstrations": [
                    [dict(demonstration.inputs), demonstration.answer] for demonstration in self.demonstrations
                ],
                "passages": None if index is None else [self.embedder, index.digest, index.k, index.depth],
                "pool": None if pool is None else [self.embedder, len(pool), pool.k, pool.order, pool.depth],
            }
        )


@dataclass(frozen=True)
class HalvingStage:
    """Look at each surviving variant on the first `rows` rows (None: all), then keep the best `survivors`."""

    rows: int | None
    survivors: int


def stages_for(n: int, first: int, survivor_counts: Sequence[int] = (2, 1)) -> list[HalvingStage]:
    """Halving stages for `n` rows: `first` rows, growing 2.5-fold, the last stage on all rows for the winner."""
    stages: list[HalvingStage] = []
    rows = first
    for survivors in survivor_counts:
        if rows < n:
            stages.append(HalvingStage(rows, survivors))
        rows = round(rows * 2.5)
    if not stages or n <= first:
        return [HalvingStage(None, 1)]
    if stages[-1].survivors != 1:
        stages[-1] = HalvingStage(stages[-1].rows, 1)
    return [*stages, HalvingStage(None, 1)]


def first_rows_of(context: Context, usual: int) -> int:
    """Rows of the first stage: `usual`, or as few as 16 where a row takes so long that all stages would."""
    return usual if context.labels else max(16, usual // 4)


def row_cost(stages: Sequence[HalvingStage], variants: int, n: int) -> int:
    """How many rows are asked in all."""
    total, scored_rows = 0, 0
    for stage in stages:
        rows = n if stage.rows is None else stage.rows
        total += variants * (rows - scored_rows)
        variants, scored_rows = min(variants, stage.survivors), rows
    return total


def choose(
    context: Context, variants: Sequence[Variant], stages: Sequence[HalvingStage], answers_dir: Path | None = None
) -> tuple[Variant, list[Example], list[dict[str, Any]]]:
    """The winner with its answers on all of valid (in the returned order), and one row for everything that was tried.

    answers_dir: a directory where answers are kept as they come, so that an interrupted search asks nothing twice.
    Raises TemplateError when no variant can be used with this base.
    """
    best, order, tried = halve(context, variants, stages, answers_dir)
    return best[0], order, tried


def halve(
    context: Context, variants: Sequence[Variant], stages: Sequence[HalvingStage], answers_dir: Path | None = None
) -> tuple[list[Variant], list[Example], list[dict[str, Any]]]:
    """Like `choose`, with all that the last stage keeps, best first."""
    order = context.ordered(context.valid, "search")
    alive = list(variants)
    tried: dict[str, dict[str, Any]] = {}
    for stage in stages:
        rows = len(order) if stage.rows is None else min(stage.rows, len(order))
        for variant in alive:
            _extend(context, variant, order[:rows], answers_dir)
            tried[variant.name] = _row(variant, rows)
        alive = [v for v in alive if v.failure is None]
        if not alive:
            raise TemplateError(f"no prompt works with this base: {variants[0].failure}")
        alive = sorted(alive, key=lambda v: (-v.estimate, -v.raw_estimate, variants.index(v)))[: stage.survivors]
    return alive, order, list(tried.values())


def spread(variants: Sequence[Variant]) -> dict[str, Any]:
    """How much the way of asking matters: the lowest, middle and highest estimate on the rows that every variant has
    answered, those of the first stage; calibrated, and as the model answered."""
    first_scores = [v.first for v in variants if v.first is not None and v.failure is None]
    if not first_scores:
        return {}
    rows, calibrated, raw = zip(*first_scores, strict=True)
    ranges = {"calibrated": _range(calibrated), "uncalibrated": _range(raw)}
    return {"variants": len(rows), "n": rows[0], "split": "valid", **ranges}


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}


def _extend(context: Context, variant: Variant, rows: Sequence[Example], answers_dir: Path | None) -> None:
    """Ask the rows that are new to the variant, then calibrate (labels) and score on all it has seen."""
    path = None if answers_dir is None else answers_dir / f"{variant.key}.jsonl"
    if path is not None and not variant.predictions:
        variant.predictions = _read_answers(path)[: len(rows)]
    new = rows[len(variant.predictions) :]
    try:
        if new:
            answers = _predict(context, variant, new)
            variant.predictions += answers
            if path is not None:
                append_jsonl(path, [{"answer": None if answer is None else asdict(answer)} for answer in answers])
    except TemplateError as error:
        variant.failure = error.message
        return
    targets = [e.target for e in rows]
    variant.raw_estimate = variant.estimate = evaluate_predictions(context.task, rows, variant.predictions).estimate
    if variant.output.label_texts:
        variant.bias = fit_bias(variant.predictions, targets, context.labels)
        biased = with_bias(variant.predictions, variant.output.with_bias(variant.bias))
        variant.estimate = evaluate_predictions(context.task, rows, biased).estimate
        if variant.raw_estimate >= variant.estimate:  # likelihood is not the metric: a bias that does not help is none
            variant.bias, variant.estimate = (0.0,) * len(context.labels), variant.raw_estimate
    variant.first = variant.first or (len(rows), variant.estimate, variant.raw_estimate)


def _predict(context: Context, variant: Variant, rows: Sequence[Example]) -> list[Prediction | None]:
    skin = variant_skin(context, "search", variant, variant.output)
    with context.predictor(skin) as predictor:
        return predict_in_time(context, predictor, rows)


def variant_skin(context: Context, rung: str, variant: Variant, output: Output) -> Skin:
    return context.skin(
        rung,
        variant.prompt,
        output,
        demonstrations=variant.demonstrations,
        neighbours=variant.neighbours,
        passages=variant.passages,
        embedder=variant.embedder,
    )


def _read_answers(path: Path) -> list[Prediction | None]:
    """What an interrupted search had been told already."""
    if not path.is_file():
        return []
    answers = [row["answer"] for row in read_jsonl(path, allow_torn_tail=True)]
    return [None if answer is None else Prediction(**answer) for answer in answers]


def _row(variant: Variant, rows: int) -> dict[str, Any]:
    if variant.failure is not None:
        return {"name": variant.name, "n": 0, "split": "valid", "failure": variant.failure}
    estimates = {"estimate": variant.estimate, "uncalibrated": variant.raw_estimate}
    return {"name": variant.name, **estimates, "n": rows, "split": "valid"}


def prompt_limit(context: Context) -> int:
    """Tokens that a prompt may have, with its answer where that follows it: those of the budget, at most the base's
    context."""
    budget = context.spec.budget.max_prompt_tokens
    context_length = context.model.base.spec.context_length
    return context_length if budget is None else min(budget, context_length)


def room_beside(context: Context, prompt: Prompt, output: Output) -> int:
    """Prompt tokens that are left beside the longest input of valid and its answer."""
    longest = max(context.valid, key=lambda e: sum(map(len, e.texts.values())))
    prompt_tokens, answer = prompt_and_longest_answer(prompt, context.model.tokenizer, longest.inputs, output)
    base = context.model.base
    taken_by_answer = base.spec.context_length - base.prompt_room(answer)
    return prompt_limit(context) - len(prompt_tokens) - taken_by_answer
