"""Quantised weights as candidates: a nominee is asked again on valid in each format that is faster here, the fastest
first, and keeps the first that is shown to cost less than the task's margin and whose own calls take clearly less time
(the median).

That is non-inferiority (`core.statistics.noninferiority`): the upper bound of the paired drop on valid lies under
the task's margin. Nothing is fitted again: biases, thresholds and heads are those that were found in the base's own
weights. Several formats need no correction, because test judges the one that will be served.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import ExportCheck, Latency, OutOfTime, RungResult, latency
from bedplate.adaptation.context.throughput import CLEARLY, worth_trying
from bedplate.adaptation.rungs.answers import agreement, export, predict_in_time, single_calls
from bedplate.adaptation.search import rung_files
from bedplate.adaptation.search.candidates import Candidate
from bedplate.adaptation.task.adapt_parts import Format
from bedplate.core.display import confidence_text
from bedplate.core.errors import BedplateError, UsageError
from bedplate.core.files import sha256_json
from bedplate.core.statistics.noninferiority import hidden, units_needed
from bedplate.core.statistics.unequal import enough_groups
from bedplate.evaluation.evaluated import drop_between, independent_rows
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.inference.predict.callable_skin import SkinPredictor
from bedplate.inference.predict.opening import evaluated_now, evaluated_on
from bedplate.inference.predict.predictor import Prediction, Predictor
from bedplate.report.schema_parts import FormatLeftOut, Formats, NotTried, TriedFormat
from bedplate.skins.files import read_identified, read_skin, skin_id, write_skin
from bedplate.skins.skin import EvaluatedWith, Skin

PACKED_BYTES_PER_SECOND = 50e6
"""About what quantising reads on one core."""


def choose(candidate: Candidate) -> tuple[Formats, RungResult]:
    """The candidate's weights: what became of each format, and the result to nominate it by. Its own skin stays where
    it is; one in a format that it keeps lies beside it."""
    context, climbed = candidate.context, candidate.climbed
    result, tried, left_out = climbed.result, list[TriedFormat](), list[FormatLeftOut]()
    unfit = _unfit(candidate)
    engine = None if unfit is not None else climbed.base.model.engine
    weights, kernel = (None, None) if engine is None else (engine.weights, engine.kernel)

    def outcome(reason: str, kept: str | None = None) -> Formats:
        return Formats(
            weights=weights, kernel=kernel, kept=kept, reason=reason, tried=tuple(tried), left_out=tuple(left_out)
        )

    if unfit is not None:
        return outcome(unfit), result
    if context.format_reason is not None:
        return outcome(context.format_reason), result
    skin = read_skin(climbed.directory)
    worth = worth_trying(climbed.base.model, context.spec.formats, writes=skin.output.answered_by == "generate")
    if isinstance(worth, str):
        return outcome(worth), result
    shortage = too_few(context, result.evaluation)
    if shortage is not None:
        return outcome(shortage), result
    for fmt, times in worth.items():
        trial = kept_trial(candidate, fmt)
        if trial is None:
            needed, available = expected_seconds(candidate, times), context.seconds_before_test
            if needed > available:
                remaining = f"{max(available, 0):.0f} s of the budget are left"
                reason = f"it needs about {needed:.0f} s on validation rows, {remaining}"
                left_out.append(FormatLeftOut(weights=fmt, kind="budget", reason=reason))
                continue
            try:
                trial = make_trial(candidate, skin, fmt)
            except OutOfTime as stop:
                reason = f"it takes about {stop.seconds:.0f} s on validation rows, and the time was over before"
                left_out.append(FormatLeftOut(weights=fmt, kind="budget", reason=reason))
                shutil.rmtree(_place(candidate, fmt), ignore_errors=True)
                continue
            except (BedplateError, RuntimeError) as error:  # of this format alone: the skin has its own weights
                reason = error.message if isinstance(error, BedplateError) else repr(error)
                left_out.append(FormatLeftOut(weights=fmt, kind="impossible", reason=reason))
                continue
        tried.append(judged(context, result, trial))
        if tried[-1].kept:
            restore(candidate, skin, trial)
            return outcome(tried[-1].reason, fmt), _in_format(result, trial)
        # the skin of a format that is not kept leaves the disk; what was found stays
        shutil.rmtree(context.out / trial.skin, ignore_errors=True)
    return outcome("; ".join(f"{part.weights}: {part.reason}" for part in (*tried, *left_out))), result


def not_tried(formats: Mapping[str, Formats]) -> list[NotTried]:
    """The formats of candidates that were left out, as `planner.not_tried` says of rungs."""
    return [
        NotTried(
            rung=name, what="part", kind=omission.kind, reason=f"{omission.weights} was not tried: {omission.reason}"
        )
        for name, chosen in formats.items()
        for omission in chosen.left_out
    ]


def judged(context: Context, result: RungResult, trial: FormatTrial) -> TriedFormat:
    """Whether the skin keeps the format. result: in its own weights."""
    spec, confidence = context.spec.formats, context.spec.target.confidence
    before, after = result.evaluation, trial.evaluation
    drop = drop_between(before, after, confidence, context.seed, scattered=True)  # answers that rounding changed
    place = {row.row_hash: row.prediction for row in after.rows}
    changed = sum(place[row.row_hash] != row.prediction for row in before.rows)
    faster = trial.latency.p50 * CLEARLY <= trial.own.p50
    within_margin, needed = drop.is_within(spec.margin), drop.needed(spec.margin)
    rate, margin, score = context.spec.machine.usd_per_hour, f"{spec.margin:g}", before.scale.format_score
    calls = f"the median call takes {trial.latency.p50 * 1000:.2f} ms, {trial.own.p50 * 1000:.2f} ms before"
    if drop.upper is None or drop.lower is None:
        reason = f"; {drop.groups} groups are too few for a confidence bound"
    elif within_margin and faster:
        reason = f": worse by at most {drop.upper:.4f} with {confidence_text(drop.confidence)}, under {margin}; {calls}"
    elif within_margin:
        reason = f", an acceptable loss, but it is not faster: {calls}"
    elif within_margin is False:
        reason = f": worse by at least {drop.lower:.4f} with {confidence_text(drop.confidence)}, over {margin}"
    else:
        reason = (
            f": worse by {drop.lower:+.4f} to {drop.upper:+.4f}, so these rows do not rule out a loss above {margin}"
        )
        reason += "" if needed is None else f" (about {needed:,} could)"
    return TriedFormat(
        weights=trial.weights,
        kernel=trial.kernel,
        kept=bool(within_margin) and faster,
        reason=(
            f"{changed} of {drop.n} answers on valid changed, {before.metric} {score(before.estimate)} to "
            f"{score(after.estimate)}{reason}"
        ),
        own_estimate=before.estimate,
        estimate=after.estimate,
        difference=after.estimate - before.estimate,
        lower=None if drop.upper is None else -drop.upper,
        confidence=confidence,
        margin=spec.margin,
        n=drop.n,
        groups=drop.groups,
        changed=changed,
        needed_n=needed if within_margin is None else None,
        own_p50_ms=trial.own.p50 * 1000,
        own_p95_ms=trial.own.p95 * 1000,
        own_usd_per_1k_calls=1000 * result.price(rate, trial.own.mean),
        p50_ms=trial.latency.p50 * 1000,
        p95_ms=trial.latency.p95 * 1000,
        usd_per_1k_calls=1000 * result.price(rate, trial.latency.mean),
    )


def too_few(context: Context, evaluation: Evaluation) -> str | None:
    """Why valid cannot show that a format is no worse, even if no answer changed; None where it can."""
    margin, confidence = context.spec.formats.margin, context.spec.target.confidence
    if not enough_groups([row.group for row in evaluation.rows]):
        in_groups = f" in {evaluation.groups} groups" if evaluation.groups < evaluation.n else ""
        return f"{evaluation.n} validation rows{in_groups} are too few, or too unequal, for a confidence bound"
    units = independent_rows(evaluation)
    unseen = hidden(units, confidence)
    if unseen < margin:
        return None
    rows = f"{evaluation.n} validation rows"
    if round(units) < evaluation.n:
        rows += f" (worth {units:.0f} independent ones)"
    needed = math.ceil(units_needed(margin, confidence) * evaluation.n / units)
    return f"{rows} cannot rule out a loss above {margin:g} (about {needed:,} could)"


def expected_seconds(candidate: Candidate, times: float) -> float:
    """What trying a format takes: its weights made, valid asked, and calls timed in both weights."""
    context, call = candidate.context, candidate.climbed.result.latency.mean
    rows = context.throughput.rows(len(context.valid)) * max(1.0, call / max(context.throughput.call, 1e-9))
    calls = (min(context.latency_calls, len(context.valid)) + TURNS) * call
    packing = 0.0 if candidate.climbed.base.has_format else context.at.facts.size / PACKED_BYTES_PER_SECOND
    return packing + rows / times + calls * (1 + 1 / times)


def _unfit(candidate: Candidate) -> str | None:
    if candidate.climbed.result.parts:
        return "a cascade keeps the weights that its two skins were made with"
    if candidate.traits.needs == "nothing":
        return "it has no base, so no weights to quantize"
    if candidate.context.hosted is not None:
        return "a remote model answers"
    return candidate.context.backbone.fixed_format


def _in_format(result: RungResult, trial: FormatTrial) -> RungResult:
    assert result.skin is not None
    details: Mapping[str, Any] = result.details
    if "coverage" in details:
        details = {**details, "coverage": trial.evaluation.coverage, "answered": trial.evaluation.answered}
    return replace(
        result,
        evaluation=trial.evaluation,
        latency=trial.latency,
        export=trial.export,
        skin=str(Path(result.skin).with_name(Path(trial.skin).name)),
        skin_id=trial.skin_id,
        reason=f"{result.reason}; served in {trial.weights} weights",
        details=details,
    )


TURNS = 4
"""Calls in a format and in the skin's own weights take so many turns: what else the machine does meets both."""


