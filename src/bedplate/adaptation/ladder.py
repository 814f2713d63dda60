"""Climb the ladder: tune every rung on valid, nominate, open test once, and decide.

Everything that finishes is kept in the output directory, so that the same command resumes where it was interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.clock import Clock, Stopwatch
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungOutcome, RungResult, Tested
from bedplate.adaptation.context.reserve import seconds_on_test
from bedplate.adaptation.curve.learning_curve import learning_curve, possible_sizes
from bedplate.adaptation.labels.sequential_looks import SINGLE_LOOK, Looking, rows_of
from bedplate.adaptation.report.catalog_entries import record
from bedplate.adaptation.report.dollars import curve_in_dollars
from bedplate.adaptation.report.report import build_report, write_report
from bedplate.adaptation.rungs import chosen_rungs
from bedplate.adaptation.rungs.rung import Side
from bedplate.adaptation.search import formats, planner
from bedplate.adaptation.search.candidates import candidates_of
from bedplate.adaptation.search.evaluate_on_test import judge
from bedplate.adaptation.search.guard_drops import GuardResult
from bedplate.adaptation.search.guard_looks import children, guards_asked
from bedplate.adaptation.search.guards import broken, check_child
from bedplate.adaptation.search.retiming import retimed
from bedplate.adaptation.search.run_all import Ascent
from bedplate.adaptation.search.start import LOCK_FILE, begin, check_bases, check_output, opened
from bedplate.adaptation.search.task_file import load_adapt_task
from bedplate.adaptation.task.parent import read_parent
from bedplate.adaptation.verdict import gate, rules
from bedplate.adaptation.verdict.acceptance import Hurdles
from bedplate.adaptation.verdict.admission import admissions
from bedplate.adaptation.verdict.candidate import over
from bedplate.adaptation.verdict.earlier_nominees import fixed, write
from bedplate.adaptation.verdict.second_labels import check_bar, second_labels
from bedplate.core.arguments import checked
from bedplate.core.errors import UsageError
from bedplate.core.files import file_lock, sha256_json
from bedplate.core.statistics import spent_alpha
from bedplate.data.rows import SourceRows
from bedplate.evaluation.examples import TaskData
from bedplate.evaluation.in_memory import given_rows, overrides_for, write_sources
from bedplate.evaluation.ledger import Opening, ledger_for
from bedplate.report.run_report import Report
from bedplate.report.schema_plan import Formats

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
    looking: Looking | None = None,
) -> Report:
    """Adapt a base to a task in every way that fits, and decide which is the cheapest that provably meets the bar.

    out: the run's directory: rungs, skins, report.json, report.html; the skins carry the report as well. budget:
    wall-clock seconds for the whole ladder (by default the task's `train_minutes`). curve: numbers of labels to draw
    learning curves over, in the time that the ladder leaves. exhaustive: budgets of time and money and rules of thumb
    leave no rung out, nor parts of one. parent: the directory of a skin that the new ones take over from, on newer
    data. data: rows in place of the task's own source, as `evaluate` takes them; they are kept in `out`. looking: the
    task's rows as far as they have labels (`adapt_with_labels`). The same call again resumes where an interrupted one
    stopped; what it did and what a limit made it leave out stays as it was.

    Raises ConfigError (also for a task file that does not say which rows belong together, or does not answer what its
    rows show of that), DataError, HubError, CheckpointError or UsageError for bad input, before anything is written;
    the failure of one rung is recorded in the report and does not end the ladder.
    """
    out, memory_rows = Path(out), dict[str, SourceRows]()
    if data is not None:
        task_dir = Path(task_path).parent
        memory_rows = given_rows(
            data, lambda split, _: os.path.relpath(out / f"rows{split and '-'}{split}.jsonl", task_dir)
        )
    task, spec = load_adapt_task(task_path, [*overrides, *(overrides_for(memory_rows) if memory_rows else ())], rungs)
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
    data = rows_of(task, looking, None if taken_over is None else taken_over.assigned, memory_rows)
    check_bar(second_labels(task, data, spec.target.confidence), spec.target.value, str(task.path))
    if curve:
        possible_sizes(curve, len(data.train))
    with opened(task, spec, data, out, clock, seed=seed, exhaustive=exhaustive, parent=taken_over) as contexts:
        check_bases(contexts)
        check_output(out)
        with file_lock(out / LOCK_FILE):
            begin(contexts, data, out, Path(task_path))
            write_sources(memory_rows, task.directory)
            return _Ladder(contexts, data, out, curve, watch, looking).climb()


class _Ladder:
    def __init__(
        self,
        contexts: Sequence[Context],
        data: TaskData,
        out: Path,
        curve: Sequence[int],
        watch: Stopwatch,
        looking: Looking | None = None,
    ) -> None:
        self.contexts, self.data, self.out, self.curve, self.watch = contexts, data, out, curve, watch
        self.looking = looking
        self.context = contexts[0]
        self.task, self.spec = self.context.task, self.context.spec
        self.expectations = rules.written_down(next((c for c in contexts if not c.is_encoder), self.context))
        favours = rules.favoured(self.expectations)
        chosen = planner.order(chosen_rungs(self.spec), favours)
        self.candidates = {candidate.name: candidate for candidate in candidates_of(contexts, chosen)}
        self.outcomes: dict[str, RungOutcome] = {}
        self.favours: Side = "weights" if favours == "tuning" else "prompt"
        self.reserved: float | None = None
        """Seconds that test was expected to take when it was opened."""
        self.hurdles = Hurdles(self.context)
        self.formats: dict[str, Formats] = {}
        """What became of the formats of candidates that they were looked at for."""

    def climb(self) -> Report:
        """All rungs, nomination in the weights to serve, test, verdict, report; and once that is written, the learning
        curves."""
        self.outcomes = Ascent(self.candidates, self.favours, self._likely).climb()
        results = {name: o.result for name, o in self.outcomes.items() if o.result is not None}
        self.hurdles.settle(self.outcomes)
        nomination, guarded = self._nominated(results)
        tested, opening = self._test(nomination, results)
        earlier = guards_asked(self.candidates, nomination.nominees, results, guarded)
        number = 1 if opening is None else max(opening.number, earlier)
        alpha = spent_alpha(1 - self.spec.target.confidence, number)
        hurdles = self.hurdles.on_test(nomination.nominees, tested, results)
        valid = {name: self.hurdles.judged(result) for name, result in results.items() if result.skin is not None}
        looking = self.looking or SINGLE_LOOK
        confirmations = gate.confirm(
            [(name, looking.looked(hurdles.judged[name])) for name in nomination.nominees],
            valid,
            target=hurdles.score,
            alpha=alpha,
            next_alpha=spent_alpha(1 - self.spec.target.confidence, number + 1),
            checks={
                n: partial(looking.passes, partial(hurdles.passes, n, guarded.get(n, ()))) for n in nomination.nominees
            },
            order=gate.order_of(self.spec.testing, nomination, valid),
            claims=hurdles.claims,
        )
        levels = {confirmation.rung: looking.level(confirmation.lower_confidence) for confirmation in confirmations}
        required = hurdles.at(levels)
        guarded = {
            n: [guard.at(levels[n]) for guard in guard_results] if n in levels else guard_results
            for n, guard_results in guarded.items()
        }
        limits = gate.limits(self.spec, {name: tested[name].latency for name in nomination.nominees})
        clock = self.context.clock
        kept_out = admissions(
            self._nominables(results, guarded),
            self.outcomes,
            self.spec.budget,
            {} if clock.seconds is None else {"train_minutes": clock.seconds / 60},
            self.task.scale,
            {name: result.latency.load for name, result in results.items()},
        )
        decision = gate.decide(
            nomination,
            confirmations,
            metric=self.task.metric_name,
            target=hurdles.score,
            n=self.data.test.n,
            groups=self.data.test.groups,
            guards=guarded,
            kept_out=kept_out,
            limits=limits,
            requirements=required,
            scale=self.task.scale,
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
            kept_out=kept_out,
            reserved=self.reserved,
            labels=None if self.looking is None else self.looking.record_at(alpha),
            watch=self.watch,
            hurdles=self.hurdles,
            required=required,
            bar=hurdles.score,
        )
        self._write(report, results)
        if self.curve:
            curve = curve_in_dollars(learning_curve(self.candidates, self.outcomes, self.curve), self.task.scale)
            report = report.with_curve(curve, self.context.clock.used, self.context.clock.spent)
            self._write(report, results)
        return report

    def _likely(self, results: Mapping[str, RungResult]) -> list[str]:
        """Who would be asked on test if the climb ended now."""
        return list(dict.fromkeys(filter(None, (*self._nomination(results, {}).nominees, self._baseline(results)))))

    def _write(self, report: Report, results: Mapping[str, RungResult]) -> None:
        """report.json and report.html, here and in the skins, and the catalogue's record of them."""
        write_report(report, self.out, [result.skin for result in results.values() if result.skin is not None])
        record(report, self.out, self.task.task, [context.at.facts for context in self.contexts], results.values())

    # --- the gate

    def _nominated(self, results: dict[str, RungResult]) -> tuple[gate.Nomination, dict[str, list[GuardResult]]]:
        """Nominees, and the guards of those that stand on a child base: one that was shown to break a guard makes room
        for another, before test is opened. Each is nominated by the weights that it will be served in, which then are
        those of `results`; what these make cheaper may be nominated in the place of another."""
        guarded: dict[str, list[GuardResult]] = {}
        timed: set[str] = set()
        while True:
            nomination = self._nominate(results, guarded)
            untimed = [name for name in self._to_time(nomination, results, guarded) if name not in timed]
            for name in untimed:
                with self.watch.timed("latency", name):
                    results[name] = retimed(self.candidates[name], results[name])
            timed.update(untimed)
            if untimed:  # which may bring other nominees
                continue
            unchecked = [
                name for name in nomination.nominees if name not in guarded and children(self.candidates, name)
            ]
            for name in unchecked:
                with self.watch.timed("guards", name):
                    guarded[name] = [
                        guard for at, child in children(self.candidates, name) for guard in check_child(at, child)
                    ]
            untried = [] if unchecked else self._untried(nomination, results, guarded)
            for name in untried:
                with self.watch.timed("formats", name):
                    self.formats[name], results[name] = formats.choose(self.candidates[name])
            if not unchecked and not untried:
                served_formats = {chosen.kept for chosen in self.formats.values()}
                for climbed in self.context.climbed.values():
                    climbed.base.close_formats(but=[name for name in served_formats if name is not None])
                return nomination, guarded

    def _untried(
        self,
        nomination: gate.Nomination,
        results: Mapping[str, RungResult],
        guarded: Mapping[str, Sequence[GuardResult]],
    ) -> list[str]:
        """Candidates whose formats are to be looked at: nominees, and those above the target that only a call's time or
        price keeps out, where a format could change that. The cheapest nominee comes first, for time may end: it is the
        one that is served if it passes."""
        if not self.spec.formats.allowed:
            return []
        servable = [name for name in self.context.climbed if name in results and name not in self.formats]
        out = [name for name in servable if name not in nomination.nominees and self._could_fit(name, results, guarded)]
        return [*(name for name in nomination.nominees if name in servable), *out]

    def _to_time(
        self,
        nomination: gate.Nomination,
        results: Mapping[str, RungResult],
        guarded: Mapping[str, Sequence[GuardResult]],
    ) -> list[str]:
        """Candidates whose calls are timed once more: nominees, and those above the target that only what a call takes
        keeps out."""
        nominables = {nominable.rung: nominable for nominable in self._nominables(results, guarded)}
        keys = {
            name: {key for key, _, _ in over(nominable, self.spec.budget)} for name, nominable in nominables.items()
        }
        slow = [
            name
            for name, nominable in nominables.items()
            if nominable.broken is None
            and nominable.estimate > self.hurdles.score
            and keys[name]
            and keys[name] <= {"p95_ms", "usd_per_1k_calls"}
        ]
        return [*nomination.nominees, *slow]

    def _could_fit(
        self, name: str, results: Mapping[str, RungResult], guarded: Mapping[str, Sequence[GuardResult]]
    ) -> bool:
        """Whether a candidate above the target is out of the budget now and would not be where its calls took as much
        less time as a format was measured to save."""
        current = self._nominable(name, results[name], guarded)
        times = self.candidates[name].context.format_gain
        p95_floor = None if current.p95_least_ms is None else current.p95_least_ms / times
        quantized = replace(
            current,
            usd_per_1k_calls=current.usd_per_1k_calls / times,
            p95_ms=current.p95_ms / times,
            p95_least_ms=p95_floor,
        )
        budget, out = self.spec.budget, gate.infeasible
        return (
            current.estimate > self.hurdles.score
            and out(current, budget) is not None
            and out(quantized, budget) is None
        )

    def _nominable(self, name: str, result: RungResult, guarded: Mapping[str, Sequence[GuardResult]]) -> gate.Nominable:
        """A skin as nomination looks at it."""
        p95_floor, _ = result.latency.p95_bounds(self.spec.target.confidence)
        judged = self.hurdles.judged(result)
        return gate.Nominable(
            name,
            judged.estimate,
            judged.design_effect,
            1000 * result.price(self.spec.machine.usd_per_hour, result.latency.mean),
            result.latency.p95 * 1000,
            result.prompt_tokens,
            broken(guarded.get(name, ())),
            judged.row_variance,
            None if p95_floor is None else 1000 * p95_floor,
            self.hurdles.short(result),
        )

    def _nominate(
        self, results: Mapping[str, RungResult], guarded: Mapping[str, Sequence[GuardResult]]
    ) -> gate.Nomination:
        """Nominees, fixed on valid and on disk before test is opened."""
        path, repeated_look = self.out / NOMINATION_FILE, self.looking is not None and not self.looking.first
        nomination = fixed(path, results) if repeated_look and path.is_file() else self._nomination(results, guarded)
        write(path, nomination, results, self.data.test.split_hash)
        return nomination

    def _nominables(
        self, results: Mapping[str, RungResult], guarded: Mapping[str, Sequence[GuardResult]]
    ) -> list[gate.Nominable]:
        self.hurdles.compare(results)
        return [
            self._nominable(name, result, guarded)
            for name, result in results.items()
            if result.skin is not None and name != self.spec.target.against
        ]

    def _nomination(
        self, results: Mapping[str, RungResult], guarded: Mapping[str, Sequence[GuardResult]]
    ) -> gate.Nomination:
        return gate.nominate(
            self._nominables(results, guarded),
            self.spec.budget,
            target=self.hurdles.score,
            confidence=1 - spent_alpha(1 - self.spec.target.confidence, 1),
            test_n=self.data.test.n if self.looking is None else self.looking.record.planned,
            baseline=self._baseline(results),
            scale=self.task.scale,
        )

    def _baseline(self, results: Mapping[str, RungResult]) -> str | None:
        """What superiority is claimed over: the task's first base as it is, or the first that can be asked so."""
        baselines = [
            candidate
            for candidate in self.candidates.values()
            if candidate.traits.role == "baseline" and candidate.name in results
        ]
        order = [context.at for context in self.contexts]
        return min(baselines, key=lambda candidate: order.index(candidate.context.at)).name if baselines else None

    def _test(
        self, nomination: gate.Nomination, results: Mapping[str, RungResult]
    ) -> tuple[dict[str, Tested], Opening | None]:
        """The nominees on test, with the baseline and the references beside them; one opening, in the ledger first."""
        if not nomination.nominees:
            return {}, None
        handle = self.data.test
        whole_test = handle if self.looking is None else self.looking.whole
        self.reserved = 0.0
        question = {
            "task": self.task.task,
            "rows": whole_test.split_hash,
            "metric": self.task.metric_name,
            "target": self.spec.target.model_dump(mode="json"),
            "skins": [results[name].skin_id for name in nomination.nominees],
            **self.hurdles.question_parts(self.data.hashes),
        }
        reason = f"adapt {self.task.task}: verdict on {', '.join(nomination.nominees)}"
        ledger = ledger_for(self.task, leave=self.out)
        opening = ledger.open(sha256_json(question), whole_test.keys, task=self.task.task, reason=reason)
        examples = handle.open(reason)
        tested: dict[str, Tested] = {}
        for name, result in results.items():
            candidate = self.candidates[name]
            compared = name in (*nomination.nominees, self._baseline(results), self.spec.target.against)
            if compared:
                alone = candidate.context.single_test_calls
                self.reserved += seconds_on_test([result], self.data.test.n, alone, None)
            if compared or candidate.traits.side == "reference":
                with self.watch.timed("tests", name):
                    tested[name] = judge(candidate, result, examples, self.out, handle.split_hash)
        self.hurdles.open_test(examples, tested, results)
        return tested, opening
