"""One candidate's answers on test: a fixed sample of single calls, as it will be served, the other rows in batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from bedplate.adaptation.context.outcome import Latency, RungResult, Tested, latency
from bedplate.adaptation.rungs.answers import predict_examples, single_calls
from bedplate.adaptation.search import rung_files
from bedplate.adaptation.search.candidates import Candidate
from bedplate.core.files import sha256_json
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.evaluation.task_row import PredictionLike
from bedplate.inference.predict.composed import SkinPredictor


def judge(candidate: Candidate, result: RungResult, examples: Sequence[Example], out: Path, rows: str) -> Tested:
    """A skin as read back from disk on the test rows, whose hash is `rows`. What was found is kept below `out`; rows
    that were answered in batches have no seconds of their own."""
    path, context = out / "test" / f"{candidate.name}.json", candidate.context
    key = sha256_json([rung_files.config_of(context, candidate.rung), result.skin_id, rows])
    saved = rung_files.read_saved(path, key)
    if saved is not None:
        return Tested(Evaluation.from_json(saved["evaluation"]), Latency(**saved["latency"]), saved["too_long"])
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
    rung_files.write_saved(
        path, key, {**vars(tested), "evaluation": evaluation.to_json(), "latency": vars(tested.latency)}
    )
    return tested
