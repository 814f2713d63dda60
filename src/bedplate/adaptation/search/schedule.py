"""Which rung is climbed next, and how much of the time it may use: what is worth most for each second that it takes
comes first, and leaves those after it the least that they need.

A rung is asked to plan in no time to learn what its smallest version takes. What it is worth is its trait: less where
another rung of its side was climbed on the same base, and more where rules of thumb favour its side. What trains is
planned at the pace of the last rung that trained, on the same base where there was one: a step takes more than its
products, and how much more only a run tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungOutcome, Skip
from bedplate.adaptation.rungs.rung import Side
from bedplate.adaptation.search import planner
from bedplate.adaptation.search.candidates import Candidate

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
        self.candidates, self.outcomes, self.favours = candidates, outcomes, favours
        self._minimum_seconds: dict[tuple[str, bool], float] = {}
        self._usual: dict[tuple[str, bool], float] = {}
        """Seconds that candidates were planned to take, at the least and as they usually are, before and after their
        base chose a prompt: planning measures and reads, so it is done once."""

    def next(self) -> Candidate | None:
        """The next candidate: what needs no base in front; on the bases then what is a servable skin before anything
        has to be chosen for it, and after that the one that is worth most for its time. None once all bases are done
        with. It may use what `Context.until` of its context says then."""
        waiting = self._waiting()
        if not waiting:
            return None
        first = next((candidate for candidate in waiting if not candidate.on_base or candidate.unfit is not None), None)
        if first is not None:
            return first
        ready = [candidate for candidate in waiting if not self._waits(candidate)]
        if self._unlimited:
            return min(ready, key=lambda candidate: not _early(candidate))  # the first of equals: the table's order
        values = {candidate.name: self._value(candidate) for candidate in ready}
        best = max(
            ready, key=lambda candidate: (_early(candidate) and values[candidate.name] > 0, values[candidate.name])
        )
        best.context.until = self._until(best, waiting)
        best.context.pace = self.pace(best)
        return best

    def last(self) -> list[Candidate]:
        """What comes after all bases: endpoints, and what is made of other skins."""
        remaining = [candidate for candidate in self.candidates.values() if candidate.name not in self.outcomes]
        for candidate in remaining:
            candidate.context.until, candidate.context.pace = math.inf, 1.0
        return remaining

    def minimum_seconds(self, candidate: Candidate) -> float:
        """Expected seconds of the smallest version of a rung; 0 where it cannot be climbed or takes none."""
        if candidate.unfit is not None:
            return 0.0
        return self._least_expected(candidate) * self.pace(candidate)

    def _least_expected(self, candidate: Candidate) -> float:
        """The seconds that the rung itself expects."""
        context = candidate.context
        key = candidate.name, context.chosen.prompt is None
        if key not in self._minimum_seconds:
            before, context.pace = context.until, 1.0
            context.until = context.clock.used  # no time at all
            try:
                plan = planner.planned(context, candidate.rung)
            finally:
                context.until = before
            self._minimum_seconds[key] = plan.seconds or 0.0
        return self._minimum_seconds[key]

    # --- what is worth most

    def _value(self, candidate: Candidate) -> float:
        """What it is worth for a second, as large as its usual version is. A rung that is left out comes last: time may
        be saved before it."""
        return self.worth(candidate) / (self._usual_expected(candidate) * self.pace(candidate))

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

    def _until(self, candidate: Candidate, waiting: list[Candidate]) -> float:
        """When the candidate is to be done: it has the least that it needs, and of what the others' least leaves its
        base's share. Those that are trained on the same base follow it with what remains."""
        context = candidate.context
        room = context.clock.seconds_left - context.test_reserve - self.minimum_seconds(candidate)
        usual = self._usual_expected(candidate) if _early(candidate) else math.inf
        whole = 2 * usual if usual <= WHOLE * room else 0.0  # twice, for a rung plans with a share of what it may use
        competitors = [
            competitor
            for competitor in [*waiting, *self._later()]
            if competitor is not candidate and not _follows(competitor, candidate)
        ]
        bases: set[Context] = {context}
        for competitor in sorted(
            competitors, key=lambda competitor: -self.worth(competitor) / max(self.minimum_seconds(competitor), 0.1)
        ):
            needed = self.minimum_seconds(competitor)
            if needed <= room:
                room -= needed
                if competitor.on_base and competitor.traits.trained:
                    bases.add(competitor.context)
        return context.clock.used + max(whole, self.minimum_seconds(candidate) + max(room, 0.0) / len(bases))

    def _waiting(self) -> list[Candidate]:
        """Candidates of the bases, and what needs none, that were not climbed yet."""
        return [
            candidate
            for name, candidate in self.candidates.items()
            if name not in self.outcomes and (candidate.on_base or candidate.traits.needs == "nothing")
        ]

    def _later(self) -> list[Candidate]:
        return [
            candidate
            for name, candidate in self.candidates.items()
            if name not in self.outcomes and not candidate.on_base and candidate.traits.needs != "nothing"
        ]

    def _waits(self, candidate: Candidate) -> bool:
        """Whether it builds on the prompt that the base as it is has yet to choose."""
        if candidate.traits.own_prompt:
            return False
        return any(
            peer.traits.role == "baseline" and peer.context is candidate.context and name not in self.outcomes
            for name, peer in self.candidates.items()
        )

    @property
    def _unlimited(self) -> bool:
        context = next(iter(self.candidates.values())).context
        return context.exhaustive or math.isinf(context.clock.seconds_left)


def _early(candidate: Candidate) -> bool:
    """Whether it is a servable skin that nothing has to be chosen for before."""
    return candidate.traits.side == "weights" and candidate.traits.own_prompt


def _follows(follower: Candidate, candidate: Candidate) -> bool:
    """Whether it is trained on the same base after the candidate."""
    return follower.traits.trained and candidate.traits.trained and follower.context is candidate.context
