"""How fast a key may ask: requests and tokens in any minute, and calls at once.

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

from bedplate.serving.callers.keys import Key
from bedplate.serving.wire.errors import LimitError

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
        most = key.limits.concurrent
        if most is not None and self._running[key.id] >= most:
            raise LimitError(f"this API key may run {most} calls at once; wait for one to end", 1.0)
        per_minute = key.limits.requests_per_minute
        if per_minute is not None:
            item = RateLimitItemPerMinute(per_minute)
            if not self._requests.hit(item, "requests", key.id):
                reset = self._requests.get_window_stats(item, "requests", key.id).reset_time
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
        most = key.limits.tokens_per_minute
        if most is None:
            return
        item = RateLimitItemPerMinute(most)
        if count > most:
            raise LimitError(
                f"the prompt has {count} tokens, and this API key may use {most} a minute; send a shorter one", _MINUTE
            )
        if not self._tokens.test(item, "tokens", key.id, cost=max(count, 1)):
            # The window lets go evenly: what is missing frees at the rate at which it was used, at most in a minute.
            wait = max(1.0, _MINUTE * min(1.0, count / most))
            raise LimitError(f"this API key may use {most} tokens a minute; try again in {math.ceil(wait)} s", wait)

    def use_tokens(self, key: Key, count: int) -> None:
        """Counts tokens that were computed, also those over the limit: a long answer is a debt of the next calls. Below
        nought they are given back, as many as this minute still has."""
        most = key.limits.tokens_per_minute
        if most is None or not count:
            return
        item = RateLimitItemPerMinute(most)
        name, expiry = item.key_for("tokens", key.id), item.get_expiry()
        if count < 0:
            count = -min(-count, self._storage.get_sliding_window(name, expiry)[2])
        self._storage.acquire_sliding_window_entry(name, limit=2**62, expiry=expiry, amount=count)

    def headers(self, key: Key) -> dict[str, str]:
        """x-ratelimit-*, as the OpenAI API names them, for the limits that the key has."""
        found: dict[str, str] = {}
        if (most := key.limits.requests_per_minute) is not None:
            item = RateLimitItemPerMinute(most)
            found |= _headers("requests", most, *self._requests.get_window_stats(item, "requests", key.id))
        if (most := key.limits.tokens_per_minute) is not None:
            item = RateLimitItemPerMinute(most)
            found |= _headers("tokens", most, *self._tokens.get_window_stats(item, "tokens", key.id))
        return found


def _headers(what: str, most: int, reset: float, remaining: int) -> dict[str, str]:
    left = max(0.0, reset - time.time())
    return {
        f"x-ratelimit-limit-{what}": str(most),
        f"x-ratelimit-remaining-{what}": str(remaining),
        f"x-ratelimit-reset-{what}": f"{left:.3f}s" if left < _MINUTE else f"{int(left // 60)}m{left % 60:.0f}s",
    }
