"""Divides the token budget of a step fairly between tenants, by start-time fair queueing (Goyal, Vin and Cheng 1996),
as https://arxiv.org/abs/2401.00588 does for language models.

1. Running generations come first, one token each; their tenants are charged for it (`charge`).
2. The rest of the budget goes to the queues (`plan`), of which each skin and tenant has one. Each visit grants one
   credit: to the tenant with the least service so far, and of its queues to the one with the least. A tenant that
   arrives starts level with the least-served one, ahead of those that have just been served.
3. A queue serves its admitted requests in order, in chunks of up to its credit (`_serve`).
4. Then it admits waiting ones in order of arrival (`admit`); one whose prefix is just being computed lets others pass.
5. A request whose prompt is computed leaves its queue's list and decodes (`started`).

The budget is in the unit of `Scheduled.cost`: for sequences, tokens. Where tenants share a step, it is limited, and its
tokens are weighed by their compute (`weigh`); a tenant that had far more compute than the others lately has the steps
that they leave empty. The scheduler depends on no model and no cache. Cache rows and places in
the queue are divided max-min fairly between tenants (Bertsekas and Gallager, Data Networks, 6.5.2).
"""

from __future__ import annotations

import enum
import math
from collections import Counter, deque
from collections.abc import Callable, Container, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from bedplate.inference.engine.requests.base import Stream
from bedplate.inference.engine.step_budget import MIN_TOKENS

__all__ = ["Admission", "Admit", "Queue", "Scheduler", "Stream", "weigh"]

# How far into a queue a step looks for requests that need not wait for a neighbour's prefix.
LOOKAHEAD = 32
# How many requests may start ahead of one that the adapter cap keeps out, before the others wait for it.
MAX_OVERTAKEN = 32
MAX_START_TAGS = 1024
"""Number of tenants beyond which the start tags of those without requests are dropped."""


class Admission(enum.Enum):
    """The answer to an admission attempt.

    IN: the request runs from now on. LATER: its prefix is being computed for another request. FULL: no row or memory is
    free. CAPPED: too many different adapters run.
    """

    IN = "in"
    LATER = "later"
    FULL = "full"
    CAPPED = "capped"


class Scheduled(Protocol):
    """The scheduler's view of a request. cost: the work still to be computed, known once it is admitted. weight: the
    compute of its next token, relative to that of a sequence's first token."""

    @property
    def cost(self) -> int: ...
    @property
    def weight(self) -> float: ...


def weigh(request: Scheduled, count: int) -> int:
    """The compute of a request's next `count` tokens, in first tokens of a sequence; at least MIN_TOKENS."""
    return max(MIN_TOKENS, math.ceil(count * request.weight))


I_ = TypeVar("I_", bound=Scheduled)
Admit = Callable[[I_], Admission]
"""Admits a request, or returns why not."""


@dataclass(eq=False)
class Queue(Generic[I_]):
    """The requests of one skin and tenant. running: admitted ones whose prompts are not computed yet, in order.
    service: the work granted to it so far. overtaken: admissions since it was refused as CAPPED. queued: `id` of each
    waiting request."""

    name: Hashable
    tenant: Hashable
    service: int
    waiting: deque[I_] = field(default_factory=deque)
    running: list[I_] = field(default_factory=list)
    overtaken: int = 0
    queued: set[int] = field(default_factory=set[int])


