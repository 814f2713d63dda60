"""The weights that a base answers in for the whole of a ladder: before the first rung, a sample of valid is asked with
the plain prompt in the base's weights and in each format that is faster here, in turns.

A format is taken where the paired drop on the sample is shown to be below MARGIN, and single calls take clearly less
time. Rungs are then fitted, judged and served in it, as though the task file asked for these weights. The verdict is
about what is served, so that this bound decides how fast a ladder is and no verdict.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import latency
from bedplate.adaptation.context.throughput import CLEARLY, worth_trying
from bedplate.adaptation.rungs.answers import fit_bias, predict_examples, with_bias
from bedplate.adaptation.search import rung_files
from bedplate.adaptation.search.formats import PACKED_BYTES_PER_SECOND, in_turns
from bedplate.adaptation.task.adapt_parts import Format
from bedplate.core.display import confidence_text
from bedplate.core.errors import BedplateError
from bedplate.core.files import sha256_json
from bedplate.core.statistics.noninferiority import Drop, units_needed
from bedplate.core.statistics.unequal import enough_groups
from bedplate.evaluation.evaluated import drop_between
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import evaluate_predictions
from bedplate.inference.execution.plan import QUANTISED
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.predict.opening import evaluated_now
from bedplate.inference.predict.predictor import Prediction, Predictor

ROWS, CALLS = 128, 12
"""Rows of valid that are asked, and single calls that are timed."""
MARGIN = 0.05
"""A base answers in a format whose metric on the sample is shown to be worse by less."""
SHARE = 0.05
"""Share of the remaining time that asking may take; without it the base keeps its weights."""
AT_ONCE = 16


@dataclass(frozen=True)
class ChosenFormat:
    """weights: the format; None: the base's own. reason: in a sentence without its full stop."""

    weights: Format | None
    reason: str
    seconds: float = 0.0


def choose_formats(contexts: Sequence[Context]) -> list[Context]:
    """Has each base answer in the format that is chosen for it, now or in an earlier run of the same command; returns
    those of bases that no longer answer in their own weights."""
    for context in contexts:
        if _is_open(context):
            _apply(context, _recorded(context) or _choose(context))
    return [context for context in contexts if context.format_reason is not None]


def restore_formats(contexts: Sequence[Context]) -> None:
    """The same in a process that fits a part of a run that has begun."""
    for context in contexts:
        if _is_open(context) and (recorded := _recorded(context)) is not None:
            _apply(context, recorded)


def answer_as_recorded(contexts: Sequence[Context], bases: Sequence[Mapping[str, Any]]) -> None:
    """Has each base answer in the quantised weights that a report has of it. bases: of the report's lineage."""
    recorded = {base["weights_id"]: base["weights"] for base in bases}
    for context in contexts:
        facts = context.at.facts
        weights = recorded.get(facts.identity.weights_id)
        if weights in QUANTISED and weights != facts.weights:
            context.at.answer_in(QUANTISED[weights])


def _is_open(context: Context) -> bool:
    """Whether the task leaves the weights open."""
    spec = context.spec
    return bool(spec.formats.allowed) and spec.weights is None and context.unfit is None and context.parent is None


def _choose(context: Context) -> ChosenFormat:
    start = time.perf_counter()
    with context.clock.measuring.spending():
        weights, reason = _compared(context)
    chosen = ChosenFormat(weights, reason, time.perf_counter() - start)
    rung_files.write_saved(*_saved(context), vars(chosen))
    return chosen


def _compared(context: Context) -> tuple[Format | None, str]:
    if context.backbone.fixed_format is not None:
        return None, context.backbone.fixed_format
    sample = context.ordered(context.valid, "format")[:ROWS]
    confidence = context.spec.target.confidence
    if len(sample) < units_needed(MARGIN, confidence) or not enough_groups([row.group for row in sample]):
        return None, f"{len(sample)} validation rows are too few for a bound"
    if not context.clock.measuring.left:
        return None, "there was no time to measure it"
    speeds = worth_trying(context.model, context.spec.formats, writes=not context.labels)
    if isinstance(speeds, str):
        return None, speeds
    reasons, gains = dict[Format, str](), dict[Format, float]()
    for fmt in speeds:
        packing = context.at.facts.size / PACKED_BYTES_PER_SECOND
        if packing > SHARE * context.clock.seconds_left:
            return None, f"quantising takes about {packing:.0f} s, more than there is time for"
        try:
            with _two(context, fmt) as predictors:
                gain, reason = _judged(context, sample, *predictors, tenant=f"format {fmt}")
        except (BedplateError, RuntimeError) as error:  # of this format alone
            gain, reason = None, str(error)
        reasons[fmt] = f"{fmt}: {reason}"
        if gain is not None and gain >= CLEARLY:
            gains[fmt] = gain
    chosen = max(gains, key=lambda fmt: gains[fmt], default=None)
    return chosen, "; ".join(reasons[fmt] for fmt in sorted(reasons, key=lambda fmt: fmt != chosen))


