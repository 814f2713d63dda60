"""Limits the prompt tokens of a step while several tenants are served, so that one tenant's long prompts do not slow
the others' generations down (chunked prefill within a latency bound: Sarathi-Serve, https://arxiv.org/abs/2403.02310).

The bound is relative: a step may take `SLOWDOWN` times as long as one that only continues generations. How many tokens
that allows is measured as the engine runs: a token behind a long context takes longer, and so does any on a busy
machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

SLOWDOWN = 2.5
MIN_TOKENS = 16
"""At least so many in a step, however long they take: fewer are computed no faster."""
SHARED_SECONDS = 5.0
"""How long after requests of two tenants met the next ones are expected."""
WEIGHT = 0.2
"""The weight of the latest measurement in the moving averages."""


class StepBudget:
    """Measures steps. Used by the computing thread only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._decode_seconds: float | None = None
        """The seconds of a step without prompt tokens."""
        self._token_seconds = 0.0
        """What each prompt token adds."""
        self._shared_until = -math.inf

    def tokens(self, tenants: int) -> int | None:
        """The prompt tokens that the next step may have, while so many tenants have requests; None: any number."""
        now = self._clock()
        if tenants > 1:
            self._shared_until = now + SHARED_SECONDS
        if now > self._shared_until or self._decode_seconds is None or self._token_seconds <= 0:
            return None
        return max(MIN_TOKENS, int((SLOWDOWN - 1) * self._decode_seconds / self._token_seconds))

    def record(self, decodes: int, prompt_tokens: int, seconds: float) -> None:
        """Takes in a step of so many running generations and prompt tokens."""
        if prompt_tokens and self._decode_seconds is not None:
            added = max(seconds - self._decode_seconds, 0.0) / prompt_tokens
            # A few tokens say little of what many take; where many took longer, that counts at once.
            weight = WEIGHT if added < self._token_seconds or prompt_tokens < MIN_TOKENS else 1.0
            self._token_seconds += weight * (added - self._token_seconds)
        elif decodes and not prompt_tokens:
            before = seconds if self._decode_seconds is None else self._decode_seconds
            self._decode_seconds = before + WEIGHT * (seconds - before)