class Scheduler(Generic[I_]):
    """Plans how much of each request a step computes. budget: of one step. quantum: credit of one visit to a queue.
    whole: requests cannot be split (encoders); then none may cost more than the budget. tenant_of: maps a queue's name
    to its tenant."""

    def __init__(
        self,
        budget: int,
        quantum: int | None = None,
        whole: bool = False,
        tenant_of: Callable[[Any], Hashable] = lambda name: name,
    ) -> None:
        self.budget = budget
        self.quantum = quantum or max(budget // 2, 1)
        self._whole, self._tenant_of = whole, tenant_of
        self._limited, self._room = False, 0
        """Whether a step is limited, and the tokens, unweighed, that are left of its budget."""
        self._queues: dict[Hashable, Queue[I_]] = {}
        self._start_tags: dict[Hashable, int] = {}
        """By tenant, the service it has had, raised to the virtual time when it returns after a pause."""
        self._virtual_time = 0
        """The least start tag of the tenants with requests, at which arriving tenants begin."""
        self._waiting = 0

    @property
    def waiting(self) -> int:
        return self._waiting

    def pending(self) -> list[I_]:
        return [request for queue in self._queues.values() for request in queue.waiting]

    def add(self, name: Hashable, request: I_) -> None:
        """Appends a new request to its queue."""
        queue = self._queue(name)
        queue.waiting.append(request)
        queue.queued.add(id(request))
        self._waiting += 1

    def put_back(self, name: Hashable, request: I_) -> None:
        """Puts a preempted request at the head of its queue."""
        queue = self._queue(name)
        if request in queue.running:
            queue.running.remove(request)
        queue.waiting.appendleft(request)
        queue.queued.add(id(request))
        self._waiting += 1

    def remove(self, name: Hashable, requests: Iterable[I_]) -> None:
        """Removes requests of one queue that ended early."""
        queue = self._queues.get(name)
        if queue is None:
            return
        removed_ids = set(map(id, requests))
        if removed_ids & queue.queued:  # usually they were admitted, and the long waiting list need not be scanned
            queue.queued -= removed_ids
            self._waiting -= len(queue.waiting) - len(queue.queued)
            queue.waiting = deque(request for request in queue.waiting if id(request) in queue.queued)
        queue.running = [request for request in queue.running if id(request) not in removed_ids]
        self._retire(queue)

    def charge(self, name: Hashable, cost: int) -> None:
        """Charges a tenant for its running generations, up to one quantum ahead of the virtual time."""
        queue = self._queues.get(name)
        if queue is not None:
            tag = self._start_tags[queue.tenant]
            self._start_tags[queue.tenant] = max(tag, min(tag + cost, self._virtual_time + self.quantum))

    def plan(
        self,
        reserved: int,
        admit: Admit[I_],
        limit: int | None = None,
        part: int | None = None,
        paused: Container[Hashable] = (),
    ) -> list[tuple[I_, int]]:
        """The shares of a step: (request, how much of its cost). reserved: budget of running generations. limit: bound
        of all shares' weighed tokens, where tenants share the step. part: bound of one tenant's. paused: tenants that
        are served only where the step would otherwise be empty."""
        budget, credit, self._limited = self.budget - reserved, self.quantum, limit is not None
        self._room = budget
        if limit is not None:
            budget, credit = min(budget, limit), min(credit, max(limit // 2, MIN_TOKENS))
        shares: dict[int, tuple[I_, int]] = {}
        granted = Counter[Hashable]()
        queues = list(self._queues.values())
        self._virtual_time = max([self._virtual_time, *sorted(self._start_tags[queue.tenant] for queue in queues)[:1]])
        for pausing in (False, True):
            ready = [queue for queue in queues if (queue.tenant in paused) is pausing]
            while budget > 0 and ready:
                queue = min(ready, key=lambda queue: (self._start_tags[queue.tenant], queue.service))
                left = budget if part is None else min(budget, part - granted[queue.tenant])
                taken = self._serve(queue, left, credit, admit, shares) if left > 0 else 0
                if not taken:
                    ready.remove(queue)
                budget -= taken
                granted[queue.tenant] += taken
                queue.service += taken
                self._start_tags[queue.tenant] += taken
            if shares or reserved:
                break
        return list(shares.values())

    def _serve(
        self, queue: Queue[I_], budget: int, credit: int, admit: Admit[I_], shares: dict[int, tuple[I_, int]]
    ) -> int:
        """Grants the queue's requests their shares, within budget and credit; returns what was used of both."""
        taken = 0
        for request in list(queue.running):
            taken += self._grant(request, budget - taken, credit - taken, shares)
            if request.cost > shares.get(id(request), (request, 0))[1]:
                return taken  # no credit or budget is left for those behind it
        examined = skipped = 0
        while taken < min(budget, credit) and skipped < len(queue.waiting) and examined < LOOKAHEAD:
            request = queue.waiting[skipped]
            examined += 1
            answer = self._admit(queue, request, admit)
            if answer is Admission.LATER:
                skipped += 1
                continue
            if answer is not Admission.IN:
                break
            del queue.waiting[skipped]
            queue.queued.discard(id(request))
            self._waiting -= 1
            examined = skipped
            queue.running.append(request)
            taken += self._grant(request, budget - taken, credit - taken, shares)
            if request.cost > shares.get(id(request), (request, 0))[1]:
                break
        return taken

    def _admit(self, queue: Queue[I_], request: I_, admit: Admit[I_]) -> Admission:
        held_up = next((q for q in self._queues.values() if q.overtaken >= MAX_OVERTAKEN and q is not queue), None)
        if held_up is not None:
            return Admission.FULL
        answer = admit(request)
        if answer is Admission.CAPPED:
            queue.overtaken = max(queue.overtaken, 1)
        elif answer is Admission.IN:
            queue.overtaken = 0
            for peer in self._queues.values():
                peer.overtaken += peer.overtaken > 0
        return answer

    def _grant(self, request: I_, budget: int, credit: int, shares: dict[int, tuple[I_, int]]) -> int:
        """Grants a request what credit and budget allow; returns what was used of both."""
        had = shares.get(id(request), (request, 0))[1]
        needed, available = request.cost - had, min(budget, credit)
        if available <= 0 or needed <= 0:
            return 0
        if self._whole:
            # What exceeds the credit moves its tenant's start tag on. A text alone in a step may exceed the limit.
            fits = weigh(request, needed) <= budget or not shares if self._limited else needed <= budget
            granted = needed if fits else 0
        else:
            # Every share counts as MIN_TOKENS at least, so a first share below that would be charged twice.
            weighed = available if had else max(available, MIN_TOKENS)
            most = max(int(weighed / request.weight), 1) if self._limited else available
            granted = min(needed, most, self._room)
        if not granted:
            return 0
        shares[id(request)] = (request, had + granted)
        self._room -= granted
        return weigh(request, granted) if self._limited else granted

    def started(self, name: Hashable, request: I_) -> None:
        """Removes a request whose prompt is computed: it decodes from now on, or has ended."""
        queue = self._queues.get(name)
        if queue is not None and request in queue.running:
            queue.running.remove(request)
            self._retire(queue)

    def _queue(self, name: Hashable) -> Queue[I_]:
        if name not in self._queues:
            tenant = self._tenant_of(name)
            self._start_tags[tenant] = max(self._start_tags.get(tenant, 0), self._virtual_time)
            least = min((queue.service for queue in self._queues.values() if queue.tenant == tenant), default=0)
            self._queues[name] = Queue(name, tenant, least)
        return self._queues[name]

    def _retire(self, queue: Queue[I_]) -> None:
        """Deletes a queue without requests. Its tenant's start tag stays, so that a pause before the next request does
        not cancel the service it has had in advance."""
        if not queue.waiting and not queue.running and queue.name in self._queues:
            del self._queues[queue.name]
            if len(self._start_tags) > MAX_START_TAGS:
                tenants = {queue.tenant for queue in self._queues.values()}
                self._start_tags = {tenant: tag for tenant, tag in self._start_tags.items() if tenant in tenants}


def fair_shares(total: int, demands: Mapping[str, int]) -> dict[str, int]:
    """Max-min fair shares of `total` by tenant, each at most its demand and at least one: more tenants than `total`
    take turns. A remainder goes to the largest demands."""
    shares: dict[str, int] = {}
    remaining = total
    for rank, tenant in enumerate(sorted(demands, key=lambda name: (demands[name], name))):
        shares[tenant] = min(demands[tenant], max(1, remaining // (len(demands) - rank)))
        remaining = max(0, remaining - shares[tenant])
    return shares


def may_queue(max_waiting: int, queued: Mapping[str, int], tenant: str, new_requests: int) -> bool:
    """Whether a tenant may queue `new_requests` more in a queue that holds `max_waiting` already: while it stays within
    its equal part. The queue thus grows to at most `max_waiting` times the harmonic number of its tenants."""
    other_tenants = len(queued.keys() - {tenant})
    return other_tenants > 0 and queued.get(tenant, 0) + new_requests <= max_waiting // (other_tenants + 1)
