"""Limits the prompt tokens of a step while several tenants are served, so that one tenant's prompts do not slow the
others' requests down (chunked prefill within a latency bound: Sarathi-Serve, https://arxiv.org/abs/2403.02310).

The bound is relative: a step may take `SLOWDOWN` times as long as one that only continues generations; where none runs,
and only first tokens wait, `PROMPT_SLOWDOWN` times as long as an empty one, or as `PROMPT_TOKENS` take. How many tokens
that allows is measured as the engine runs: a line through the seconds of the latest steps over their tokens, each
weighed by what it computes. Of these one tenant has at most its equal part among those for whom the step is longer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

SLOWDOWN, PROMPT_SLOWDOWN = 2.0, 8.0
MIN_TOKENS = 16
"""At least so many of each tenant in a step, and each row of it counts as so many: fewer are computed no faster."""
FIRST_TOKENS, PROMPT_TOKENS = 64, 128
"""In a step before anything is measured; and at least in one without generations: more are computed no faster."""
SHARED_SECONDS = 5.0
"""How long after requests of two tenants met the next ones are expected."""
DECAY = 0.98
"""By this factor a measurement counts less with each further one."""
ALIKE = 5.0
"""Steps whose tokens differ by less than this part of their mean say nothing of a token: others are tried, twice as
many, or half where they are many."""
OUTLIER = 3.0
"""A step counts as at most so many times what was predicted, or the mean took: it may have waited for the machine."""


class StepBudget:
    """Measures steps. Used by the computing thread only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._count = self._tokens = self._seconds = self._squares = self._products = 0.0
        """Decayed sums over steps: 1, weighed tokens x, seconds y, x², xy."""
        self._shared_until = self._most_until = -math.inf
        self._most_tenants = 1
        """The most tenants that had requests lately."""

    def tokens(self, tenants: int, decodes: int) -> int | None:
        """The weighed prompt tokens that the next step may have, which continues so many generations, while so many
        tenants have requests; None: any number."""
        now = self._clock()
        if tenants > 1:
            self._shared_until = now + SHARED_SECONDS
        if tenants >= self._most_tenants or now > self._most_until:
            self._most_tenants, self._most_until = tenants, now + SHARED_SECONDS
        if now > self._shared_until:
            return None
        if not self._count:
            return FIRST_TOKENS
        (mean, deviation), (empty, token) = self._spread(), self._line()
        least, slowdown = (0, SLOWDOWN) if decodes else (PROMPT_TOKENS, PROMPT_SLOWDOWN)
        least = max(least, MIN_TOKENS * tenants)
        if deviation < mean / ALIKE:
            return max(least, int(2 * mean if mean <= PROMPT_TOKENS else mean / 2))
        # Where noise hides what a token takes, no more are tried than twice what is usual.
        return max(least, int(min((slowdown - 1) * empty / token, 2 * (mean + deviation))))

    def part(self, limit: int, decodes: int) -> int:
        """The weighed prompt tokens that each tenant may have of a step's limit: what tenants ask for beyond it makes
        the step longer for the others, among whom the limit is divided."""
        return max(MIN_TOKENS if decodes else PROMPT_TOKENS, limit // max(self._most_tenants - 1, 1))

    def _spread(self) -> tuple[float, float]:
        """Mean and standard deviation of the tokens of a step."""
        mean = self._tokens / self._count
        return mean, math.sqrt(max(self._squares / self._count - mean**2, 0.0))

    def _line(self) -> tuple[float, float]:
        """Seconds of a step without prompt tokens, and what each of these adds."""
        (tokens, deviation), seconds = self._spread(), self._seconds / self._count
        covariance = self._products / self._count - tokens * seconds
        token = covariance / deviation**2 if deviation > 1 else seconds / max(tokens, 1)
        token = max(token, 1e-9)
        return max(seconds - token * tokens, 0.0), token

    def record(self, decodes: int, tokens: int, seconds: float) -> None:
        """Takes in a step of so many running generations and weighed prompt tokens."""
        if not decodes and not tokens:
            return
        if self._count > 1:
            empty, token = self._line()
            seconds = min(seconds, OUTLIER * max(empty + token * tokens, self._seconds / self._count))
        sums = (self._count, self._tokens, self._seconds, self._squares, self._products)
        latest = (1, tokens, seconds, tokens**2, tokens * seconds)
        self._count, self._tokens, self._seconds, self._squares, self._products = (
            DECAY * total + value for total, value in zip(sums, latest, strict=True)
        )
