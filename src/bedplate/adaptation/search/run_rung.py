"""One rung in its own directory: planned, fitted and written down.

1. A result of an earlier run is reused where nothing that it depends on has changed (`fingerprint`).
2. The rung is planned with what is known of time and money here; the plan is written to its directory.
3. It is fitted: here, or where `Context.executor` runs jobs, from the plan and the run's directory alone.
4. The result is written to its directory, whole; a failure is an outcome, bad input is raised.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import (
    Latency,
    OutOfTime,
    RungOutcome,
    RungResult,
    Skip,
    Tested,
    latency,
    no_time,
)
from bedplate.adaptation.rungs import RUNGS
from bedplate.adaptation.rungs.answers import own_probability, predict_examples, single_calls
from bedplate.adaptation.rungs.probe import FEW_ROWS
from bedplate.adaptation.search import rung_files
from bedplate.adaptation.search.candidates import Candidate
from bedplate.adaptation.search.planner import planned_now, with_needs
from bedplate.core.errors import BedplateError, ConfigError, DataError, HubError, UsageError
from bedplate.core.executor import Executor, Job, LocalExecutor
from bedplate.core.files import DISK_FULL, sha256_json
from bedplate.core.processor import load_average
from bedplate.core.progress import Progress, log_line
from bedplate.evaluation.examples import Example
from bedplate.evaluation.grading import PredictionLike
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.evaluation.task import AbstainSpec
from bedplate.inference.predict.callable_skin import SkinPredictor
from bedplate.inference.predict.predictor import Prediction, Predictor
from bedplate.skins.files import read_skin, skin_id, write_skin
from bedplate.skins.output import Abstain

_BAD_INPUT = (ConfigError, DataError, HubError, UsageError)


def climb(context: Context, name: str, directory: Path, *, needs_skin: bool = True) -> RungOutcome:
    """What became of a rung; its failure is an outcome, bad input is raised. needs_skin: a result whose skin is gone is
    made again."""
    rung = RUNGS[name].on(context)
    config = rung_files.config_of(context, rung)
    reused, limits = rung_files.read_result(directory, config, context.valid), rung_files.limits_of(context, config)
    within = directory / rung_files.WITHIN_FILE
    if reused is not None and is_part(context, reused[0]) and rung_files.read_saved(within, limits) is None:
        shutil.rmtree(directory)  # under other limits there may be the time for enough rows
        reused = None
    if reused is not None and (not needs_skin or _skin_is_whole(context, reused[0])):
        result, seconds = reused
        rung.remember(context, result)
        context.clock.add(seconds)
        context.clock.charge(result.usd)
        plan = rung_files.read_plan(directory, config)
        return RungOutcome(name, "done", result.reason, result, seconds, plan, reused=True)
    spent = rung_files.read_spent(directory, config)
    context.clock.add(spent)
    left_out = rung_files.read_skip(directory, limits) if context.outer_clock is None else None
    if left_out is not None:
        skipped, seconds = left_out
        context.clock.add(seconds - spent)
        return RungOutcome(
            name, "skipped", skipped.reason, None, seconds, skip=skipped.kind, needs=skipped.needs, reused=True
        )
    arguments = {"rung": name, "directory": str(directory), "config": config}
    job = Job(name, f"{__name__}:fit", arguments, needs=("context",))
    start = context.clock.used
    try:
        outcome = next(LocalExecutor({"context": context}).run([job]))
    except BaseException:  # an interrupt: the same command goes on with what time is left
        rung_files.write_spent(directory, config, spent + context.clock.used - start)
        raise
    outcome = replace(outcome, seconds=spent + outcome.seconds)
    if outcome.error is not None:
        if isinstance(outcome.error, _BAD_INPUT):
            raise outcome.error
        if isinstance(outcome.error, OSError) and outcome.error.errno in DISK_FULL:  # the next would fare alike
            raise UsageError(
                f"{name}: {outcome.error.strerror}: make room in {directory}, and give the same command again; "
                "what is finished is kept"
            ) from outcome.error
        message = outcome.error.message if isinstance(outcome.error, BedplateError) else repr(outcome.error)
        return RungOutcome(name, "failed", message, None, outcome.seconds, rung_files.read_plan(directory, config))
    if isinstance(outcome.value, Skip):
        skipped = outcome.value
        if context.outer_clock is None and skipped.kind == "budget":
            rung_files.write_skip(directory, limits, outcome.seconds, skipped)
            if rung_files.read_plan(directory, config) is not None:  # of what goes on where there is more time
                rung_files.write_spent(directory, config, outcome.seconds)
        return RungOutcome(
            name, "skipped", skipped.reason, None, outcome.seconds, skip=skipped.kind, needs=skipped.needs
        )
    assert outcome.value is not None
    if is_part(context, outcome.value):
        rung_files.write_saved(within, limits, {})
    rung_files.write_result(directory, config, outcome.seconds, outcome.value)
    context.clock.charge(outcome.value.usd)
    plan, result = rung_files.read_plan(directory, config), outcome.value
    if plan is not None and result.settings is not None:  # what is made again is what was made
        plan = replace(plan, settings=result.settings, left_out=result.left_out)
        rung_files.write_plan(directory, config, plan)
    return RungOutcome(name, "done", outcome.value.reason, outcome.value, outcome.seconds, plan)


def fit(context: Context, rung: str, directory: str, config: str) -> RungResult | Skip:
    """The job of a rung: planned, unless an interrupted run left its plan, and fitted. config: of `config_of`."""
    place, outer_clock = Path(directory), context.outer_clock
    saved_plan, start = rung_files.read_plan(place, config), context.clock.used
    plan = planned_now(context, RUNGS[rung].on(context)) if saved_plan is None else saved_plan
    if isinstance(plan, Skip):
        return plan
    if outer_clock is not None and plan.seconds > outer_clock.seconds_left:
        return Skip(f"it needs about {plan.seconds:.0f} s, {max(outer_clock.seconds_left, 0):.0f} s are left", "budget")
    if outer_clock is not None and plan.usd > outer_clock.usd_left:
        return Skip(f"it needs about ${plan.usd:.4f}, ${max(outer_clock.usd_left, 0):.4f} are left", "budget")
    if saved_plan is None:
        if place.exists():  # of another configuration
            shutil.rmtree(place)
        if not context.smallest:  # a resumed run plans that anew, for only then does it stop when the time is over
            rung_files.write_plan(place, config, plan)
    try:
        with Progress(f"fitting: {rung}", unit=""):
            if outer_clock is None and plan.seconds >= 1:
                rows = f" with {plan.settings['rows']:,} rows" if "rows" in plan.settings else ""
                log_line(f"{rung:<13} begins{rows}, about {plan.seconds:,.0f} s")
            if context.executor is not None and context.run_directory is not None:
                return _fit_elsewhere(context.executor, context, rung, config, place)
            return abstaining(context, RUNGS[rung].on(context).fit(context, plan, place))
    except OutOfTime as stop:
        if context.smallest or not RUNGS[rung].traits.trained:  # training goes on where there is more time
            shutil.rmtree(place, ignore_errors=True)
        needed = max(context.clock.used - start + stop.seconds, plan.seconds)
        context.clock.slowdown = max(context.clock.slowdown, needed / max(plan.seconds, 0.1))
        return with_needs(context, no_time(needed))


def _fit_elsewhere(executor: Executor, context: Context, rung: str, config: str, place: Path) -> RungResult:
    """The rung fitted by another process, which leaves the result in the rung's directory. Raises what ended the
    job."""
    arguments = {"run": str(context.run_directory), "suffix": context.suffix, "rung": rung, "used": context.clock.used}
    outcome = next(iter(executor.run([Job(rung, "bedplate.adaptation.search.start:fit_planned", arguments)])))
    if outcome.error is not None:
        raise outcome.error
    written = rung_files.read_result(place, config, context.valid)
    if written is None:
        raise DataError(f"{place}: the job of {rung} left no result of this configuration")
    RUNGS[rung].remember(context, written[0])
    return written[0]


def is_part(context: Context, result: RungResult) -> bool:
    """Whether there was the time for few rows of train alone, or for a part of valid: test is not opened for it."""
    fits = RUNGS[result.rung.partition("@")[0]].traits.side == "weights"
    few = fits and result.details.get("rows", FEW_ROWS) < min(FEW_ROWS, len(context.train))
    return few or result.evaluation.n < len(context.valid)


def _skin_is_whole(context: Context, result: RungResult) -> bool:
    if result.skin is None:
        return True
    try:
        skin = read_skin(context.out / result.skin)
        if result.child is None:
            return True
        child = context.at.child(context.out / result.child).facts.identity
    except BedplateError:
        return False
    return skin.base.has_weights_of(child)


# --- abstention


def abstaining(context: Context, result: RungResult) -> RungResult:
    """The rung's skin, and its answers on valid, with the task's abstention; as they are where the task has none.

    It abstains below a probability of its own answer that the task gives, or that valid gives for the share of rows
    that are to be answered (selective classification, Geifman & El-Yaniv, arXiv 1705.08500). Nothing is fitted again. A
    cascade abstains where the skin that it ends with does, and what tells no probabilities never does.
    """
    spec = context.task.output.abstain
    if spec is None or result.skin is None:
        return result
    directory = context.out / result.skin
    skin = read_skin(directory)
    if skin.cascade is not None:
        return replace(result, details={**result.details, **_facts(result.evaluation)})
    sure = [own_probability(row.scores, row.prediction) for row in result.evaluation.rows]
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
    answered_examples = [example for example in context.valid if example.id in by_id]
    for example in answered_examples:
        row = by_id[example.id]
        if row.prediction is None:
            predictions.append(None)
            continue
        confidence = own_probability(row.scores, row.prediction)
        answer = spec.answer if confidence is not None and confidence < below else row.prediction
        predictions.append(Prediction(answer, answer, row.scores or {}, seconds=row.seconds or 0.0))
    evaluation = evaluate_predictions(context.task, answered_examples, predictions, seed=context.seed)
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


def _facts(evaluation: Evaluation) -> dict[str, float | None]:
    return {"coverage": evaluation.coverage, "answered": evaluation.answered}


# --- what comes after the climb


def retimed(candidate: Candidate, result: RungResult) -> RungResult:
    """The result with the quicker of its own latency and that of the same calls now. A cascade's parts are timed
    themselves, and an endpoint's calls are no matter of this machine."""
    context = candidate.context
    path = context.out / "latency" / f"{candidate.rung.name}.json"
    key = sha256_json([rung_files.config_of(context, candidate.rung), result.skin_id])
    saved = rung_files.read_saved(path, key)
    if saved is not None:
        remeasured = Latency(**saved["latency"])
    else:
        predictor = candidate.rung.predictor(context, candidate.rung_result(result))
        if not isinstance(predictor, SkinPredictor):
            return result
        with closing(predictor):
            if not isinstance(predictor, Predictor):
                return result
            sample = context.ordered(context.valid, "latency")[: context.latency_calls]
            calls = single_calls(predictor, sample, "again", context.timing_limit)
        if len(calls) < min(len(sample), result.latency.calls):  # the time for it is over: the machine is slower now
            return result
        remeasured = latency([call.seconds for call in calls])
        rung_files.write_saved(path, key, {"latency": vars(remeasured), "load": load_average()})
    return replace(result, latency=min(result.latency, remeasured, key=lambda timed: (timed.p95, timed.mean)))


