"""Speculative decoding by prompt lookup: drafts the tokens that followed the last occurrence of the latest n-gram.

A draft is verified in the same forward pass that computes the next token anyway, and a row samples at each drafted
position exactly as it would have without it, so that drafts never change the output (https://arxiv.org/abs/2211.17192
for verification; lookup as in https://arxiv.org/abs/2304.04487).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LONGEST, SHORTEST = 4, 2
MAX_DRAFT = 8
COOLDOWN = 16
"""Tokens without drafts after a draft failed entirely; doubled each time, up to 8 times as many."""


class Drafter:
    """Drafts tokens for one row.

    An index holds the last position of each n-gram of the generated tokens, so that a step costs a few lookups. The
    prompt is searched instead of indexed: indexing a long one would delay other requests.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._start = np.fromiter(tokens, dtype=np.int64, count=len(tokens))
        self._last: dict[tuple[int, ...], int] = {}
        self._size = 2
        self._cooldown = COOLDOWN
        self._wait = 0

    def push(self, token: int) -> None:
        """Adds a generated token, and indexes the n-grams before it, which now have a successor."""
        end = len(self._tokens)
        for n in range(SHORTEST, min(LONGEST, end) + 1):
            self._last[tuple(self._tokens[end - n :])] = end
        self._tokens.append(token)
        self._wait -= self._wait > 0

    def draft(self, max_tokens: int) -> list[int]:
        """Drafts up to `max_tokens` tokens; often none."""
        if self._wait or max_tokens < 1:
            return []
        at = self._last_time()
        if at is None:
            return []
        period = len(self._tokens) - at
        # Indices wrap around, so that a text that repeats itself is drafted as a repetition.
        return [self._tokens[at + i % period] for i in range(min(max_tokens, self._size))]

    def _last_time(self) -> int | None:
        """The position after the last earlier occurrence of the longest n-gram that ends the text; None without one."""
        for n in range(min(LONGEST, len(self._tokens)), SHORTEST - 1, -1):
            at = self._last.get(tuple(self._tokens[-n:]))
            match_end = self._in_start(n) if at is None else at
            if match_end is not None:
                return match_end
        return None

    def _in_start(self, n: int) -> int | None:
        """The position after the last occurrence, in the prompt, of the latest n tokens; None without one."""
        count = len(self._start) - n  # of runs with a successor in it
        if count < 1:
            return None
        matches = self._start[n - 1 : n - 1 + count] == self._tokens[-1]
        ends = matches.nonzero()[0] + n
        for back in range(2, n + 1):
            ends = ends[self._start[ends - back] == self._tokens[-back]]
        return int(ends[-1]) if len(ends) else None

    def learn(self, drafted: int, accepted: int) -> None:
        """Adapts the draft length: doubled when all drafted tokens were accepted, shortened when some were, and a pause
        when none was."""
        if accepted == drafted:
            self._size, self._cooldown = min(2 * self._size, MAX_DRAFT), COOLDOWN
        elif accepted:
            self._size = max(accepted, 1)
        else:
            self._size, self._wait = 2, self._cooldown
            self._cooldown = min(2 * self._cooldown, 8 * COOLDOWN)