@dataclass(frozen=True)
class FormatTrial:
    """A skin in a format on valid, with single calls in both weights, in turns. `own`: in its own weights. `skin`:
    directory, relative to the run's. `seconds`: what all of it took."""

    weights: str
    kernel: str
    evaluation: Evaluation
    own: Latency
    latency: Latency
    export: ExportCheck
    skin: str
    skin_id: str
    seconds: float


def make_trial(candidate: Candidate, original: Skin, weights: Format) -> FormatTrial:
    """Writes the skin as one of this format, and asks it as read back from disk."""
    start = time.perf_counter()
    context, climbed = candidate.context, candidate.climbed
    engine = climbed.base.in_format(weights).engine
    place = _place(candidate, weights)
    skin = export(replace(original, evaluated_with=evaluated_now(engine), directory=None), place)
    relative_path = str(place.relative_to(context.out))
    trial_result = replace(climbed.rung_result, skin=relative_path)
    with (
        closing(_opened(candidate, climbed.rung_result)) as baseline_predictor,
        closing(_opened(candidate, trial_result)) as trial_predictor,
    ):
        predictions = predict_in_time(context, trial_predictor, context.valid, left=lambda: context.seconds_before_test)
        by_id = {e.id: p for e, p in zip(context.valid, predictions, strict=True)}
        sample = [e for e in context.ordered(context.valid, "latency") if by_id[e.id] is not None]
        sample = sample[: context.latency_calls]
        before, after = in_turns(
            baseline_predictor, trial_predictor, sample, f"timing {weights}", 2 * context.timing_limit
        )
    evaluation = evaluate_predictions(context.task, context.valid, predictions, seed=context.seed)
    own, timed = (latency([call.seconds for call in calls] or [0.0]) for calls in (before, after))
    checked, seconds = agreement(sample[: len(after)], after, by_id), time.perf_counter() - start
    kernel, identity = engine.kernel, skin_id(skin)
    trial = FormatTrial(engine.weights, kernel, evaluation, own, timed, checked, relative_path, identity, seconds)
    values = {**asdict(trial), "evaluation": evaluation.to_json()}
    rung_files.write_saved(*_saved(candidate, weights), values)
    return trial


