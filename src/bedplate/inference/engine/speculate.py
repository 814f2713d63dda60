"""Speculation by prompt lookup: the next tokens are guessed to follow as they did the last time the same few came.

The guess is verified in the same forward pass that computes the next token anyway, and a row draws at each guessed
position exactly as it would have: what is said never depends on what was guessed (https://arxiv.org/abs/2211.17192 for
verification; guessing by lookup as in https://arxiv.org/abs/2304.04487).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LONGEST, SHORTEST = 4, 2
MAX_DRAFT = 8
COOLDOWN = 16
"""Tokens to wait with guessing after guesses failed; doubled each time, up to 8 times as many."""


class Drafter:
    """One row's guesses. It keeps where each run of tokens that it was told of occurred last, so that a step costs a
    few look-ups; what it starts with is searched instead, lest a long prompt hold up others while it is indexed."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._start = np.fromiter(tokens, dtype=np.int64, count=len(tokens))
        self._last: dict[tuple[int, ...], int] = {}
        self._size = 2
        self._cooldown = COOLDOWN
        self._wait = 0

    def push(self, token: int) -> None:
        """A token that was really said. The runs before it have a successor now."""
        end = len(self._tokens)
        for n in range(SHORTEST, min(LONGEST, end) + 1):
            self._last[tuple(self._tokens[end - n :])] = end
        self._tokens.append(token)
        self._wait -= self._wait > 0

    def draft(self, max_tokens: int) -> list[int]:
        """Up to `max_tokens` tokens that may come next; often none."""
        if self._wait or max_tokens < 1:
            return []
        at = self._last_time()
        if at is None:
            return []
        period = len(self._tokens) - at
        # What came last may be followed by what is being guessed: a loop goes on as a loop.
        return [self._tokens[at + i % period] for i in range(min(max_tokens, self._size))]

    def _last_time(self) -> int | None:
        """The end of the last earlier occurrence of the longest run that the tokens end with."""
        for n in range(min(LONGEST, len(self._tokens)), SHORTEST - 1, -1):
            at = self._last.get(tuple(self._tokens[-n:]))
            match_end = self._in_start(n) if at is None else at
            if match_end is not None:
                return match_end
        return None

    def _in_start(self, n: int) -> int | None:
        """The end of the last run, in what it started with, of the n tokens that have come last."""
        count = len(self._start) - n  # of runs with a successor in it
        if count < 1:
            return None
        matches = self._start[n - 1 : n - 1 + count] == self._tokens[-1]
        ends = matches.nonzero()[0] + n
        for back in range(2, n + 1):
            ends = ends[self._start[ends - back] == self._tokens[-back]]
        return int(ends[-1]) if len(ends) else None

    def learn(self, drafted: int, accepted: int) -> None:
        """Guess more while guesses hold, less when they fail, and rest when none did."""
        if accepted == drafted:
            self._size, self._cooldown = min(2 * self._size, MAX_DRAFT), COOLDOWN
        elif accepted:
            self._size = max(accepted, 1)
        else:
            self._size, self._wait = 2, self._cooldown
            self._cooldown = min(2 * self._cooldown, 8 * COOLDOWN)
