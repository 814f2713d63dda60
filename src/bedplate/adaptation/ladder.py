"""Climb the ladder: tune every rung on valid, nominate, open test once, and decide.

Everything that finishes is kept in the output directory, so that the same command goes on where it was interrupted.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bedplate.adaptation.climb import formats, planner
from bedplate.adaptation.climb.candidates import Candidate, candidates_of
from bedplate.adaptation.climb.fingerprint import config_of
from bedplate.adaptation.climb.guard_drops import GuardResult, hold
from bedplate.adaptation.climb.guards import broken, check_child, guards_opened
from bedplate.adaptation.climb.start import LOCK_FILE, begin, check_bases, check_output, climb_candidate, opened
from bedplate.adaptation.climb.task_file import load_adapt_task
from bedplate.adaptation.context.clock import Clock, Stopwatch
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import Latency, Result, RungOutcome, Tested, latency
from bedplate.adaptation.curve.learning_curve import learning_curve, possible_sizes
from bedplate.adaptation.report.report import build_report, write_report
from bedplate.adaptation.rungs import chosen_rungs
from bedplate.adaptation.rungs.answers import ask, single_calls
from bedplate.adaptation.task.parent import read_parent
from bedplate.adaptation.verdict import gate, rules
from bedplate.core.arguments import checked
from bedplate.core.errors import UsageError
from bedplate.core.files import atomic_write, file_lock, read_text, sha256_json
from bedplate.core.progress import console
from bedplate.core.statistics import spent_alpha
from bedplate.data.rows import Rows
from bedplate.evaluation.examples import Example, TaskData, load_examples
from bedplate.evaluation.given import given_rows, keep, overrides_for
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.evaluation.ledger import Ledger, Opening
from bedplate.evaluation.task_row import PredictionLike
from bedplate.inference.predict.composed import Answers
from bedplate.report.run_report import Report
from bedplate.report.schema_plan import Formats
from bedplate.skins.catalog import Catalog
from bedplate.skins.files import read_skin

NOMINATION_FILE = "nomination.json"


@checked
def adapt(
    task_path: Path | str,
    out: Path | str,
    *,
    rungs: Sequence[str] | None = None,
    budget: float | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    curve: Sequence[int] = (),
    exhaustive: bool = False,
    parent: Path | str | None = None,
    data: Any = None,
) -> Report:
    """Adapt a base to a task in every way that fits, and decide which is the cheapest that provably meets the bar.

    out: the run's directory: rungs, skins, report.json, report.html; the skins carry the report as well. budget:
    wall-clock seconds for the whole ladder (by default the task's `train_minutes`). curve: numbers of labels to draw
    learning curves over, in the time that the ladder leaves. exhaustive: budgets of time and money and rules of thumb
    leave no rung out, nor parts of one. parent: the directory of a skin that the new ones take over from, on newer
    data. data: rows in place of the task's own source, as `evaluate` takes them; they are kept in `out`. The same call
    again goes on where an interrupted one stopped; what it did and what a limit made it leave out
    stays as it was.

    Raises ConfigError, DataError, HubError, CheckpointError or UsageError for bad input, before anything is written;
    the failure of one rung is recorded in the report and does not end the ladder.
    """
    out, given = Path(out), dict[str, Rows]()
    if data is not None:
        beside = Path(task_path).parent
        given = given_rows(data, lambda split, _: os.path.relpath(out / f"rows{split and '-'}{split}.jsonl", beside))
    task, spec = load_adapt_task(task_path, [*overrides, *(overrides_for(given) if given else ())], rungs)
    if budget is None and spec.budget.train_minutes is not None:
        budget = spec.budget.train_minutes * 60
    clock = Clock(budget, usd=spec.budget.train_usd, usd_per_hour=spec.machine.usd_per_hour)
    watch = Stopwatch()
    check_output(out)
    if task.output.kind == "embedding":
        raise UsageError(
            f"{task.path}: there is no ladder for vectors yet; compare bases and skins that embed with "
            f"`bedplate evaluate BASE {task.path}`"
        )
    task.scorer.ready()
    taken_over = None if parent is None else read_parent(parent, task)
    data = load_examples(task, None if taken_over is None else taken_over.assigned, given or None)
    if curve:
        possible_sizes(curve, len(data.train))
    with opened(task, spec, data, out, clock, seed=seed, exhaustive=exhaustive, parent=taken_over) as contexts:
        check_bases(contexts)
        check_output(out)
        with file_lock(out / LOCK_FILE):
            begin(contexts, data, out, Path(task_path))
            keep(given, task.directory)
            return _Ladder(contexts, data, out, curve, watch).climb()


class _Ladder:
    def __init__(
        self, contexts: Sequence[Context], data: TaskData, out: Path, curve: Sequence[int], watch: Stopwatch
    ) -> None:
        self.contexts, self.data, self.out, self.curve, self.watch = contexts, data, out, curve, watch
        self.context = contexts[0]
        self.task, self.spec = self.context.task, self.context.spec
        self.expectations = rules.written_down(next((c for c in contexts if not c.is_encoder), self.context))
        chosen = planner.order(chosen_rungs(self.spec), rules.favoured(self.expectations))
        self.candidates = {one.name: one for one in candidates_of(contexts, chosen)}
        self.outcomes: dict[str, RungOutcome] = {}
        self.formats: dict[str, Formats] = {}
        """What became of the formats of candidates that they were looked at for."""

    def climb(self) -> Report:
        """All rungs, nomination in the weights to serve, test, verdict, report; and once that is written, the learning
        curves."""
        for candidate in self.candidates.values():
            self._share(candidate)
            self.outcomes[candidate.name] = climb_candidate(candidate)
            _say(self.outcomes[candidate.name])
        results = {name: o.result for name, o in self.outcomes.items() if o.result is not None}
        nomination, guarded = self._nominated(results)
        tested, opening = self._test(nomination, results)
        earlier = self._guards_opened(nomination.nominees, results, guarded)
        number = 1 if opening is None else max(opening.number, earlier)
        alpha = spent_alpha(1 - self.spec.target.confidence, number)
        confirmations = gate.confirm(
            [(name, tested[name].evaluation) for name in nomination.nominees],
            {name: result.evaluation for name, result in results.items() if result.skin is not None},
            target=self.spec.target.value,
            alpha=alpha,
            next_alpha=spent_alpha(1 - self.spec.target.confidence, number + 1),
            holds={name: partial(hold, made) for name, made in guarded.items()},
        )
        levels = {one.rung: one.lower_confidence for one in confirmations}
        guarded = {n: [one.at(levels[n]) for one in made] if n in levels else made for n, made in guarded.items()}
        limits = gate.limits(self.spec, {name: tested[name].latency for name in nomination.nominees})
        decision = gate.decide(
            nomination,
            confirmations,
            metric=self.task.metric_name,
            target=self.spec.target.value,
            n=self.data.test.n,
            groups=self.data.test.groups,
            guards=guarded,
            limits=limits,
        )
        bases = {name: candidate.base for name, candidate in self.candidates.items()}
        served = {name: replace(o, result=results.get(name)) for name, o in self.outcomes.items()}
        report = build_report(
            self.contexts,
            self.data,
            served,
            bases,
            nomination,
            tested,
            opening,
            alpha,
            confirmations,
            decision,
            predictions=rules.score(self.expectations, served, tested, self.context.seed),
            guards=guarded,
            limits=limits,
            formats=self.formats,
            watch=self.watch,
        )
        self._write(report, results)
        if self.curve:
            curve = learning_curve(self.candidates, self.outcomes, self.curve)
            report = report.with_curve(curve, self.context.clock.used, self.context.clock.spent)
            self._write(report, results)
        return report

    def _share(self, candidate: Candidate) -> None:
        """Before the first rung of a base: what it may use of the time, so that those after it have as much."""
        context, clock = candidate.context, candidate.context.clock
        if not candidate.on_base:  # what comes after all bases has what they left
            context.until = math.inf
        elif len(self.contexts) > 1 and math.isinf(context.until) and clock.left < math.inf:
            waiting = {c.context for c in self.candidates.values() if c.on_base and c.name not in self.outcomes}
            context.until = clock.used + max(clock.left - context.test_reserve, 0.0) / len(waiting)

    def _write(self, report: Report, results: Mapping[str, Result]) -> None:
        """report.json and report.html, here and in the skins, and the catalogue's record of them."""
        write_report(report, self.out, [result.skin for result in results.values() if result.skin is not None])
        self._record(report, results)

    # --- the gate

    def _nominated(self, results: dict[str, Result]) -> tuple[gate.Nomination, dict[str, list[GuardResult]]]:
        """Nominees, and the guards of those that stand on a child base: one that was shown to break a guard makes room
        for another, before test is opened. Each is nominated by the weights that it will be served in, which then are
        those of `results`; what these make cheaper may be nominated in the place of another."""
        guarded: dict[str, list[GuardResult]] = {}
        while True:
            nomination = self._nominate(results, guarded)
            unchecked = [name for name in nomination.nominees if name not in guarded and self._children(name)]
            for name in unchecked:
                with self.watch.timed("guards", name):
                    guarded[name] = [one for at, child in self._children(name) for one in check_child(at, child)]
            untried = [] if unchecked else self._untried(nomination, results, guarded)
            for name in untried:
                with self.watch.timed("formats", name):
                    self.formats[name], results[name] = formats.choose(self.candidates[name])
            if not unchecked and not untried:
                kept = {chosen.kept for chosen in self.formats.values()}
                for one in self.context.climbed.values():
                    one.base.close_formats(but=[name for name in kept if name is not None])
                return nomination, guarded

    def _untried(
        self, nomination: gate.Nomination, results: Mapping[str, Result], guarded: Mapping[str, Sequence[GuardResult]]
    ) -> list[str]:
        """Candidates whose formats are to be looked at: nominees, and those above the target that only a call's time or
        price keeps out, where a format could change that. The cheapest nominee comes first, for time may end: it is the
        one that is served if it passes."""
        if not self.spec.formats.allowed:
            return []
        made = [name for name in self.context.climbed if name in results and name not in self.formats]
        out = [name for name in made if name not in nomination.nominees and self._could_fit(name, results, guarded)]
        return [*(name for name in nomination.nominees if name in made), *out]

    def _could_fit(
        self, name: str, results: Mapping[str, Result], guarded: Mapping[str, Sequence[GuardResult]]
    ) -> bool:
        """Whether a candidate above the target is out of the budget now and would not be where its calls took as much
        less time as a format was measured to save."""
        now = self._nominable(name, results[name], guarded)
        times = self.candidates[name].context.format_gain
        least = None if now.p95_least_ms is None else now.p95_least_ms / times
        then = replace(
            now, usd_per_1k_calls=now.usd_per_1k_calls / times, p95_ms=now.p95_ms / times, p95_least_ms=least
        )
        budget, out = self.spec.budget, gate.infeasible
        return now.estimate > self.spec.target.value and out(now, budget) is not None and out(then, budget) is None

    def _nominable(self, name: str, result: Result, guarded: Mapping[str, Sequence[GuardResult]]) -> gate.Nominable:
        """A skin as nomination looks at it."""
        least, _ = result.latency.p95_bounds(self.spec.target.confidence)
        return gate.Nominable(
            name,
            result.evaluation.estimate,
            result.evaluation.design_effect,
            1000 * result.price(self.spec.machine.usd_per_hour, result.latency.mean),
            result.latency.p95 * 1000,
            result.prompt_tokens,
            broken(guarded.get(name, ())),
            result.evaluation.row_variance,
            None if least is None else 1000 * least,
        )

    def _children(self, name: str) -> list[tuple[Context, Path]]:
        """The child bases that a candidate stands on, its own or those of its parts, with what they are children of."""
        parts = [self.candidates[part] for part in self.candidates[name].climbed.result.parts or (name,)]
        made = [(part.context, part.climbed.child) for part in parts]
        return [(context, child) for context, child in made if child is not None]

    def _nominate(self, results: Mapping[str, Result], guarded: Mapping[str, Sequence[GuardResult]]) -> gate.Nomination:
        """Nominees, fixed on valid and on disk before test is opened."""
        candidates = [
            self._nominable(name, result, guarded) for name, result in results.items() if result.skin is not None
        ]
        nomination = gate.nominate(
            candidates,
            self.spec.budget,
            target=self.spec.target.value,
            confidence=1 - spent_alpha(1 - self.spec.target.confidence, 1),
            test_n=self.data.test.n,
            baseline=self._baseline(results),
        )
        skins = {name: results[name].skin_id for name in nomination.nominees}
        record = {**nomination.to_json(), "skins": skins, "test": self.data.test.split_hash}
        atomic_write(self.out / NOMINATION_FILE, json.dumps(record, indent=1) + "\n")
        return nomination

    def _baseline(self, results: Mapping[str, Result]) -> str | None:
        """What superiority is claimed over: the task's first base as it is, or the first that can be asked so."""
        made = [one for one in self.candidates.values() if one.traits.role == "baseline" and one.name in results]
        return min(made, key=lambda one: self.contexts.index(one.context)).name if made else None

    def _test(
        self, nomination: gate.Nomination, results: Mapping[str, Result]
    ) -> tuple[dict[str, Tested], Opening | None]:
        """The nominees on test, with the baseline and the references beside them; one opening, in the ledger first."""
        if not nomination.nominees:
            return {}, None
        handle = self.data.test
        question = {
            "task": self.task.task,
            "rows": handle.split_hash,
            "metric": self.task.metric_name,
            "target": self.spec.target.model_dump(mode="json"),
            "skins": [results[name].skin_id for name in nomination.nominees],
        }
        reason = f"adapt {self.task.task}: verdict on {', '.join(nomination.nominees)}"
        opening = Ledger().open(sha256_json(question), handle.row_hashes, task=self.task.task, reason=reason)
        examples = handle.open(reason)
        tested: dict[str, Tested] = {}
        for name, result in results.items():
            candidate = self.candidates[name]
            wanted = name in nomination.nominees or name == self._baseline(results)
            if wanted or candidate.traits.side == "reference":
                with self.watch.timed("tests", name):
                    tested[name] = self._tested(candidate, result, examples)
        return tested, opening

    def _guards_opened(
        self, nominees: Sequence[str], results: Mapping[str, Result], guarded: Mapping[str, Sequence[GuardResult]]
    ) -> int:
        looked = [
            (results[name].skin_id, at.at.facts.identity.weights_id, guarded[name])
            for name in nominees
            if name in guarded
            for at, _ in self._children(name)
        ]
        return guards_opened(self.task.task, looked)

    def _tested(self, candidate: Candidate, result: Result, examples: Sequence[Example]) -> Tested:
        """One skin, as read back from disk, on test, one call at a time as it will be served. Answers that are written
        take long: then as many calls as time it, and the other rows in batches."""
        path = self.out / "test" / f"{candidate.name}.json"
        key = sha256_json([config_of(candidate.context, candidate.rung), result.skin_id, self.data.test.split_hash])
        if path.is_file():
            values = json.loads(read_text(path))
            if values["key"] == key:
                return Tested(
                    Evaluation.from_json(values["evaluation"]), Latency(**values["latency"]), values["too_long"]
                )
        predictor = candidate.rung.predictor(candidate.context, candidate.own(result))
        predictions: Sequence[PredictionLike | None]
        if isinstance(predictor, Answers):
            with closing(predictor):
                ask(predictor, examples[:1], one_by_one=True)
                order = candidate.context.ordered(examples, "latency")
                count = candidate.context.single_test_calls
                alone = ask(predictor, order[:count], one_by_one=True)
                rest = ask(predictor, order[count:]) if count < len(order) else []
                timed = [p.seconds for p in alone if p is not None]
                least = 0 if candidate.traits.needs == "endpoint" else candidate.context.least_timed
                while timed and len(timed) < least:  # of fewer calls no bound is within any budget
                    more = single_calls(predictor, order[:count], tenant=f"timing-{len(timed)}")
                    timed += [p.seconds for p in more]
            by_id = dict(zip([e.id for e in order], [*alone, *rest], strict=True))
            predictions = [by_id[e.id] for e in examples]
            candidate.context.clock.charge(sum(p.usd or 0.0 for p in by_id.values() if p is not None))
        else:
            given = [predictor.predict([example.inputs])[0] for example in examples]
            predictions = [one for one in given if not isinstance(one, str)]
            assert len(predictions) == len(examples)  # the references answer as skins do
            timed = [p.seconds for p in predictions]
        evaluation = evaluate_predictions(self.task, examples, predictions, split="test", seed=self.context.seed)
        tested = Tested(evaluation, latency(timed or [0.0]), sum(p is None for p in predictions))
        values = {
            "key": key,
            "evaluation": evaluation.to_json(),
            "latency": vars(tested.latency),
            "too_long": tested.too_long,
        }
        atomic_write(path, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return tested

    def _record(self, report: Report, results: Mapping[str, Result]) -> None:
        """Bases, skins, run and report in the catalogue."""
        with Catalog.open() as catalog:
            known = [context.at.facts for context in self.contexts]
            weights = [catalog.record_base(b.short, b.identity, b.path, family=b.family) for b in known]
            skins = [
                catalog.record_skin(read_skin(self.out / result.skin))
                for result in results.values()
                if result.skin is not None
            ]
            catalog.record_report(
                self.out / "report.json", self.task.task, {"verdict": report.data["verdict"]}, [*weights, *skins]
            )
            catalog.add([self.out / result.child for result in results.values() if result.child is not None])
            catalog.record_run_of(self.out)


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
