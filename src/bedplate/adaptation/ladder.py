"""Adapt a base to a task in every way that fits, and decide which is the cheapest that provably meets the bar.

1. `adapt` reads the task file, checks it and the rows (`task.task_file`, `search.start`), and loads every base once.
2. Every candidate is fitted on train and evaluated on valid, what is worth most for its time first (`search.run_all`).
3. Nominees are chosen on valid (`verdict.gate.nominate`); their calls are timed again, the guards of their child bases
   and quantised formats are looked at, until nothing brings another nominee. They are then fixed on disk.
4. Test is opened once, through the ledger, for the nominees and the references (`search.run_rung`).
5. Bounds with the error that this verdict may spend, then the decision (`verdict.gate.confirm`, `verdict.decision`).
6. The report is written, here and into the skins (`report.report`); learning curves follow in the time that is left.

Everything that finishes is on disk in the output directory, so the same command resumes an interrupted run.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from os.path import relpath
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.clock import Clock, Stopwatch, seconds_on_test
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import Tested
from bedplate.adaptation.curve.learning_curve import learning_curve, possible_sizes
from bedplate.adaptation.labels.label_plan import SINGLE_LOOK, Looking, rows_of
from bedplate.adaptation.report.report import build_report, curve_in_dollars, record, write_report
from bedplate.adaptation.rungs import chosen_rungs
from bedplate.adaptation.search import formats, planner
from bedplate.adaptation.search.base_format import choose_formats
from bedplate.adaptation.search.candidates import candidates_of
from bedplate.adaptation.search.guards import broken, check_child, children, guards_asked
from bedplate.adaptation.search.run_all import Ascent
from bedplate.adaptation.search.run_rung import is_part, judge, retimed
from bedplate.adaptation.search.start import begin, check_bases, check_output, claimed, opened, set_up
from bedplate.adaptation.task.parent import read_parent
from bedplate.adaptation.task.proposal import task_file_of
from bedplate.adaptation.task.task_file import load_adapt_task
from bedplate.adaptation.verdict import decision, gate, rules_of_thumb
from bedplate.adaptation.verdict.acceptance import AcceptanceCriteria
from bedplate.adaptation.verdict.label_ceiling import check_bar, second_labels
from bedplate.adaptation.verdict.ladder_run import LadderRun
from bedplate.core.arguments import checked
from bedplate.core.display import confidence_text
from bedplate.core.errors import UsageError
from bedplate.core.executor import Executor
from bedplate.core.files import sha256_json
from bedplate.core.progress import Countdown, notice
from bedplate.core.quantities import parse_seconds
from bedplate.core.statistics.multiplicity import more_rows, spent_alpha
from bedplate.data.rows import SourceRows
from bedplate.evaluation.examples import TaskData
from bedplate.evaluation.in_memory import given_rows, overrides_for, write_sources
from bedplate.evaluation.ledger import ledger_for
from bedplate.report.run_report import Report
from bedplate.report.schema_parts import Limit

NOMINATION_FILE = "nomination.json"
TOLD_SECONDS = 5.0
"""Seconds beside the time limit from which on they are told."""


@checked
def adapt(
    task: Path | str | Mapping[str, Any] | Any,
    out: Path | str,
    *,
    target: str | None = None,
    rungs: Sequence[str] | None = None,
    budget: float | str | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    curve: Sequence[int] = (),
    exhaustive: bool = False,
    parent: Path | str | None = None,
    data: Any = None,
    looking: Looking | None = None,
    executor: Executor | None = None,
) -> Report:
    """Adapt a base to a task in every way that fits, and decide which is the cheapest that provably meets the bar.

    task: a task file's path, its content as a mapping, or a table of rows with the column `target` of answers, for
    which a task is drafted as by `bedplate.init`; the latter two are written beside `out`, as `OUT.task.yaml`.

    out: the run's directory: rungs, skins, report.json, report.html; the skins carry the report as well. budget: the
    time for the whole ladder, in seconds or such as "10m" (by default the task's `train_minutes`). curve: numbers of
    labels to draw learning curves over, in the time that the ladder leaves. exhaustive: budgets and rules of thumb
    leave no rung out, nor parts of one. parent: the directory of a skin that the new ones take over from, on newer
    data. data: rows in place of the task's own source, as `evaluate` takes them; they are kept in `out`. looking: the
    task's rows as far as they have labels (`adapt_with_labels`). executor: runs the fits of rungs elsewhere, from the
    run's directory alone (`core.executor.ProcessExecutor`: each in a new process). The same call again resumes where an
    interrupted one stopped; what it did and what a limit made it leave out stays as it was.

    Raises ConfigError (also for a task file that does not say which rows belong together, or does not answer what its
    rows show of that), DataError, HubError, CheckpointError or UsageError for bad input, before anything is written;
    the failure of one rung is recorded in the report and does not end the ladder.
    """
    if isinstance(budget, str):
        budget = parse_seconds("budget", budget, "s")
    elif budget is not None and not 0 < budget < math.inf:
        raise UsageError(f"budget is {budget:g}: it must be a number of seconds above 0")
    out, memory_rows = Path(out), dict[str, SourceRows]()
    with ExitStack() as undo, ExitStack() as claim:  # undo: until the run begins
        task_path = task_file_of(task, out, target, budget, undo)
        if data is not None:
            task_dir = task_path.parent
            memory_rows = given_rows(
                data, lambda split, _: relpath(out / f"rows{split and '-'}{split}.jsonl", task_dir)
            )
        resolved, spec = load_adapt_task(
            task_path, [*overrides, *(overrides_for(memory_rows) if memory_rows else ())], rungs
        )
        if budget is None and spec.budget.train_minutes is not None:
            budget = spec.budget.train_minutes * 60
        clock = Clock(budget, usd=spec.budget.train_usd, usd_per_hour=spec.machine.usd_per_hour)
        watch = Stopwatch()
        check_output(out)
        claim.enter_context(claimed(out))
        if resolved.output.form.as_embedding is not None:
            raise UsageError(
                f"{resolved.path}: there is no ladder for vectors yet; compare bases and skins that embed with "
                f"`bedplate evaluate BASE {resolved.path}`"
            )
        resolved.scorer.ready()
        taken_over = None if parent is None else read_parent(parent, resolved)
        data = rows_of(resolved, looking, None if taken_over is None else taken_over.assigned, memory_rows)
        check_bar(second_labels(resolved, data, spec.target.confidence), spec.target.value, str(resolved.path))
        if looking is None:
            few = gate.too_few_rows(resolved, spec, data.test.n, data.test.groups)
            for reason in filter(None, (few, gate.too_rare_label(resolved, data.test))):
                notice(reason)
        if curve:
            possible_sizes(curve, len(data.train))
        options: dict[str, Any] = {"exhaustive": exhaustive, "parent": taken_over, "executor": executor}
        with clock.paused():
            set_up(spec)
        if clock.seconds is not None and clock.outside > TOLD_SECONDS:
            notice(f"set-up took {clock.outside:.0f} s; the time limit of {clock.seconds:.0f} s begins now")
        with (
            clock.measuring.applied(),
            Countdown("adapt: time limit", None if exhaustive else clock.seconds),
            opened(resolved, spec, data, out, clock, seed=seed, **options) as contexts,
        ):
            check_bases(contexts)
            begin(contexts, data, out, task_path)
            undo.pop_all()
            write_sources(memory_rows, resolved.directory)
            for context in choose_formats(contexts):
                notice(f"{context.at.base_name}: {context.format_reason}")
            return _Ladder(contexts, data, out, curve, watch, looking).climb()


class _Ladder:
    """The steps of one run; what they find out is in `run`."""

    def __init__(
        self,
        contexts: Sequence[Context],
        data: TaskData,
        out: Path,
        curve: Sequence[int],
        watch: Stopwatch,
        looking: Looking | None = None,
    ) -> None:
        self.out, self.curve = out, curve
        self.context = contexts[0]
        self.task, self.spec = self.context.task, self.context.spec
        expectations = rules_of_thumb.record_predictions(next((c for c in contexts if c.backbone.writes), self.context))
        self.favours = rules_of_thumb.favoured(expectations)
        chosen = planner.order(chosen_rungs(self.spec), self.favours)
        candidates = {candidate.name: candidate for candidate in candidates_of(contexts, chosen)}
        self.run = LadderRun(contexts, data, candidates, AcceptanceCriteria(self.context), expectations, looking, watch)

    def climb(self) -> Report:
        """Steps 2 to 6 of the overview."""
        run, side = self.run, "weights" if self.favours == "tuning" else "prompt"
        ascent = Ascent(run.candidates, run.outcomes, side)
        for _ in ascent.climb():
            run.take_results()
            self.context.likely[:] = dict.fromkeys(filter(None, (*self._nomination().nominees, self._baseline())))
        run.outcomes = {name: run.outcomes[name] for name in run.candidates}
        run.take_results()
        run.criteria.settle(run.outcomes)
        postponed = self._postponed()
        nomination = decision.Nomination((), None, None, postponed) if postponed else self._nominated()
        self._open_test(nomination)
        self._fill_verdict(nomination, ascent.enough_minutes)
        report = build_report(run)
        self._write(report)
        if self.curve:
            curve = curve_in_dollars(learning_curve(run.candidates, run.outcomes, self.curve), self.task.scale)
            report = report.with_curve(curve, self.context.clock.used, self.context.clock.spent)
            self._write(report)
        return report

    def _write(self, report: Report) -> None:
        """report.json and report.html, here and in the skins, and the catalog's record of them."""
        results = self.run.results.values()
        write_report(report, self.out, [result.skin for result in results if result.skin is not None])
        record(report, self.out, self.task.task, [context.at.facts for context in self.run.contexts], results)

    # --- step 3: nominees

    def _postponed(self) -> dict[str, str]:
        """Why test stays closed, by candidate: every rung with a model was left out for time or had it for a few rows
        only, and a verdict now would cost one that follows on the same rows. Empty where test may be opened."""
        run, looking = self.run, self.run.looking
        models = {name for name, candidate in run.candidates.items() if candidate.base is not None} & run.results.keys()
        whole = any(not is_part(self.context, run.results[name]) for name in models)
        if not self._untimed() or whole or not (looking is None or looking.first):
            return {}
        skins = [name for name, result in run.results.items() if result.skin is not None]
        return dict.fromkeys(skins, decision.POSTPONED_ROWS if models else decision.POSTPONED)

    def _untimed(self) -> list[str]:
        """Candidates that were left out for lack of time, or of the money that time costs."""
        outcomes, limits = self.run.outcomes, {"train_minutes", "train_usd"}
        return [name for name, outcome in outcomes.items() if outcome.status == "skipped" and limits & {*outcome.needs}]

    def _announce(self, number: int) -> None:
        """Says what the look at test will cost, where a larger budget is likely to bring another, and of a later look
        what it is worth."""
        test, error, untimed = self.run.data.test, 1 - self.spec.target.confidence, self._untimed()
        if self.run.looking is not None:
            return
        now, later = (1 - spent_alpha(error, j) for j in (number, number + 1))
        if number > 1:
            notice(
                f"opening {test.n} test rows for verdict {number} on them: it is exploratory and needs "
                f"{confidence_text(now)}. Rows that no verdict has used confirm a skin: add them to the data, or "
                "continue with an earlier verdict."
            )
        elif untimed:
            notice(
                f"opening {test.n} test rows for verdict {number} on them; without {', '.join(untimed)}, for lack of "
                f"time. A later verdict on the same rows is exploratory and needs {confidence_text(later)} instead of "
                f"{now:.1%}: about {more_rows(now, later):.0%} more rows for the same power."
            )

    def _nominated(self) -> decision.Nomination:
        """Nominees, and the guards of those that stand on a child base: one that was shown to break a guard makes room
        for another, before test is opened. Each is nominated by the weights that it will be served in, which then are
        those of `results`; what these make cheaper may be nominated in the place of another."""
        run, timed = self.run, set[str]()
        while True:
            nomination = self._nominate()
            untimed = [name for name in self._to_time(nomination) if name not in timed]
            for name in untimed:
                with run.watch.timed("latency", name):
                    run.results[name] = retimed(run.candidates[name], run.results[name])
            timed.update(untimed)
            if untimed:  # which may bring other nominees
                continue
            unchecked = [n for n in nomination.nominees if n not in run.guards and children(run.candidates, n)]
            for name in unchecked:
                with run.watch.timed("guards", name):
                    pairs = children(run.candidates, name)
                    run.guards[name] = [guard for at, child in pairs for guard in check_child(at, child)]
            untried = [] if unchecked else self._untried(nomination)
            for name in untried:
                with run.watch.timed("formats", name):
                    run.formats[name], result = formats.choose(run.candidates[name])
                if run.formats[name].kept is not None:
                    run.results[name] = result
            if not unchecked and not untried:
                served_formats = [chosen.kept for chosen in run.formats.values() if chosen.kept is not None]
                for climbed in self.context.climbed.values():
                    climbed.base.close_formats(but=served_formats)
                return nomination

    def _nominate(self) -> decision.Nomination:
        """Nominees, fixed on valid and on disk before test is opened."""
        run, path = self.run, self.out / NOMINATION_FILE
        repeated = run.looking is not None and not run.looking.first and path.is_file()
        nomination = decision.Nomination.read(path, run.results) if repeated else self._nomination()
        nomination.write(path, run.results, run.data.test.split_hash)
        return nomination

    def _nomination(self) -> decision.Nomination:
        looking = self.run.looking
        return gate.nominate(
            self._nominables(),
            self.spec.budget,
            target=self.run.criteria.score,
            confidence=1 - spent_alpha(1 - self.spec.target.confidence, 1),
            test_n=self.run.data.test.n if looking is None else looking.record.planned,
            baseline=self._baseline(),
            scale=self.task.scale,
        )

    def _nominables(self) -> list[decision.Nominable]:
        results = self.run.results
        self.run.criteria.compare(results)
        servable = [name for name, result in results.items() if result.skin is not None]
        return [self._nominable(name) for name in servable if name != self.spec.target.against]

    def _nominable(self, name: str, times: float = 1.0) -> decision.Nominable:
        """A skin as nomination looks at it. times: as fast as it was measured to be."""
        result, latency = self.run.results[name], self.run.results[name].latency.scaled(1 / times)
        p95_floor, _ = latency.p95_bounds(self.spec.target.confidence)
        judged = self.run.criteria.judged(result)
        return decision.Nominable(
            name,
            judged.estimate,
            judged.design_effect,
            1000 * result.price(self.spec.machine.usd_per_hour, latency.mean),
            latency.p95 * 1000,
            result.prompt_tokens,
            broken(self.run.guards.get(name, ())),
            judged.row_variance,
            None if p95_floor is None else 1000 * p95_floor,
            self.run.criteria.unmet_requirements(result),
        )

    def _to_time(self, nomination: decision.Nomination) -> list[str]:
        """Candidates whose calls are timed once more: nominees, and those above the target that only what a call takes
        keeps out."""
        slow = [
            nominable.rung
            for nominable in self._nominables()
            if nominable.broken is None
            and nominable.estimate > self.run.criteria.score
            and (keys := {key for key, _, _ in decision.over(nominable, self.spec.budget)})
            and keys <= {"p95_ms", "usd_per_1k_calls"}
        ]
        return [*nomination.nominees, *slow]

    def _untried(self, nomination: decision.Nomination) -> list[str]:
        """Candidates whose formats are to be looked at: nominees, and those above the target that only a call's time or
        price keeps out, where a format could change that. The cheapest nominee comes first, for time may end: it is the
        one that is served if it passes."""
        run = self.run
        if not self.spec.formats.allowed:
            return []
        servable = [name for name in self.context.climbed if name in run.results and name not in run.formats]
        out = [name for name in servable if name not in nomination.nominees and self._could_fit(name)]
        return [*(name for name in nomination.nominees if name in servable), *out]

    def _could_fit(self, name: str) -> bool:
        """Whether a candidate above the target is out of the budget now and would not be where its calls took as much
        less time as a format was measured to save."""
        times, budget = self.run.candidates[name].context.format_gain, self.spec.budget
        current, quantized = self._nominable(name), self._nominable(name, times)
        is_above = current.estimate > self.run.criteria.score
        return (
            is_above
            and decision.infeasible(current, budget) is not None
            and decision.infeasible(quantized, budget) is None
        )

    def _baseline(self) -> str | None:
        """What superiority is claimed over: the task's first base as it is, or the first that can be asked so."""
        run = self.run
        baselines = [c for c in run.candidates.values() if c.traits.role == "baseline" and c.name in run.results]
        order = [context.at for context in run.contexts]
        return min(baselines, key=lambda candidate: order.index(candidate.context.at)).name if baselines else None

    # --- step 4: test

    def _open_test(self, nomination: decision.Nomination) -> None:
        """The nominees on test, with the baseline and the references beside them; one opening, in the ledger first."""
        if not nomination.nominees:
            return
        run, handle = self.run, self.run.data.test
        whole_test = handle if run.looking is None else run.looking.whole
        question = {
            "task": self.task.task,
            "rows": whole_test.split_hash,
            "metric": self.task.metric_name,
            "target": self.spec.target.model_dump(mode="json"),
            "skins": [run.results[name].skin_id for name in nomination.nominees],
            **run.criteria.question_parts(run.data.hashes),
            **gate.testing_question(self.spec.testing, nomination),
            **({} if self.spec.budget.p95_calls is None else {"p95_calls": self.spec.budget.p95_calls}),
        }
        reason = f"adapt {self.task.task}: verdict on {', '.join(nomination.nominees)}"
        ledger = ledger_for(self.task, leave=self.out)
        run.opening = ledger.open(
            sha256_json(question), whole_test.keys, task=self.task.task, reason=reason, announce=self._announce
        )
        examples = handle.open(reason)
        compared = {*nomination.nominees, self._baseline(), self.spec.target.against}
        run.reserved, turns = 0.0, dict[str, dict[str, Generator[None, None, Tested]]]()
        for name, result in run.results.items():
            candidate = run.candidates[name]
            if name in compared:
                run.reserved += seconds_on_test([result], handle.n, candidate.context.single_test_calls, None)
            if name in compared or candidate.traits.side == "reference":
                judged = judge(candidate, result, examples, self.out, handle.split_hash)
                # what stands on one base stays in memory together, and takes turns
                alone = result.parts or result.child is not None
                turns.setdefault(name if alone else candidate.context.at.suffix, {})[name] = judged
        late = run.reserved - self.context.clock.seconds_left
        if late > TOLD_SECONDS:
            notice(f"test takes about {run.reserved:.0f} s, {late:.0f} s beyond the time limit: it is not cut short")
        for together in turns.values():
            self._take_turns(together)
        run.criteria.open_test(examples, run.tested, run.results)

    def _take_turns(self, judged: dict[str, Generator[None, None, Tested]]) -> None:
        """Judges skins on test, a block of single calls of each in turn."""
        run = self.run
        while judged:
            for name in list(judged):
                with run.watch.timed("tests", name):
                    try:
                        next(judged[name])
                    except StopIteration as finished:
                        run.tested[name] = finished.value
                        del judged[name]

    # --- step 5: the verdict

    def _fill_verdict(self, nomination: decision.Nomination, enough_minutes: int | None) -> None:
        """Bounds, guards, limits and requirements at the level of each nominee, and what the budget kept out."""
        run, nominees, error = self.run, nomination.nominees, 1 - self.spec.target.confidence
        earlier = guards_asked(run.candidates, nominees, run.results, run.guards)
        number = 1 if run.opening is None else max(run.opening.number, earlier)
        run.alpha = spent_alpha(error, number)
        nominees_on_test = run.criteria.on_test(nominees, run.tested, run.results, run.guards)
        looking, claims = run.looking or SINGLE_LOOK, nominees_on_test.claims
        valid = {name: run.criteria.judged(result) for name, result in run.results.items() if result.skin is not None}

        def limits(name: str, confidence: float) -> list[Limit]:
            return gate.limits(self.spec, run.tested[name].latency, confidence, claims)

        def shown(name: str, confidence: float) -> bool:
            within = all(limit.holds for limit in limits(name, looking.level(confidence)))
            return within and nominees_on_test.passes(name, run.guards.get(name, ()), looking.level(confidence))

        confirmations = gate.confirm(
            [(name, looking.looked(nominees_on_test.judged[name])) for name in nominees],
            valid,
            target=nominees_on_test.score,
            alpha=run.alpha,
            next_alpha=spent_alpha(error, number + 1),
            checks={name: partial(shown, name) for name in nominees},
            order=gate.order_of(self.spec.testing, nomination, valid),
            claims=claims,
        )
        levels = {confirmation.rung: looking.level(confirmation.lower_confidence) for confirmation in confirmations}
        run.guards |= {n: [guard.at(levels[n], claims) for guard in run.guards[n]] for n in levels if n in run.guards}
        seconds = self.context.clock.seconds
        run.verdict = decision.GateVerdict(
            nomination,
            confirmations,
            metric=self.task.metric_name,
            target=nominees_on_test.score,
            confidence=self.spec.target.confidence,
            n=run.data.test.n,
            groups=run.data.test.groups,
            guards=run.guards,
            limits={name: limits(name, levels[name]) for name in nominees if self.spec.budget.p95_ms is not None},
            requirements=nominees_on_test.at(levels),
            kept_out=decision.admissions(
                self._nominables(),
                run.outcomes,
                self.spec.budget,
                {} if seconds is None else {"train_minutes": seconds / 60},
                self.task.scale,
                {name: result.latency.load for name, result in run.results.items()},
            ),
            scale=self.task.scale,
            enough_minutes=enough_minutes,
        )
