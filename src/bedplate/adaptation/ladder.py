"""Climb the ladder: tune every rung on valid, nominate, open test once, and decide.

Everything that finishes is kept in the output directory, so that the same command goes on where it was interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from bedplate.adaptation import gate
from bedplate.adaptation.climb import climb, config_of
from bedplate.adaptation.context import Clock, Context, source_of
from bedplate.adaptation.report import Report, build_report, write_report
from bedplate.adaptation.rungs import RUNGS, Result
from bedplate.adaptation.rungs.answers import ask
from bedplate.adaptation.rungs.base import (
    Latency,
    RungOutcome,
    Tested,
    latency,
)
from bedplate.adaptation.spec import load_adapt_task
from bedplate.core.config import dump_config
from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import atomic_write, file_lock, read_text, sha256_json
from bedplate.core.progress import console
from bedplate.core.statistics import spent_alpha
from bedplate.evaluation.examples import Example, TaskData
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.evaluation.ledger import Ledger, Opening
from bedplate.evaluation.task import load_examples
from bedplate.inference.local import LocalModel
from bedplate.inference.predict import Predictor
from bedplate.models.checkpoints.base import load_base
from bedplate.models.decoder import Decoder
from bedplate.skins.catalog import Catalog
from bedplate.skins.files import read_skin

SETTINGS_FILE, NOMINATION_FILE, LOCK_FILE = "task.yaml", "nomination.json", ".lock"


def adapt(
    task_path: Path | str,
    out: Path | str,
    *,
    rungs: Sequence[str] | None = None,
    budget: float | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> Report:
    """Adapt a base to a task in every way that fits, and decide which is the cheapest that provably meets the bar.

    out: the run's directory: rungs, skins, report.json, report.html; the skins carry the report as well. budget:
    wall-clock seconds for the whole ladder (by default the task's `train_minutes`). The same call again goes on where
    an interrupted one stopped.

    Raises ConfigError, DataError, HubError, CheckpointError or UsageError for bad input, before anything is written;
    the failure of one rung is recorded in the report and does not end the ladder.
    """
    task, spec = load_adapt_task(task_path, overrides, rungs)
    if budget is None and spec.budget.train_minutes is not None:
        budget = spec.budget.train_minutes * 60
    clock = Clock(budget)
    out = Path(out)
    _check_output(out)
    data = load_examples(task)
    source = source_of(spec.base, task)
    base = load_base(source)
    if not isinstance(base.model, Decoder):
        raise UsageError(f"{spec.base} is an encoder; `adapt` needs a decoder as its base")
    base.need_tokenizer()
    with LocalModel(base) as model:
        context = Context(task, spec, source, model, data.train, data.valid, data.hashes, data.test.n, out, clock, seed)
        _check_lengths(context)
        _check_output(out)
        atomic_write(out / SETTINGS_FILE, dump_config(task))
        with file_lock(out / LOCK_FILE), closing(context):
            return _Ladder(context, data).climb()


def _check_output(out: Path) -> None:
    """Refuse an output directory that holds something else, or that cannot be written, before time is spent."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out wants a directory")
    if out.is_dir() and any(out.iterdir()) and not (out / SETTINGS_FILE).is_file():
        raise UsageError(f"{out} holds other files and no run of `adapt`; choose a new directory")
    place = out.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {out}: {place} does not allow it; choose a place that can be written")


def _check_lengths(context: Context) -> None:
    """DataError for a train or valid row that does not fit the context of the base."""
    prompt, output = context.default_prompt()
    limit = context.model.base.spec.context_length
    tokenizer = context.model.tokenizer
    for example in (*context.train, *context.valid):
        if sum(map(len, example.inputs.values())) < limit // 5:
            continue  # no token is shorter than a byte and no character longer than four; the prompt is short
        found, answers = prompt.label_tokens(tokenizer, example.inputs, (), output)
        if len(found) + max(map(len, answers)) > limit:
            raise DataError(
                f"row {example.id}: its prompt has {len(found):,} tokens, more than the context of "
                f"{context.model.base.name} holds ({limit:,}); shorten or remove the row (nothing is cut off silently)"
            )