CALLS_OF_A_BLOCK = 4
"""Single calls in a row where the budget limits p95."""


def judge(
    candidate: Candidate, result: RungResult, examples: Sequence[Example], out: Path, rows: str
) -> Generator[None, None, Tested]:
    """A skin as read back from disk on the test rows, whose hash is `rows`. What was found is kept below `out`; rows
    that were answered in batches have no seconds of their own.

    Where the budget limits p95, single calls are made in blocks, with batches between them and each block followed by
    a turn for others, so that calls are spread over the time of test. Where test has too few rows for them, rows of
    valid, which take as long, are timed besides.
    """
    path, context = out / "test" / f"{candidate.name}.json", candidate.context
    calls_given = [] if context.spec.budget.p95_calls is None else [context.p95_calls]
    key = sha256_json([rung_files.config_of(context, candidate.rung), result.skin_id, rows, *calls_given])
    saved = rung_files.read_saved(path, key)
    if saved is not None:
        evaluation = Evaluation.from_json(saved["evaluation"], examples)
        return Tested(evaluation, Latency(**saved["latency"]), saved["too_long"])
    predictor = candidate.rung.predictor(context, candidate.rung_result(result))
    predictions: Sequence[PredictionLike | None]
    alone, different, start = {e.id for e in examples}, len(examples), time.perf_counter()
    if isinstance(predictor, SkinPredictor):
        order, count = context.ordered(examples, "latency"), context.single_test_calls
        single, batched = order[:count], order[count:]
        others = context.ordered(context.valid, "latency")
        max_calls = len(order) if candidate.traits.needs == "endpoint" else count  # its calls cost money
        extra = list(islice(cycle([*others, *single]), max(0, max_calls - len(single))))
        different = len(single) + min(len(extra), len(others))
        blocks = -(-count // CALLS_OF_A_BLOCK) if context.p95_calls else 1
        by_id, timed = dict[str, Prediction | None](), list[float]()
        with closing(predictor):
            predict_examples(predictor, examples[:1], one_by_one=True)  # the first call is never typical
            for block in range(blocks):
                part, rest = (rows[block::blocks] for rows in (single, batched))
                # of rows that come again, those of a block follow each other: a block asks no row twice
                repeats = extra[len(extra) * block // blocks : len(extra) * (block + 1) // blocks]
                answers = predict_examples(predictor, part, one_by_one=True)
                by_id |= zip(
                    [e.id for e in [*part, *rest]], [*answers, *predict_examples(predictor, rest)], strict=True
                )
                answers += predict_examples(predictor, repeats, one_by_one=True, tenant=f"timing-{block}")
                timed += [p.seconds for p in answers if p is not None]
                yield
        predictions = [by_id[e.id] for e in examples]
        context.clock.charge(sum(p.usd or 0.0 for p in by_id.values() if p is not None))
        alone = {e.id for e in single}
    else:
        outputs = [predictor.predict([example.inputs])[0] for example in examples]
        predictions = [output for output in outputs if not isinstance(output, str)]
        assert len(predictions) == len(examples)  # the references answer as skins do
        timed = [p.seconds for p in predictions]
    evaluation = evaluate_predictions(context.task, examples, predictions, split="test", seed=context.seed)
    whole = [row if row.id in alone else replace(row, seconds=None) for row in evaluation.rows]
    evaluation = replace(evaluation, rows=tuple(whole))
    calls = latency(timed or [0.0], min(different, len(timed)), time.perf_counter() - start)
    tested = Tested(evaluation, calls, sum(p is None for p in predictions))
    rung_files.write_saved(
        path, key, {**vars(tested), "evaluation": evaluation.to_json(), "latency": vars(tested.latency)}
    )
    return tested
