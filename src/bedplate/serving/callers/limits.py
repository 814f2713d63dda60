"""Rate limits of a key: requests and tokens a minute, and concurrent calls.

Requests are counted in a moving window. Tokens are counted in a sliding-window counter, which weighs the last whole
minute by how much of it is still in view: a moving window keeps an entry per token.
"""

from __future__ import annotations

import math
import time
from collections import Counter

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

from bedplate.serving.callers.api_keys import Key
from bedplate.serving.schemas.http_errors import LimitError

_MINUTE = 60.0


class KeyWindows:
    """The windows of all keys, in memory: a restart forgets them. Used from the event loop only."""

    def __init__(self) -> None:
        self._storage = MemoryStorage()
        self._requests = MovingWindowRateLimiter(self._storage)
        self._tokens = SlidingWindowCounterRateLimiter(self._storage)
        self._running: Counter[str] = Counter()

    def begin(self, key: Key) -> None:
        """Counts a call of this key. LimitError 429 when it is one too many; then nothing is counted."""
        max_concurrent = key.limits.concurrent
        if max_concurrent is not None and self._running[key.id] >= max_concurrent:
            raise LimitError(f"this API key may run {max_concurrent} calls at once; wait for one to end", 1.0)
        per_minute = key.limits.requests_per_minute
        if per_minute is not None:
            rate_limit = RateLimitItemPerMinute(per_minute)
            if not self._requests.hit(rate_limit, "requests", key.id):
                reset = self._requests.get_window_stats(rate_limit, "requests", key.id).reset_time
                wait = max(1.0, reset - time.time())
                raise LimitError(
                    f"this API key may ask {per_minute} times a minute; try again in {math.ceil(wait)} s", wait
                )
        self._running[key.id] += 1

    def end(self, id_: str) -> None:
        """A counted call is over."""
        self._running[id_] -= 1
        if self._running[id_] <= 0:
            del self._running[id_]

    def running(self, id_: str) -> int:
        """The calls of this key that run now."""
        return self._running[id_]

    def need_tokens(self, key: Key, count: int) -> None:
        """LimitError 429 when `count` more tokens do not fit into this minute."""
        token_limit = key.limits.tokens_per_minute
        if token_limit is None:
            return
        rate_limit = RateLimitItemPerMinute(token_limit)
        if count > token_limit:
            raise LimitError(
                f"the prompt has {count} tokens, and this API key may use {token_limit} a minute; send a shorter one",
                _MINUTE,
            )
        if not self._tokens.test(rate_limit, "tokens", key.id, cost=max(count, 1)):
            # The window lets go evenly: what is missing frees at the rate at which it was used, at most in a minute.
            wait = max(1.0, _MINUTE * min(1.0, count / token_limit))
            raise LimitError(
                f"this API key may use {token_limit} tokens a minute; try again in {math.ceil(wait)} s", wait
            )

    def use_tokens(self, key: Key, count: int) -> None:
        """Counts tokens that were computed, also those over the limit: a long answer is a debt of the next calls. Below
        nought they are given back, as many as this minute still has."""
        token_limit = key.limits.tokens_per_minute
        if token_limit is None or not count:
            return
        rate_limit = RateLimitItemPerMinute(token_limit)
        name, expiry = rate_limit.key_for("tokens", key.id), rate_limit.get_expiry()
        if count < 0:
            count = -min(-count, self._storage.get_sliding_window(name, expiry)[2])
        self._storage.acquire_sliding_window_entry(name, limit=2**62, expiry=expiry, amount=count)

    def headers(self, key: Key) -> dict[str, str]:
        """x-ratelimit-*, as the OpenAI API names them, for the limits that the key has."""
        headers: dict[str, str] = {}
        if (limit := key.limits.requests_per_minute) is not None:
            rate_limit = RateLimitItemPerMinute(limit)
            headers |= _headers("requests", limit, *self._requests.get_window_stats(rate_limit, "requests", key.id))
        if (limit := key.limits.tokens_per_minute) is not None:
            rate_limit = RateLimitItemPerMinute(limit)
            headers |= _headers("tokens", limit, *self._tokens.get_window_stats(rate_limit, "tokens", key.id))
        return headers


def _headers(resource: str, limit: int, reset: float, remaining: int) -> dict[str, str]:
    seconds = max(0.0, reset - time.time())
    return {
        f"x-ratelimit-limit-{resource}": str(limit),
        f"x-ratelimit-remaining-{resource}": str(remaining),
        f"x-ratelimit-reset-{resource}": f"{seconds:.3f}s"
        if seconds < _MINUTE
        else f"{int(seconds // 60)}m{seconds % 60:.0f}s",
    }
