"""Two kinds of requests that no engine knows: what one more file of `kinds` would hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bedplate.inference.engine.requests.base import NO_TIMING, LookedUp, Request, RequestTiming, Result, Usage
from bedplate.inference.engine.requests.job import PassRequest, PassResult, RequestJob


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
    timing: RequestTiming = NO_TIMING
    looked_up: LookedUp | None = None


class NormJob(RequestJob[Norm]):
    norm = 0.0

    def pass_request(self, begin: int, end: int) -> PassRequest:
        return PassRequest(states=True)

    def consume(self, pass_result: PassResult) -> None:
        if pass_result.end == len(self.tokens):
            self.norm = float(pass_result.states_TD[-1].float().norm())
            self.ended = "stop"

    def result(self) -> Answer:
        return Answer(self.norm, *self.account())


class LikeliestJob(RequestJob[Likeliest]):
    reusable = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.choices: list[int] = []

    def pass_request(self, begin: int, end: int) -> PassRequest:
        return PassRequest(range(begin, end))

    def consume(self, pass_result: PassResult) -> None:
        self.choices += pass_result.logits_WV.argmax(-1).tolist()
        if pass_result.end == len(self.tokens):
            self.ended = "stop"

    def restart(self) -> None:
        super().restart()
        self.choices = []

    def result(self) -> Answer:
        return Answer(tuple(self.choices), *self.account())
