"""All candidates climbed: those of the bases by what they are worth for their time, then larger fits in what is left of
it, then what is made of skins or answers beside the bases.

`Schedule` says which is next and how much of the time it may use: what is worth most for each second comes first, and
leaves those after it the least that they need. A rung is asked to plan in no time to learn what its smallest version
takes. What trains is planned at the pace of the last rung that trained, on the same base where there was one: a step
takes more than its products, and how much more only a run tells.

A larger fit is made in `larger/`, and takes over the seeds of the first one where it only has more of them. Where it
does no worse on valid it takes the place of the first one, whole, so that a repeated command finds it there. Which
rungs were climbed again is on disk: an interrupted fit is gone on with, and a repeated command decides nothing anew.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace

from bedplate.adaptation.context.clock import Clock
from bedplate.adaptation.context.context import Chosen, Context
from bedplate.adaptation.context.outcome import PACES, RungOutcome, RungPlan, Skip
from bedplate.adaptation.rungs.probe import FEW_ROWS
from bedplate.adaptation.rungs.rung import Side
from bedplate.adaptation.search import planner, rung_files
from bedplate.adaptation.search.candidates import Candidate
from bedplate.adaptation.search.run_rung import climb, is_part
from bedplate.adaptation.search.start import climb_candidate
from bedplate.core.files import sha256_json
from bedplate.core.progress import notice

FAVOURED = 1.25
"""Times what a rung is worth where rules of thumb favour its side."""

AFTER_ANOTHER = 0.8
"""So much of what a rung is worth is there already where one of its side was climbed on its base."""

WHOLE = 0.25
"""A servable skin that nothing has to be chosen for is made whole where that takes no more of the time that is left."""


class Schedule:
    """The candidates that wait. outcomes: of those that were climbed, which the caller fills. favours: the side that
    rules of thumb expect to win."""

    def __init__(self, candidates: Mapping[str, Candidate], outcomes: Mapping[str, RungOutcome], favours: Side) -> None:
        self.candidates, self.outcomes = candidates, outcomes
        self.favours: Side = favours
        self.least_seconds: dict[tuple[str, bool], float] = {}
        self._usual: dict[tuple[str, bool], float] = {}
        """Seconds that candidates were planned to take, at the least and as they usually are, before and after their
        base chose a prompt: planning measures and reads, so it is done once."""

    def next(self) -> Candidate | None:
        """The next candidate: what needs no base in front; on the bases then what is a servable skin before anything
        has to be chosen for it, and after that the one that is worth most for its time. None once all bases are done
        with. It may use what `Context.until` of its context says then."""
        # those of the bases, and what needs none
        waiting = [c for c in self._remaining() if c.on_base or c.traits.needs == "nothing"]
        if not waiting:
            return None
        first = next((candidate for candidate in waiting if not candidate.on_base or candidate.unfit is not None), None)
        if first is not None:
            return first
        ready = [candidate for candidate in waiting if not self._waits(candidate)]
        context = ready[0].context
        if context.exhaustive or math.isinf(context.clock.seconds_left):
            return min(ready, key=lambda candidate: not _early(candidate))  # the first of equals: the table's order
        # what each is worth for a second, as large as its usual version is: time may be saved before one left out
        values = {c.name: self.worth(c) / (self._usual_expected(c) * self.pace(c)) for c in ready}
        best = max(ready, key=lambda c: (_early(c) and values[c.name] > 0, values[c.name]))
        best.context.until = self._until(best)
        best.context.pace = self.pace(best)
        return best

    def last(self) -> list[Candidate]:
        """What comes after all bases: endpoints, and what is made of other skins."""
        remaining = self._remaining()
        for candidate in remaining:
            candidate.context.until, candidate.context.pace = math.inf, 1.0
        return remaining

    def minimum_seconds(self, candidate: Candidate) -> float:
        """Expected seconds of the smallest version of a rung; 0 where it cannot be climbed or takes none."""
        if candidate.unfit is not None:
            return 0.0
        context = candidate.context
        key = candidate.name, context.chosen.prompt is None
        if key not in self.least_seconds:
            before, context.pace = context.until, 1.0
            context.until = context.clock.used  # no time at all
            try:
                plan = planner.planned(context, candidate.rung)
            finally:
                context.until = before
            self.least_seconds[key] = plan.seconds or 0.0
        return self.least_seconds[key] * self.pace(candidate)

    # --- what is worth most

    def _usual_expected(self, candidate: Candidate) -> float:
        """Seconds as large as it usually is, as the rung itself expects them; infinite where it is left out."""
        context = candidate.context
        key = candidate.name, context.chosen.prompt is None
        if key not in self._usual:
            context.until, context.pace = math.inf, 1.0
            plan = planner.planned(context, candidate.rung)
            self._usual[key] = math.inf if isinstance(plan, Skip) else max(plan.seconds, 0.1)
        return self._usual[key]

    def worth(self, candidate: Candidate) -> float:
        """Beside what was climbed on the same base."""
        traits = candidate.traits
        weighted_worth = traits.worth * (FAVOURED if traits.side == self.favours else 1.0)
        climbed_worths = [
            self.candidates[name].traits.worth
            for name, outcome in self.outcomes.items()
            if outcome.result is not None
            and self.candidates[name].traits.side == traits.side
            and self.candidates[name].context is candidate.context
        ]
        return max(0.1 * weighted_worth, weighted_worth - AFTER_ANOTHER * max(climbed_worths, default=0.0))

    # --- how much of the time

    def pace(self, candidate: Candidate) -> float:
        """Seconds that a rung will take for each that it expects: what the last one that trained took, on the same base
        where there was one."""
        if not candidate.traits.trained:
            return 1.0
        trained_names = [
            name for name, outcome in self.outcomes.items() if self.candidates[name].traits.trained and outcome.pace
        ]
        base_names = [name for name in trained_names if self.candidates[name].context is candidate.context]
        last = (base_names or trained_names)[-1:]
        return (self.outcomes[last[0]].pace or 1.0) if last else 1.0

    def _until(self, candidate: Candidate) -> float:
        """When the candidate is to be done: it has the least that it needs, and of what the others' least leaves its
        base's share. Those that are trained on the same base follow it with what remains."""
        context = candidate.context
        room = context.clock.seconds_left - context.test_reserve - self.minimum_seconds(candidate)
        usual = self._usual_expected(candidate) if _early(candidate) else math.inf
        whole = 2 * usual if usual <= WHOLE * room else 0.0  # twice, for a rung plans with a share of what it may use
        bases: set[Context] = {context}
        competitors = [c for c in self._remaining() if c is not candidate and not _follows(c, candidate)]
        for competitor in sorted(competitors, key=lambda c: -self.worth(c) / max(self.minimum_seconds(c), 0.1)):
            needed = self.minimum_seconds(competitor)
            if needed <= room:
                room -= needed
                if competitor.on_base and competitor.traits.trained:
                    bases.add(competitor.context)
        return context.clock.used + max(whole, self.minimum_seconds(candidate) + max(room, 0.0) / len(bases))

    def _remaining(self) -> list[Candidate]:
        return [candidate for name, candidate in self.candidates.items() if name not in self.outcomes]

    def _waits(self, candidate: Candidate) -> bool:
        """Whether it builds on the prompt that the base as it is has yet to choose."""
        if candidate.traits.own_prompt:
            return False
        return any(
            peer.traits.role == "baseline" and peer.context is candidate.context and name not in self.outcomes
            for name, peer in self.candidates.items()
        )


