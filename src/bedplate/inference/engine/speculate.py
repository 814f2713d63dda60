"""Speculation by prompt lookup: the next tokens are guessed to follow as they did the last time the same few came.

The guess is verified in the same forward pass that computes the next token anyway, and a row draws at each guessed
position exactly as it would have: what is said never depends on what was guessed (https://arxiv.org/abs/2211.17192 for
verification; guessing by lookup as in https://arxiv.org/abs/2304.04487).
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2
MOST = 8
REST = 16
"""Tokens to wait with guessing after guesses failed; doubled each time, up to 8 times as many."""


class Drafter:
    """One row's guesses. It keeps where each run of tokens occurred last, so that a step costs a few look-ups."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._last: dict[tuple[int, ...], int] = {}
        self._indexed = 0
        self._size = 2
        self._rest = REST
        self._wait = 0
        self._index()

    def _index(self) -> None:
        """Notes every run that has a successor."""
        for end in range(max(self._indexed, SHORTEST), len(self._tokens)):
            for n in range(SHORTEST, min(LONGEST, end) + 1):
                self._last[tuple(self._tokens[end - n : end])] = end
        self._indexed = len(self._tokens)

    def push(self, token: int) -> None:
        """A token that was really said."""
        self._tokens.append(token)
        self._index()
        self._wait -= self._wait > 0

    def draft(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next; often none."""
        if self._wait:
            return []
        for n in range(min(LONGEST, len(self._tokens)), SHORTEST - 1, -1):
            at = self._last.get(tuple(self._tokens[-n:]))
            if at is not None:
                period = len(self._tokens) - at
                # What came last may be followed by what is being guessed: a loop goes on as a loop.
                return [self._tokens[at + i % period] for i in range(min(most, self._size))]
        return []

    def learn(self, drafted: int, accepted: int) -> None:
        """Guess more while guesses hold, less when they fail, and rest when none did."""
        if accepted == drafted:
            self._size, self._rest = min(2 * self._size, MOST), REST
        elif accepted:
            self._size = max(accepted, 1)
        else:
            self._size, self._wait = 2, self._rest
            self._rest = min(2 * self._rest, 8 * REST)