class _Ladder:
    def __init__(self, context: Context, data: TaskData) -> None:
        self.context, self.data = context, data
        self.out, self.task, self.spec = context.out, context.task, context.spec
        self.outcomes: dict[str, RungOutcome] = {}

    def climb(self) -> Report:
        """All rungs, nomination, test, verdict, report."""
        for name in self.spec.chosen_rungs:
            self.outcomes[name] = climb(self.context, RUNGS[name], self.out / "rungs" / name)
            _say(self.outcomes[name])
        results = {name: o.result for name, o in self.outcomes.items() if o.result is not None}
        nomination = self._nominate(results)
        tested, opening = self._test(nomination, results)
        alpha = spent_alpha(1 - self.spec.target.confidence, 1 if opening is None else opening.number)
        confirmations = gate.confirm(
            [(name, tested[name].evaluation) for name in nomination.nominees],
            {name: result.evaluation for name, result in results.items()},
            target=self.spec.target.value,
            alpha=alpha,
        )
        decision = gate.decide(
            nomination,
            confirmations,
            metric=self.task.metric,
            target=self.spec.target.value,
            n=self.data.test.n,
            groups=self.data.test.groups,
        )
        report = build_report(
            self.context, self.data, self.outcomes, nomination, tested, opening, alpha, confirmations, decision
        )
        write_report(report, self.out, [result.skin for result in results.values() if result.skin is not None])
        self._record(report, results)
        return report

    # --- the gate

    def _nominate(self, results: Mapping[str, Result]) -> gate.Nomination:
        """Nominees, fixed on valid and on disk before test is opened."""
        rate = self.spec.machine.usd_per_hour / 3600 * 1000
        candidates = [
            gate.Candidate(
                name,
                result.evaluation.estimate,
                result.evaluation.design_effect,
                result.latency.mean * rate,
                result.latency.p95 * 1000,
                result.prompt_tokens,
            )
            for name, result in results.items()
            if not RUNGS[name].reference
        ]
        nomination = gate.nominate(
            candidates,
            self.spec.budget,
            target=self.spec.target.value,
            confidence=1 - spent_alpha(1 - self.spec.target.confidence, 1),
            test_n=self.data.test.n,
            zero_shot="zero_shot" if "zero_shot" in results else None,
        )
        skins = {name: results[name].skin_id for name in nomination.nominees}
        record = {**nomination.to_json(), "skins": skins, "test": self.data.test.split_hash}
        atomic_write(self.out / NOMINATION_FILE, json.dumps(record, indent=1) + "\n")
        return nomination

    def _test(
        self, nomination: gate.Nomination, results: Mapping[str, Result]
    ) -> tuple[dict[str, Tested], Opening | None]:
        """The nominees on test, with zero-shot and the references beside them; one opening, in the ledger first."""
        if not nomination.nominees:
            return {}, None
        handle = self.data.test
        question = {
            "task": self.task.task,
            "rows": handle.split_hash,
            "metric": self.task.metric,
            "target": self.spec.target.model_dump(mode="json"),
            "skins": [results[name].skin_id for name in nomination.nominees],
        }
        reason = f"adapt {self.task.task}: verdict on {', '.join(nomination.nominees)}"
        opening = Ledger().open(sha256_json(question), handle.row_hashes, task=self.task.task, reason=reason)
        examples = handle.open(reason)
        tested: dict[str, Tested] = {}
        for name, result in results.items():
            if name in nomination.nominees or name == "zero_shot" or RUNGS[name].reference:
                tested[name] = self._tested(name, result, examples)
        return tested, opening

    def _tested(self, name: str, result: Result, examples: Sequence[Example]) -> Tested:
        """One skin, as read back from disk, on test, one call at a time as it will be served."""
        path = self.out / "test" / f"{name}.json"
        key = sha256_json([config_of(self.context, RUNGS[name]), result.skin_id, self.data.test.split_hash])
        if path.is_file():
            values = json.loads(read_text(path))
            if values["key"] == key:
                return Tested(
                    Evaluation.from_json(values["evaluation"]), Latency(**values["latency"]), values["too_long"]
                )
        predictor = RUNGS[name].predictor(self.context, result)
        if isinstance(predictor, Predictor):
            with _closing(predictor):
                ask(predictor, examples[:1], one_by_one=True)
                predictions = ask(predictor, examples, one_by_one=True)
        else:
            predictions = [predictor.predict([example.inputs])[0] for example in examples]
        evaluation = evaluate_predictions(self.task, examples, predictions, split="test", seed=self.context.seed)
        answered = [p.seconds for p in predictions if p is not None]
        tested = Tested(evaluation, latency(answered or [0.0]), sum(p is None for p in predictions))
        values = {
            "key": key,
            "evaluation": evaluation.to_json(),
            "latency": vars(tested.latency),
            "too_long": tested.too_long,
        }
        atomic_write(path, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return tested

    def _record(self, report: Report, results: Mapping[str, Result]) -> None:
        """Base, skins, run and report in the catalogue."""
        base = self.context.model.base
        with Catalog.open() as catalog:
            weights = catalog.record_base(base.name, base.identity, base.path, family=base.family.key[1])
            skins = [
                catalog.record_skin(read_skin(self.out / result.skin))
                for result in results.values()
                if result.skin is not None
            ]
            report_id = catalog.record_report(
                self.out / "report.json", self.task.task, {"verdict": report.data["verdict"]}, [weights, *skins]
            )
            run_id = sha256_json({"run": str(self.out.absolute()), **self.context.fingerprint()})
            catalog.record_run(run_id, f"adapt {self.task.task}", self.out, {"report": report_id}, [weights])


@contextmanager
def _closing(predictor: Predictor) -> Generator[None]:
    try:
        yield
    finally:
        predictor.close()


def _say(outcome: RungOutcome) -> None:
    """One line on stderr when a rung is over, where somebody watches."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        return
    shown = outcome.status
    if outcome.result is not None:
        evaluation = outcome.result.evaluation
        shown = f"{evaluation.metric} {evaluation.estimate:.3f} on valid, {outcome.seconds:.0f} s"
    screen.print(f"{outcome.rung:<13} {shown}", highlight=False)