def _early(candidate: Candidate) -> bool:
    """Whether it is a servable skin that nothing has to be chosen for before."""
    return candidate.traits.side == "weights" and candidate.traits.own_prompt


def _follows(follower: Candidate, candidate: Candidate) -> bool:
    """Whether it is trained on the same base after the candidate."""
    return follower.traits.trained and candidate.traits.trained and follower.context is candidate.context


GROWTH_FILE, LARGER = "larger.json", "larger"
CLEARLY = 1.3
"""Times what was done at first; less is not worth doing again, unless it takes over what was finished."""


class Ascent:
    """candidates: in the order of the ladder. outcomes: of those that were climbed, filled as they are over."""

    def __init__(self, candidates: Mapping[str, Candidate], outcomes: dict[str, RungOutcome], favours: Side) -> None:
        self.candidates, self.outcomes = candidates, outcomes
        self._first = next(iter(candidates.values())).context
        self._schedule = Schedule(candidates, outcomes, favours)
        self._growth = self._first.out / GROWTH_FILE
        self._growth_key = rung_files.limits_of(self._first, sha256_json(rung_files.fingerprint(self._first)))
        growth = rung_files.read_saved(self._growth, self._growth_key) or {}
        self._grown: list[str] = list(growth.get("names", ()))
        """Candidates of which a larger fit was begun, in this run or an earlier one."""
        self._begun = [] if growth.get("done") else self._grown[:]
        self._done = bool(growth.get("done"))
        self.enough_minutes: int | None = growth.get("enough_minutes")
        """The limit under which a rung on a base is expected to have enough rows; None where one has them."""

    def climb(self) -> Iterator[RungOutcome]:
        """What became of each candidate, as soon as it is over. Before the next, the caller says in `Context.likely`
        who would be asked on test, of what there is so far."""
        for candidate in iter(self._schedule.next, None):
            yield self._recorded(candidate.name, climb_candidate(candidate))
        for candidate in self.candidates.values():
            candidate.context.settled, candidate.context.until = True, math.inf
        for candidate, context in iter(self._larger, None):
            yield self._recorded(candidate.name, climb_larger(candidate, context, self.outcomes[candidate.name]))
        candidate = self._last_resort()
        if candidate is not None:
            (candidate.directory / rung_files.SKIP_FILE).unlink(missing_ok=True)
            until = candidate.context.clock.used + candidate.context.clock.seconds_left - self._seconds_for_the_last()
            context = replace(candidate.context, smallest=True, run_directory=None, until=until)
            context.throughput, context.format_gain = candidate.context.throughput, candidate.context.format_gain
            yield self._recorded(candidate.name, climb_candidate(replace(candidate, context=context)))
        self.enough_minutes = self.enough_minutes if self._done else self._least_minutes()
        self._write_growth(done=True)  # whatever the machine is doing when the command is repeated
        for candidate in self._schedule.last():
            yield self._recorded(candidate.name, climb_candidate(candidate))

    def _seconds_for_the_last(self) -> float:
        """The least seconds that what comes after all bases is expected to take."""
        return sum(self._schedule.minimum_seconds(pending) for pending in self._schedule.last())

    def _last_resort(self) -> Candidate | None:
        """What is fitted in its smallest version where time has left out everything on a base: what it is expected to
        take was measured in a moment, and it stops itself when the time is over, less what comes after all bases needs.
        None where there is no time for it, or nothing that stops."""
        on_base = [c for c in self.candidates.values() if c.on_base]
        if (
            self._done
            or any(self.outcomes[candidate.name].result is not None for candidate in on_base)
            or self._first.clock.seconds_left <= self._seconds_for_the_last()
        ):
            return None
        return next((c for c in on_base if c.traits.stops and wants_more(c, self.outcomes[c.name])), None)

    def _recorded(self, name: str, outcome: RungOutcome) -> RungOutcome:
        self.outcomes[name] = outcome
        candidate = self.candidates[name]
        _print_outcome(outcome, len(candidate.context.train) if candidate.traits.side == "weights" else 0)
        return outcome

    def _write_growth(self, *, done: bool) -> None:
        values = {"names": self._grown, "done": done, "enough_minutes": self.enough_minutes}
        rung_files.write_saved(self._growth, self._growth_key, values)

    def _least_minutes(self) -> int | None:
        """As `enough_minutes`: planned as the same command will begin under a larger limit, with the reserve for test
        that belongs to it, at the slowest pace that a fit was seen to have here."""
        clock, favours = self._first.clock, self._schedule.favours
        on_base = [candidate for candidate in self.candidates.values() if candidate.on_base and candidate.unfit is None]
        outcomes = [self.outcomes[candidate.name] for candidate in on_base]
        results = [outcome.result for outcome in outcomes if outcome.result is not None]
        lacking = bool(results) or any("train_minutes" in outcome.needs for outcome in outcomes)
        if clock.seconds is None or not lacking or not all(is_part(self._first, result) for result in results):
            return None
        slower = min(PACES[1], max(clock.slowdown, *(outcome.pace or 0.0 for outcome in outcomes)) or 1.0)
        used, trials = clock.used - sum(outcome.seconds for outcome in outcomes), dict[str, Context]()
        for context in (candidate.context for candidate in on_base):
            trials[context.suffix] = trial = replace(context, chosen=Chosen(), settled=False)
            trial.throughput, trial.format_gain = context.throughput, context.format_gain
        candidates = {c.name: replace(c, context=trials[c.context.suffix]) for c in on_base}
        minutes = math.floor(clock.seconds / 60)
        while minutes < 24 * 60:  # a longer limit is not proposed
            minutes = max(minutes + 1, math.ceil(1.1 * minutes))
            for trial in trials.values():
                trial.clock, trial.until, trial.slower = Clock(60.0 * minutes), math.inf, 1.0
                trial.clock.add(used)
            schedule = Schedule(candidates, {}, favours)
            schedule.least_seconds = self._schedule.least_seconds
            first = schedule.next()
            if first is not None and _has_enough(first, slower):
                return minutes
        return None

    def _larger(self) -> tuple[Candidate, Context] | None:
        """The candidate to climb again in the time that is left, and the context to do so on; None where none would be
        clearly larger. What an interrupted run had begun comes first, then what is expected to gain most, of equals the
        best on valid, what was left out last."""

        def until(context: Context) -> float:
            return context.clock.used + context.seconds_left - self._seconds_for_the_last()

        while self._begun:
            candidate = self.candidates.get(self._begun.pop(0))
            if candidate is not None:
                outcome, pace = self.outcomes[candidate.name], self._schedule.pace(candidate)
                context = larger_context(candidate, outcome, pace, until(candidate.context))
                if (context.out / "rungs" / candidate.rung.name).is_dir():  # else it is over
                    return candidate, context
        if self._done or self._first.exhaustive or math.isinf(self._first.clock.seconds_left):
            return None

        def standing(name: str) -> tuple[float, float]:
            result = self.outcomes[name].result
            return self.candidates[name].traits.worth, -1.0 if result is None else result.evaluation.estimate

        for name in sorted(self.outcomes, key=standing, reverse=True):
            candidate, outcome = self.candidates[name], self.outcomes[name]
            if name in self._grown or not wants_more(candidate, outcome):
                continue
            context = larger_context(candidate, outcome, self._schedule.pace(candidate), until(candidate.context))
            plan, before = planner.planned(context, candidate.rung), outcome.plan
            if not isinstance(plan, RungPlan):
                continue
            larger = plan.settings.get("takes_over") or plan.seconds >= CLEARLY * outcome.seconds
            if outcome.result is None or before is None or (larger and plan.settings != before.settings):
                shutil.rmtree(context.out, ignore_errors=True)  # of a run with other limits
                self._grown.append(name)
                self._write_growth(done=False)
                return candidate, context
        return None


