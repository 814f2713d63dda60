"""A skin in a format of quantised weights, tried on valid: written as one of that format, asked as read back from disk,
and its calls timed in turns with those in its own weights. What was found is kept, so that nothing is asked twice."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.outcome import ExportCheck, Latency, RungResult, latency
from bedplate.adaptation.rungs.answers import agreement, export, predict_examples, single_calls
from bedplate.adaptation.search.candidates import Candidate
from bedplate.adaptation.search.fingerprint import config_of
from bedplate.adaptation.task.format_spec import Format
from bedplate.core.errors import BedplateError, DataError, UsageError
from bedplate.core.files import atomic_write, read_text, sha256_json
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.inference.predict.composed import SkinPredictor
from bedplate.inference.predict.predictor import Prediction, Predictor
from bedplate.inference.predict.skin_execution import evaluated_now, evaluated_on
from bedplate.skins.files import read_identified, read_skin, skin_id, write_skin
from bedplate.skins.skin import EvaluatedWith, Skin

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
    skin = as_judged(original, evaluated_now(engine))
    place = _place(candidate, weights)
    skin = export(skin, place)
    relative_path = str(place.relative_to(context.out))
    trial_result = replace(climbed.rung_result, skin=relative_path)
    with (
        closing(_opened(candidate, climbed.rung_result)) as baseline_predictor,
        closing(_opened(candidate, trial_result)) as trial_predictor,
    ):
        predictions = predict_examples(trial_predictor, context.valid)
        by_id = {e.id: p for e, p in zip(context.valid, predictions, strict=True)}
        sample = [e for e in context.ordered(context.valid, "latency") if by_id[e.id] is not None]
        sample = sample[: context.latency_calls]
        before, after = in_turns(baseline_predictor, trial_predictor, sample, f"timing {weights}")
    evaluation = evaluate_predictions(context.task, context.valid, predictions, seed=context.seed)
    trial = FormatTrial(
        engine.weights,
        engine.kernel,
        evaluation,
        _timed(before),
        _timed(after),
        agreement(sample, after, by_id),
        relative_path,
        skin_id(skin),
        time.perf_counter() - start,
    )
    values = {**asdict(trial), "evaluation": evaluation.to_json(), "key": _key(candidate, weights)}
    atomic_write(_file(candidate, weights), json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return trial


def in_turns(
    baseline_predictor: SkinPredictor, trial_predictor: SkinPredictor, sample: Sequence[Example], tenant: str
) -> tuple[list[Prediction], list[Prediction]]:
    """Single calls of two predictors, a part of the sample after the other, as a tenant of their own."""
    first: list[Prediction] = []
    second: list[Prediction] = []
    size = max(1, -(-len(sample) // TURNS))
    for at in range(0, len(sample), size):
        part = sample[at : at + size]
        first += single_calls(baseline_predictor, part, tenant)
        second += single_calls(trial_predictor, part, tenant)
    return first, second


def _timed(calls: Sequence[Prediction]) -> Latency:
    return latency([call.seconds for call in calls] or [0.0])


def _opened(candidate: Candidate, result: RungResult) -> Predictor:
    predictor = candidate.rung.predictor(candidate.context, result)
    if not isinstance(predictor, Predictor):
        raise UsageError(f"{candidate.name} is not a skin that runs on a base of this machine")
    return predictor


def as_judged(skin: Skin, judged: EvaluatedWith) -> Skin:
    return replace(skin, evaluated_with=judged, directory=None)


def _place(candidate: Candidate, weights: str) -> Path:
    directory = candidate.climbed.directory
    return directory.with_name(f"{directory.name}-{weights}")


def _file(candidate: Candidate, weights: str) -> Path:
    return candidate.context.out / "formats" / f"{candidate.rung.name}-{weights}.json"


def _key(candidate: Candidate, weights: str) -> str:
    return sha256_json([config_of(candidate.context, candidate.rung), candidate.climbed.rung_result.skin_id, weights])


def kept_trial(candidate: Candidate, weights: str) -> FormatTrial | None:
    """The trial of an earlier run of the same command, whose time counts; None where there is none."""
    path = _file(candidate, weights)
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(read_text(path))
        if values.pop("key", None) != _key(candidate, weights):
            return None
        values["evaluation"] = Evaluation.from_json(values["evaluation"])
        values["own"], values["latency"] = Latency(**values["own"]), Latency(**values["latency"])
        values["export"] = ExportCheck(**values["export"])
        trial = FormatTrial(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it to try this format again") from error
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
    write_skin(as_judged(original, judged), place, replace=True)


def discard(candidate: Candidate, trial: FormatTrial) -> None:
    """The skin of a format that is not kept leaves the disk; what was found stays."""
    shutil.rmtree(candidate.context.out / trial.skin, ignore_errors=True)


def in_weights(candidate: Candidate, judged: EvaluatedWith) -> Skin:
    """The candidate's skin as one that was judged with these weights, written beside its own and read back."""
    original, place = read_skin(candidate.climbed.directory), _place(candidate, judged.weights)
    return export(as_judged(original, judged), place)