@contextmanager
def _two(context: Context, fmt: Format) -> Generator[tuple[Predictor, Predictor]]:
    """The plain prompt on the base in its weights, and in the format."""
    prompt, output = context.plain_prompt()
    skin = context.skin("format", prompt, output)

    def predictor(model: LocalModel) -> Predictor:
        return model.predictor(replace(skin, evaluated_with=evaluated_now(model.engine)))

    with closing(predictor(context.model)) as stored, closing(predictor(context.at.in_format(fmt))) as trial:
        yield stored, trial


def _judged(
    context: Context, sample: Sequence[Example], stored: Predictor, trial: Predictor, *, tenant: str
) -> tuple[float | None, str]:
    """How many times as fast single calls are in the format, None where it is not shown to lose little; and what was
    read. tenant: for whom nothing of the rows is cached."""
    until = time.perf_counter() + SHARE * max(context.clock.seconds_left, 0.0)
    before, after = list[Prediction | None](), list[Prediction | None]()
    for at in range(0, len(sample), AT_ONCE):
        if at and time.perf_counter() > until:
            return None, f"{at} of {len(sample)} rows were asked in the time for it"
        before += predict_examples(stored, sample[at : at + AT_ONCE])
        after += predict_examples(trial, sample[at : at + AT_ONCE])
    drop, confidence = _drop(context, sample, before, after), context.spec.target.confidence
    changed = sum(a is None or b is None or a.output != b.output for a, b in zip(before, after, strict=True))
    reason = f"{changed} of {len(sample)} answers to the plain prompt changed"
    if drop.upper is None or drop.upper >= MARGIN:
        return None, f"{reason}, which does not rule out a loss of {MARGIN:g}"
    reason += f", worse by at most {drop.upper:.3f} with {confidence_text(confidence)}"
    timed = in_turns(stored, trial, sample[:CALLS], tenant, max(until - time.perf_counter(), 0.0))
    own, quantised = (latency([call.seconds for call in calls] or [0.0]) for calls in timed)
    times = f"; the median call takes {1000 * quantised.p50:.1f} ms, {1000 * own.p50:.1f} ms before"
    return own.p50 / max(quantised.p50, 1e-9), reason + times


def _drop(
    context: Context,
    sample: Sequence[Example],
    before: Sequence[Prediction | None],
    after: Sequence[Prediction | None],
) -> Drop:
    """The paired drop, of labels with each side's own bias, as a prompt is calibrated: without it, a base that prefers
    one label whatever it reads changes no answer in any format."""
    _, output = context.plain_prompt()

    def evaluated(predictions: Sequence[Prediction | None]) -> Any:
        if context.labels:
            bias = fit_bias(predictions, [row.target for row in sample], context.labels)
            predictions = with_bias(predictions, output.with_bias(bias))
        return evaluate_predictions(context.task, sample, predictions, seed=context.seed)

    confidence = context.spec.target.confidence
    return drop_between(evaluated(before), evaluated(after), confidence, context.seed, scattered=True)


def _apply(context: Context, chosen: ChosenFormat) -> None:
    if chosen.weights is None:
        context.at.close_formats()
        return
    context.at.answer_in(chosen.weights)
    context.format_reason = f"the base answers in {chosen.reason}"


def _recorded(context: Context) -> ChosenFormat | None:
    """What an earlier run of the same command chose, whose time counts; None where there is none."""
    values = rung_files.read_saved(*_saved(context))
    if values is None:
        return None
    chosen = ChosenFormat(**values)
    context.clock.add(chosen.seconds)
    return chosen


def _saved(context: Context) -> tuple[Path, str]:
    """Where the choice is recorded, and under which key: it depends on no row, so that later looks keep it."""
    facts = context.at.facts
    key = [facts.identity.weights_id, facts.dtype, facts.kernel, context.spec.formats.model_dump(mode="json")]
    return context.out / "formats" / "base.json", sha256_json(key)