def wants_more(candidate: Candidate, outcome: RungOutcome) -> bool:
    """Whether time alone kept a rung of a base from being climbed, or from being climbed whole. What others are built
    on stays what it was: the base's own prompt, and child bases."""
    traits = candidate.traits
    if not candidate.on_base or traits.makes_child or traits.role == "baseline" or candidate.unfit is not None:
        return False
    if outcome.status == "skipped":
        return outcome.skip == "budget" and not outcome.needs.keys() & {"p95_ms", "usd_per_1k_calls"}
    return outcome.result is not None and bool(outcome.result.left_out)


def _has_enough(candidate: Candidate, slower: float) -> bool:
    """Whether there is the time to fit the candidate on enough rows where everything takes so many times longer: for
    less than what is planned at the expected speed only where the fit then stops by itself."""
    context, expected = candidate.context, planner.planned(candidate.context, candidate.rung)
    context.slower = slower
    plan = planner.planned(context, candidate.rung)
    if isinstance(plan, Skip) or isinstance(expected, Skip):
        return False
    rows = min(FEW_ROWS, len(context.train)) if candidate.traits.side == "weights" else len(context.valid)
    stops = candidate.traits.stops or expected.seconds <= context.seconds_left
    return stops and plan.settings.get("rows", rows) >= rows


