"""The sampling state of a row: settings, random generator, generated tokens, grammar matcher."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bedplate.inference.engine.grammar import Matcher
from bedplate.inference.engine.sampling import Sampling


class Occurrences:
    """Each token of a beginning and of what follows, once, with how often it follows. Following costs no more in a long
    text than in a short one."""

    def __init__(self, before: Sequence[int]) -> None:
        self._ids = np.unique(np.fromiter(before, dtype=np.int64, count=len(before)))
        self._times = np.zeros(len(self._ids), dtype=np.float32)
        self._place = {token: place for place, token in enumerate(self._ids.tolist())}

    def add(self, token: int) -> None:
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):  # doubled, so that most tokens find room
            room = len(self._ids) + 16
            self._ids = np.concatenate([self._ids, np.zeros(room, dtype=np.int64)])
            self._times = np.concatenate([self._times, np.zeros(room, dtype=np.float32)])
        self._ids[place] = token
        self._times[place] += 1

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids[: len(self._place)]

    @property
    def times(self) -> NDArray[np.float32]:
        return self._times[: len(self._place)]


@dataclass
class RowState:
    """One row's settings, its random generator, the tokens that its penalties look at, and what it is held to. end_ids:
    the base's own end tokens. never: tokens that its publisher says are no part of any text."""

    sampling: Sampling
    prompt: Sequence[int]
    output: list[int] = field(default_factory=list[int])
    matcher: Matcher | None = None
    end_ids: frozenset[int] = frozenset()
    never: frozenset[int] = frozenset()
    generator: random.Random | None = None
    number: float | None = None
    _occurrences: Occurrences | None = None
    _counted: int = 0

    def __post_init__(self) -> None:
        if self.sampling.temperature > 0:
            seed = self.sampling.seed
            # A negative seed as what it is, not as its absolute value.
            self.generator = random.Random(None if seed is None else seed % 2**64)

    def ends(self, token: int) -> bool:
        """Whether this token ends the row: it is then no part of the output."""
        settings = self.sampling
        return token in settings.stop_token_ids or (token in self.end_ids and not settings.ignore_eos)

    def append(self, token: int) -> None:
        self.output.append(token)
        if self.matcher is not None:
            self.matcher.advance(token)

    def uniform(self) -> float:
        """The number that a token is drawn by, from 0 to below 1. It stays the same until one was drawn, so that
        another row's failure in the same step does not change it."""
        if self.number is None:
            assert self.generator is not None
            self.number = self.generator.random()
        return self.number

    def occurrences(self) -> Occurrences:
        """The tokens that penalties are for: those of the output, and of the prompt where repeating it is one."""
        if self._occurrences is None:
            self._occurrences = Occurrences(self.prompt if self.sampling.repetition_penalty != 1.0 else ())
        for token in self.output[self._counted :]:
            self._occurrences.add(token)
        self._counted = len(self.output)
        return self._occurrences

    def without_mask(self, token: int) -> int | None:
        """The likeliest token that may be chosen, where that can be told without a mask: `token`, the likeliest of all,
        or the only one. None where it cannot."""
        if token in self.withheld:
            return None
        if self.matcher is None:
            return token
        candidate = None if token in self.end_ids else self.matcher.without_mask(token)
        return None if candidate in self.end_ids else candidate

    @property
    def complete(self) -> bool:
        return self.matcher is not None and self.matcher.complete

    @property
    def failure(self) -> str | None:
        """The reason the row cannot continue: its grammar became too costly. None where it can."""
        failure = None if self.matcher is None else self.matcher.failure
        return None if failure is None else f"the grammar became too costly to follow: {failure}"

    @property
    def withheld(self) -> frozenset[int]:
        """Tokens that may not be chosen now: those that never may, and ends before `min_tokens`."""
        settings = self.sampling
        if len(self.output) < settings.min_tokens:
            return self.never.union(self.end_ids, settings.stop_token_ids)
        # The end of a grammar is an end token; ignored, it would become part of a text that has no place for it.
        return self.never | self.end_ids if self.matcher is not None and settings.ignore_eos else self.never
