"""Limits the prompt tokens of a step while several tenants are served, so that one tenant's prompts do not slow the
others' requests down (chunked prefill within a latency bound: Sarathi-Serve, https://arxiv.org/abs/2403.02310).

The bound is relative: a step may take `SLOWDOWN` times as long as one that only continues generations; where none runs,
so that the step delays first tokens only, `PROMPT_SLOWDOWN` times as long as an empty one, or as long as
`PROMPT_TOKENS` take. The number of tokens that this allows is measured as the engine runs: a line fitted to the seconds
of the latest steps over their tokens, weighed by compute. One of n tenants may have 1/(n − 1) of these tokens, and none
while others have requests and it had far more compute than they (`RecentCompute`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping

SLOWDOWN, PROMPT_SLOWDOWN = 2.0, 8.0
MIN_TOKENS = 16
"""Lower bound of a step's limit for each tenant, and minimum that each row counts as: fewer tokens take as long."""
FIRST_TOKENS, PROMPT_TOKENS = 64, 128
"""Limit before the first measurement, and lower bound without generations, above which throughput does not rise."""
SHARED_SECONDS = 5.0
"""Seconds that steps stay limited after several tenants had requests at once."""
DECAY = 0.98
"""Factor by which each new measurement discounts the earlier ones."""
MIN_SPREAD = 1 / 5
"""Deviation of the steps' tokens, relative to their mean, below which the time of a token cannot be fitted: the limit
is then twice the mean, or half of a mean above PROMPT_TOKENS."""
RECENT_SECONDS, FAIR_MULTIPLE = 1.0, 2.0
"""Time constant with which a tenant's compute is forgotten, and the multiple of the others' mean that it may exceed."""
OUTLIER = 3.0
"""A step counts as at most this multiple of its prediction, or of the mean step: it may have waited for the machine."""


class StepBudget:
    """Measures steps, and limits the next one. Used by the computing thread only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._count = self._tokens = self._seconds = self._squares = self._products = 0.0
        """Decayed sums over steps: 1, weighed tokens x, seconds y, x², xy."""
        self._shared_until = self._most_until = -math.inf
        self._most_tenants = 1
        """Maximum number of tenants that had requests at once in the last SHARED_SECONDS."""

    def tokens(self, tenants: int, decodes: int) -> int | None:
        """The limit on the next step's weighed prompt tokens; None: no limit. tenants: number with requests. decodes:
        number of generations that the step continues."""
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
        if deviation < MIN_SPREAD * mean:
            return max(least, int(2 * mean if mean <= PROMPT_TOKENS else mean / 2))
        # Noise may hide the time of a token, so the limit stays within twice the usual number.
        return max(least, int(min((slowdown - 1) * empty / token, 2 * (mean + deviation))))

    def part(self, limit: int, decodes: int) -> int:
        """One tenant's part of a step's limit, in weighed prompt tokens: the limit divided by the number of the other
        tenants, whom its tokens delay."""
        return max(MIN_TOKENS if decodes else PROMPT_TOKENS, limit // max(self._most_tenants - 1, 1))

    def _spread(self) -> tuple[float, float]:
        """Mean and standard deviation of the tokens of a step."""
        mean = self._tokens / self._count
        return mean, math.sqrt(max(self._squares / self._count - mean**2, 0.0))

    def _line(self) -> tuple[float, float]:
        """The fitted line: seconds of a step without prompt tokens, and seconds of each weighed token."""
        (tokens, deviation), seconds = self._spread(), self._seconds / self._count
        covariance = self._products / self._count - tokens * seconds
        token = covariance / deviation**2 if deviation > 1 else seconds / max(tokens, 1)
        token = max(token, 1e-9)
        return max(seconds - token * tokens, 0.0), token

    def record(self, decodes: int, tokens: int, seconds: float) -> None:
        """Adds the measurement of a step with `decodes` running generations and `tokens` weighed prompt tokens."""
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


class RecentCompute:
    """Seconds of compute that each tenant had lately, decaying exponentially. Used by the computing thread only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._since = clock, clock()
        self._seconds: dict[str, float] = {}

    def add(self, seconds: float, weights: Mapping[str, float]) -> None:
        """Divides the seconds of a step between tenants in proportion to their weights."""
        now = self._clock()
        decay, self._since = math.exp((self._since - now) / RECENT_SECONDS), now
        self._seconds = {name: decay * spent for name, spent in self._seconds.items() if decay * spent > 1e-4}
        total = sum(weights.values())
        for tenant, weight in weights.items():
            self._seconds[tenant] = self._seconds.get(tenant, 0.0) + seconds * weight / total

    def excessive(self, tenants: Collection[str]) -> frozenset[str]:
        """Those of the tenants, which have requests at once, that had more than FAIR_MULTIPLE times what the others
        had on average, of all that had any."""
        if len(tenants) < 2:
            return frozenset()
        total, others = sum(self._seconds.values()), max(len(self._seconds.keys() | set(tenants)) - 1, 1)
        spent = {tenant: self._seconds.get(tenant, 0.0) for tenant in tenants}
        return frozenset(
            tenant for tenant, seconds in spent.items() if seconds > FAIR_MULTIPLE * (total - seconds) / others
        )
