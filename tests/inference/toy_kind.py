"""Two kinds of requests that no engine knows: what one more file of `kinds` would hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bedplate.inference.engine.job import Job, Seen, Wants
from bedplate.inference.engine.kinds.request import NO_TIMING, LookedUp, Request, Result, Timing, Usage


@dataclass(frozen=True)
class Norm(Request):
    """The length of the last token's state."""


@dataclass(frozen=True)
class Likeliest(Request):
    """The likeliest token after each of `tokens`."""


@dataclass(frozen=True)
class Answer(Result):
    value: Any
    usage: Usage
    timing: Timing = NO_TIMING
    looked_up: LookedUp | None = None


class NormJob(Job[Norm]):
    norm = 0.0

    def wanted(self, begin: int, end: int) -> Wants:
        return Wants(states=True)

    def take(self, seen: Seen) -> None:
        if seen.end == len(self.tokens):
            self.norm = float(seen.states_TD[-1].float().norm())
            self.ended = "stop"

    def result(self) -> Answer:
        return Answer(self.norm, *self.account())


class LikeliestJob(Job[Likeliest]):
    reusable = None

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.found: list[int] = []

    def wanted(self, begin: int, end: int) -> Wants:
        return Wants(range(begin, end))

    def take(self, seen: Seen) -> None:
        self.found += seen.logits_WV.argmax(-1).tolist()
        if seen.end == len(self.tokens):
            self.ended = "stop"

    def restart(self) -> None:
        super().restart()
        self.found = []

    def result(self) -> Answer:
        return Answer(tuple(self.found), *self.account())
