"""One candidate's single calls timed once more before test, and its answers on test: a fixed sample of single calls, as
it will be served, and the other rows in batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from bedplate.adaptation.context.outcome import Latency, RungResult, Tested, latency
from bedplate.adaptation.rungs.answers import predict_examples, single_calls
from bedplate.adaptation.search.candidates import Candidate
from bedplate.adaptation.search.rung_files import config_of
from bedplate.core.errors import DataError
from bedplate.core.files import atomic_write, read_text, sha256_json
from bedplate.core.processor import load_average
from bedplate.evaluation.examples import Example
from bedplate.evaluation.grading import PredictionLike
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.inference.predict.callable_skin import SkinPredictor
from bedplate.inference.predict.predictor import Predictor


def judge(candidate: Candidate, result: RungResult, examples: Sequence[Example], out: Path, rows: str) -> Tested:
    """A skin as read back from disk on the test rows, whose hash is `rows`. What was found is kept below `out`; rows
    that were answered in batches have no seconds of their own."""
    path, context = out / "test" / f"{candidate.name}.json", candidate.context
    key = sha256_json([config_of(context, candidate.rung), result.skin_id, rows])
    if path.is_file():
        values = json.loads(read_text(path))
        if values["key"] == key:
            return Tested(Evaluation.from_json(values["evaluation"]), Latency(**values["latency"]), values["too_long"])
    predictor = candidate.rung.predictor(context, candidate.rung_result(result))
    predictions: Sequence[PredictionLike | None]
    alone = {e.id for e in examples}
    if isinstance(predictor, SkinPredictor):
        order = context.ordered(examples, "latency")
        count = context.single_test_calls
        with closing(predictor):
            predict_examples(predictor, examples[:1], one_by_one=True)  # the first call is never typical
            ordered_predictions = predict_examples(predictor, order[:count], one_by_one=True)
            timed = [p.seconds for p in ordered_predictions if p is not None]
            ordered_predictions += predict_examples(predictor, order[count:]) if count < len(order) else []
            min_timed = 0 if candidate.traits.needs == "endpoint" else context.least_timed
            while timed and len(timed) < min_timed:  # of fewer calls no bound is within any budget
                repeats = single_calls(predictor, order[:count], tenant=f"timing-{len(timed)}")
                timed += [p.seconds for p in repeats]
        by_id = dict(zip([e.id for e in order], ordered_predictions, strict=True))
        predictions = [by_id[e.id] for e in examples]
        context.clock.charge(sum(p.usd or 0.0 for p in by_id.values() if p is not None))
        alone = {e.id for e in order[:count]}
    else:
        outputs = [predictor.predict([example.inputs])[0] for example in examples]
        predictions = [output for output in outputs if not isinstance(output, str)]
        assert len(predictions) == len(examples)  # the references answer as skins do
        timed = [p.seconds for p in predictions]
    evaluation = evaluate_predictions(context.task, examples, predictions, split="test", seed=context.seed)
    whole = [row if row.id in alone else replace(row, seconds=None) for row in evaluation.rows]
    evaluation = replace(evaluation, rows=tuple(whole))
    tested = Tested(evaluation, latency(timed or [0.0]), sum(p is None for p in predictions))
    values = {
        "key": key,
        "evaluation": evaluation.to_json(),
        "latency": vars(tested.latency),
        "too_long": tested.too_long,
    }
    atomic_write(path, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return tested


def retimed(candidate: Candidate, result: RungResult) -> RungResult:
    """The result with the quicker of its own latency and that of the same calls now."""
    path = _file(candidate)
    key = sha256_json([config_of(candidate.context, candidate.rung), result.skin_id])
    new_latency = _saved_latency(path, key)
    if new_latency is None:
        new_latency = _timed(candidate, result)
        if new_latency is None:
            return result
        values = {"key": key, "latency": vars(new_latency), "load": load_average()}
        atomic_write(path, json.dumps(values, indent=1) + "\n")
    if new_latency.p95 >= result.latency.p95 and new_latency.mean >= result.latency.mean:
        return result
    return replace(result, latency=min(new_latency, result.latency, key=lambda measured: (measured.p95, measured.mean)))


def _timed(candidate: Candidate, result: RungResult) -> Latency | None:
    """None for what does not run on this machine, and for a cascade, whose parts are timed."""
    predictor = candidate.rung.predictor(candidate.context, candidate.rung_result(result))
    if not isinstance(predictor, Predictor):
        if isinstance(predictor, SkinPredictor):
            predictor.close()
        return None
    context = candidate.context
    with closing(predictor):
        calls = single_calls(predictor, context.ordered(context.valid, "latency")[: context.latency_calls], "again")
    return latency([call.seconds for call in calls]) if calls else None


def _saved_latency(path: Path, key: str) -> Latency | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(read_text(path))
        return Latency(**values["latency"]) if values["key"] == key else None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it to time these calls again") from error


def _file(candidate: Candidate) -> Path:
    return candidate.context.out / "latency" / f"{candidate.rung.name}.json"
