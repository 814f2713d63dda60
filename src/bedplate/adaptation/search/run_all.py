"""All candidates climbed: those of the bases by what they are worth for their time, then larger fits in what is left of
it, then what is made of skins or answers beside the bases."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from bedplate.adaptation.context.outcome import RungOutcome, RungResult
from bedplate.adaptation.rungs.rung import Side
from bedplate.adaptation.search.candidates import Candidate
from bedplate.adaptation.search.refits import (
    RefitHistory,
    again_of,
    climb_larger,
    first_of,
    larger_plan,
    names_by_worth,
    wants_more,
)
from bedplate.adaptation.search.schedule import Schedule
from bedplate.adaptation.search.start import climb_candidate
from bedplate.core.progress import console


class Ascent:
    """candidates: in the order of the ladder; one that is climbed again takes the place of what it was. likely: who
    would be asked on test, of what there is so far."""

    def __init__(
        self,
        candidates: dict[str, Candidate],
        favours: Side,
        likely: Callable[[Mapping[str, RungResult]], Sequence[str]],
    ) -> None:
        self.candidates, self._likely = candidates, likely
        self.outcomes: dict[str, RungOutcome] = {}
        self._first = next(iter(candidates.values())).context
        self._schedule = Schedule(candidates, self.outcomes, favours)
        self._growth = RefitHistory(self._first)
        self._firsts: dict[str, Candidate] = {}
        """The candidates as they were climbed first."""
        self._reclimbed: set[str] = set()

    def climb(self) -> dict[str, RungOutcome]:
        """What became of every candidate, in the order of the ladder."""
        for candidate in iter(self._schedule.next, None):
            self._firsts[candidate.name], outcome = first_of(candidate, self._growth)
            self._record(candidate.name, outcome)
        for candidate in iter(self._larger, None):
            self._growth.grows(candidate)
            larger = climb_larger(candidate, self._firsts[candidate.name], self.outcomes[candidate.name])
            self.candidates[candidate.name] = larger.candidate
            self._record(candidate.name, larger.outcome)
        self._growth.ends()
        for candidate in self._schedule.last():
            self._record(candidate.name, climb_candidate(candidate))
        return {name: self.outcomes[name] for name in self.candidates}

    def _record(self, name: str, outcome: RungOutcome) -> None:
        self.outcomes[name] = outcome
        results = {name: o.result for name, o in self.outcomes.items() if o.result is not None}
        self._first.likely[:] = self._likely(results)
        _print_outcome(outcome)

    def _larger(self) -> Candidate | None:
        """The candidate to climb again in the time that is left, or None; what an earlier run had begun comes first."""
        for candidate in self.candidates.values():
            candidate.context.settled, candidate.context.until = True, math.inf
        for name in self._growth.names:
            if name in self.candidates and name not in self._reclimbed:
                self._reclimbed.add(name)
                candidate = self.candidates[name]
                return again_of(candidate, self.outcomes[name], self._schedule.pace(candidate))
        if self._growth.finished or self._first.exhaustive or math.isinf(self._first.clock.seconds_left):
            return None
        reserved = sum(self._schedule.minimum_seconds(pending) for pending in self._schedule.last())
        for name in names_by_worth(self.candidates, self.outcomes):
            candidate = self.candidates[name]
            if name in self._reclimbed or not wants_more(candidate, self.outcomes[name]):
                continue
            context = candidate.context
            context.until = context.clock.used + context.seconds_left - reserved
            grown = larger_plan(candidate, self.outcomes[name], self._schedule.pace(candidate))
            if grown is not None:
                self._reclimbed.add(name)
                return grown
        return None


def _print_outcome(outcome: RungOutcome) -> None:
    """One line on stderr when a rung is over, where somebody watches."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        return
    shown = outcome.status
    if outcome.result is not None:
        evaluation = outcome.result.evaluation
        estimate = evaluation.scale.format_score(evaluation.estimate)
        shown = f"{evaluation.metric} {estimate} on valid, {outcome.seconds:.0f} s"
    screen.print(f"{outcome.rung:<13} {shown}", highlight=False)