def in_turns(
    baseline_predictor: SkinPredictor,
    trial_predictor: SkinPredictor,
    sample: Sequence[Example],
    tenant: str,
    seconds: float = math.inf,
) -> tuple[list[Prediction], list[Prediction]]:
    """Single calls of two predictors, a part of the sample after the other, as a tenant of their own. seconds: after
    which no further part is begun."""
    start = time.perf_counter()
    first: list[Prediction] = []
    second: list[Prediction] = []
    size = max(1, -(-len(sample) // TURNS))
    for at in range(0, len(sample), size):
        if time.perf_counter() - start > seconds:
            break
        part = sample[at : at + size]
        first += single_calls(baseline_predictor, part, tenant)
        second += single_calls(trial_predictor, part, tenant)
    return first, second


def _opened(candidate: Candidate, result: RungResult) -> Predictor:
    predictor = candidate.rung.predictor(candidate.context, result)
    if not isinstance(predictor, Predictor):
        raise UsageError(f"{candidate.name} is not a skin that runs on a base of this machine")
    return predictor


def _place(candidate: Candidate, weights: str) -> Path:
    directory = candidate.climbed.directory
    return directory.with_name(f"{directory.name}-{weights}")


def _saved(candidate: Candidate, weights: str) -> tuple[Path, str]:
    """Where a trial is kept, and under which key."""
    config = rung_files.config_of(candidate.context, candidate.rung)
    key = sha256_json([config, candidate.climbed.rung_result.skin_id, weights])
    return candidate.context.out / "formats" / f"{candidate.rung.name}-{weights}.json", key


def kept_trial(candidate: Candidate, weights: str) -> FormatTrial | None:
    """The trial of an earlier run of the same command, whose time counts; None where there is none."""
    values = rung_files.read_saved(*_saved(candidate, weights))
    if values is None:
        return None
    values["evaluation"] = Evaluation.from_json(values["evaluation"], candidate.context.valid)
    values["own"], values["latency"] = Latency(**values["own"]), Latency(**values["latency"])
    values["export"] = ExportCheck(**values["export"])
    trial = FormatTrial(**values)
    candidate.context.clock.add(trial.seconds)
    return trial


def restore(candidate: Candidate, original: Skin, trial: FormatTrial) -> None:
    """The skin of a format that is kept is on disk, as it was judged."""
    place = candidate.context.out / trial.skin
    try:
        if read_identified(place)[0] == trial.skin_id:
            return
    except BedplateError:
        pass  # gone or damaged: it follows from the skin beside it
    judged = evaluated_on(trial.weights, trial.kernel, candidate.climbed.base.facts.dtype)
    write_skin(replace(original, evaluated_with=judged, directory=None), place, replace=True)


def in_weights(candidate: Candidate, judged: EvaluatedWith) -> Skin:
    """The candidate's skin as one that was judged with these weights, written beside its own and read back."""
    original, place = read_skin(candidate.climbed.directory), _place(candidate, judged.weights)
    return export(replace(original, evaluated_with=judged, directory=None), place)
