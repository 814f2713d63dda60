"""The sampling state of a row: its settings, random generator, generated tokens and grammar matcher."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bedplate.inference.engine.grammar import Matcher
from bedplate.inference.engine.sampling import Sampling


class Occurrences:
    """The distinct tokens of a prompt and its output, with how often each occurs in the output. Adding a token takes
    constant time."""

    def __init__(self, before: Sequence[int]) -> None:
        self._ids = np.unique(np.fromiter(before, dtype=np.int64, count=len(before)))
        self._times = np.zeros(len(self._ids), dtype=np.float32)
        self._place = {token: place for place, token in enumerate(self._ids.tolist())}

    def add(self, token: int) -> None:
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):  # doubled, so that additions take amortised constant time
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
    """The sampling state of one row. end_ids: the base's end tokens. never: ids that are never generated. number: the
    uniform number of a draw that has not completed."""

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
            # Python takes a seed's absolute value, so negative seeds are mapped to others.
            self.generator = random.Random(None if seed is None else seed % 2**64)

    def ends(self, token: int) -> bool:
        """Whether this token ends the row; an end token is not part of the output."""
        settings = self.sampling
        return token in settings.stop_token_ids or (token in self.end_ids and not settings.ignore_eos)

    def append(self, token: int) -> None:
        self.output.append(token)
        if self.matcher is not None:
            self.matcher.advance(token)

    def uniform(self) -> float:
        """The uniform number in [0, 1) for the next draw. It stays the same until a token is drawn, so that a step
        retried after another row's failure draws the same token."""
        if self.number is None:
            assert self.generator is not None
            self.number = self.generator.random()
        return self.number

    def occurrences(self) -> Occurrences:
        """The tokens that penalties apply to: the output, and the prompt's too under a repetition penalty."""
        if self._occurrences is None:
            self._occurrences = Occurrences(self.prompt if self.sampling.repetition_penalty != 1.0 else ())
        for token in self.output[self._counted :]:
            self._occurrences.add(token)
        self._counted = len(self.output)
        return self._occurrences

    def without_mask(self, token: int) -> int | None:
        """The token that greedy selection would choose, where it is known without a grammar mask; None where it is not.
        token: the likeliest of the vocabulary."""
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
        """Why the row cannot continue: its grammar became too costly. None where it can."""
        failure = None if self.matcher is None else self.matcher.failure
        return None if failure is None else f"the grammar became too costly to follow: {failure}"

    @property
    def withheld(self) -> frozenset[int]:
        """Ids that may not be chosen now: `never`, and end tokens before `min_tokens`."""
        settings = self.sampling
        if len(self.output) < settings.min_tokens:
            return self.never.union(self.end_ids, settings.stop_token_ids)
        # A finished grammar allows only an end token; with ignore_eos it would become part of the text.
        return self.never | self.end_ids if self.matcher is not None and settings.ignore_eos else self.never