def larger_context(candidate: Candidate, outcome: RungOutcome, usual: float, until: float) -> Context:
    """The candidate's context with what the rung was seen to take beside what it was expected to; `usual` where it was
    left out, and there the base's speed is what it is now."""
    context = candidate.context
    larger = replace(
        context, out=context.out / LARGER, run_directory=None, until=until, readings={}, pace=outcome.pace or usual
    )
    larger.format_gain = context.format_gain
    larger.throughput = planner.speed_now(context) if outcome.result is None else context.throughput
    larger.before = None if outcome.result is None or outcome.plan is None else outcome.plan.settings
    return larger


def climb_larger(candidate: Candidate, context: Context, outcome: RungOutcome) -> RungOutcome:
    """Climb a candidate once more, on this context; the better of the two on valid stands. outcome: the first."""
    name, out = candidate.rung.name, candidate.context.out
    refit = climb(context, name, context.out / "rungs" / name)
    result, before = refit.result, outcome.result
    if result is None:
        return replace(outcome, seconds=outcome.seconds + refit.seconds)
    score = result.evaluation.scale.format_score
    rows = 0 if before is None else before.evaluation.n
    if before is not None and rows == result.evaluation.n and result.evaluation.estimate < before.evaluation.estimate:
        scored = score(result.evaluation.estimate)
        reason = f"{before.reason}; a larger fit in the time that was left scored {scored} on valid"
        result, winner = candidate.rung_result(before), outcome
    else:
        reason, winner = result.reason, refit
        if before is not None:
            reason += f"; a smaller fit before scored {score(before.evaluation.estimate)} on valid"
        for folder in ("rungs", "skins"):  # the result first, without which a rung is climbed again
            if (out / folder / name).exists():
                os.rename(out / folder / name, context.out / folder / f"{name}-first")
        for folder in ("skins", "rungs"):
            (out / folder).mkdir(exist_ok=True)
            os.rename(context.out / folder / name, out / folder / name)
    shutil.rmtree(context.out)
    result, seconds = replace(result, reason=reason), outcome.seconds + refit.seconds
    rung_files.write_result(
        candidate.directory, rung_files.config_of(candidate.context, candidate.rung), seconds, result
    )
    result = candidate.finish(result)
    return replace(winner, rung=candidate.name, result=result, reason=reason, seconds=seconds)


def _print_outcome(outcome: RungOutcome, train: int) -> None:
    """One line on stderr when a rung is over. train: the rows that its weights could be fitted on; 0 where it has
    none."""
    shown = outcome.status
    if outcome.result is not None:
        evaluation = outcome.result.evaluation
        estimate = evaluation.scale.format_score(evaluation.estimate)
        shown = f"{evaluation.metric} {estimate} on valid, {outcome.seconds:.0f} s"
        rows = outcome.result.details.get("rows", train)
        shown += f", from {rows:,} of {train:,} train rows" if rows < train else ""
    notice(f"{outcome.rung:<13} {shown}")
