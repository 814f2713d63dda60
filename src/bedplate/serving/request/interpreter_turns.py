"""Fair use of the interpreter: a tenant that has had far more of it than the others waits before its next call.

Reading, checking and refusing a request holds the interpreter for a millisecond or a few. A tenant that sends as many
as it can makes every step of the engines, and everybody's calls, wait for that. What is spent on each tenant is
measured; what is beyond its part is spread over time, as long as others are there.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bedplate.inference.engine.scheduler import fair_shares
from bedplate.serving.schemas.http_errors import LimitError

PART = 0.15
"""Seconds of processor in a second that reading all tenants' calls may take before one of them waits."""
TIMES = 2.0
"""Nobody waits who has had at most so many times what the others have had on average."""
REFUSED = 3.0
"""How often a call counts that came to nothing."""
WAITING = 1024
"""Calls of one tenant that may wait for their turn."""
SECONDS = 1.0
"""What was spent counts less and less: after so long, less by a factor of e."""
LOOK_SECONDS = 0.25
"""Who waits looks again after so long at the latest: the others may have left."""
FORGOTTEN = 1e-4
"""Seconds of processor that are no longer remembered."""


@dataclass
class _Line:
    """A tenant's calls, one behind the other."""

    first: asyncio.Lock = field(default_factory=asyncio.Lock)
    calls: int = 0


class Pacing:
    """What was spent on each tenant lately. Used from one event loop only."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, used: Callable[[], float] = time.thread_time
    ) -> None:
        """clock: seconds. used: seconds of processor of the event loop's thread."""
        self._clock, self._used = clock, used
        self._spent: dict[str, float] = {}
        self._since = clock()
        self.lines: dict[str, _Line] = {}
        """Lines of the tenants whose calls wait or pass just now."""
        self._current: str | None = None
        self._began = 0.0

    async def turn(self, tenant: str) -> None:
        """Returns when it is the tenant's turn. What the loop does before it looks at anything else is spent on the
        tenant. LimitError where too many of its calls wait already."""
        line = self.lines.setdefault(tenant, _Line())
        if line.calls >= WAITING:
            raise LimitError("too many of your requests are waiting here; wait for some to be answered", 1.0)
        line.calls += 1
        try:
            async with line.first:
                while seconds := self.wait(tenant):
                    await asyncio.sleep(min(seconds, LOOK_SECONDS))
        finally:
            line.calls -= 1
            if not line.calls:
                del self.lines[tenant]
        self._end()
        self._current, self._began = tenant, self._used()
        asyncio.get_running_loop().call_soon(self._end)

    def wait(self, tenant: str) -> float:
        """Seconds until what was spent on the tenant has become its part; 0 where it has."""
        self._end()
        self._decay()
        mine, total = self._spent.get(tenant, 0.0), sum(self._spent.values())
        rival_count = len(self._spent) - 1
        if not mine or not rival_count or total <= PART * SECONDS:
            return 0.0
        allowed = TIMES * (total - mine) / rival_count
        if mine > allowed:
            demand = {name: round(1e6 * value) for name, value in self._spent.items()}
            allowed = max(allowed, fair_shares(round(1e6 * PART * SECONDS), demand)[tenant] / 1e6)
        return SECONDS * math.log(mine / allowed) if mine > allowed + FORGOTTEN else 0.0

    def spent(self, tenant: str, seconds: float) -> None:
        """Seconds of processor that were spent on the tenant, in the loop or beside it."""
        self._spent[tenant] = self._spent.get(tenant, 0.0) + seconds

    def refused(self, tenant: str) -> None:
        """The call of the tenant that the loop is at came to nothing."""
        if self._current == tenant:
            self.spent(tenant, (REFUSED - 1.0) * (self._used() - self._began))

    def _end(self) -> None:
        if self._current is not None:
            self.spent(self._current, self._used() - self._began)
            self._current = None

    def _decay(self) -> None:
        current_time = self._clock()
        decay = math.exp((self._since - current_time) / SECONDS)
        self._spent = {name: decay * value for name, value in self._spent.items() if decay * value > FORGOTTEN}
        self._since = current_time
