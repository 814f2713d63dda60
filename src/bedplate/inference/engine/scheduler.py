"""Who computes how much in the next step: one budget, shared fairly between queues.

The budget is counted in what requests say that they cost: sequences of tokens, their tokens. Running generations come
first, a token each. What is left goes to the rest, in chunks, by deficit round robin (Shreedhar and Varghese 1995) over
queues: a queue is one skin and tenant, and has credit of its own. Within a queue requests start in the order they came,
except that one whose beginning is just being computed for another lets those behind it pass. Knows no model and no
cache: `admit` says whether a request can be let in.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from bedplate.inference.engine.stream import Stream

__all__ = ["Admission", "Admit", "Queue", "Scheduler", "Stream"]

# How far into a queue a step looks for requests that need not wait for a neighbour's prefix.
LOOKAHEAD = 32
# How many requests may start ahead of one that the adapter cap keeps out, before the others wait for it.
MOST_OVERTAKEN = 32


class Admission(enum.Enum):
    """IN: it runs from now on. LATER: its beginning is being computed for another. FULL: no row or memory is free.
    CAPPED: too many different adapters run."""

    IN = "in"
    LATER = "later"
    FULL = "full"
    CAPPED = "capped"


class Scheduled(Protocol):
    """What the scheduler sees of a request. cost: of what is still to be computed (known once it is in)."""

    @property
    def cost(self) -> int: ...


I_ = TypeVar("I_", bound=Scheduled)
Admit = Callable[[I_], Admission]
"""Lets a request in, or says why not."""


@dataclass(eq=False)
class Queue(Generic[I_]):
    """running: those let in whose prompts are not computed yet, in order. credit: how much it may take now. queued: the
    ids of those that wait."""

    name: Hashable
    waiting: deque[I_] = field(default_factory=deque)
    running: list[I_] = field(default_factory=list)
    credit: int = 0
    overtaken: int = 0
    queued: set[int] = field(default_factory=set[int])


class Scheduler(Generic[I_]):
    """budget: of one step. quantum: credit of one visit to a queue. whole: requests cannot be cut (encoders); then
    none may cost more than the budget."""

    def __init__(self, budget: int, quantum: int | None = None, whole: bool = False) -> None:
        self.budget = budget
        self.quantum = quantum or max(budget // 2, 1)
        self._whole = whole
        self._queues: dict[Hashable, Queue[I_]] = {}
        self._ring: deque[Queue[I_]] = deque()
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """How many requests are not let in yet."""
        return self._waiting

    def items(self) -> list[I_]:
        """Those that are not let in yet."""
        return [item for queue in self._ring for item in queue.waiting]

    def add(self, name: Hashable, item: I_) -> None:
        """A new request, at its queue's end."""
        queue = self._queue(name)
        queue.waiting.append(item)
        queue.queued.add(id(item))
        self._waiting += 1

    def put_back(self, name: Hashable, item: I_) -> None:
        """A request that had to give up its row: it is its queue's next."""
        queue = self._queue(name)
        if item in queue.running:
            queue.running.remove(item)
        queue.waiting.appendleft(item)
        queue.queued.add(id(item))
        self._waiting += 1

    def remove(self, name: Hashable, items: Iterable[I_]) -> None:
        """Requests of one queue that ended early."""
        queue = self._queues.get(name)
        if queue is None:
            return
        gone = set(map(id, items))
        if gone & queue.queued:  # mostly they were let in, and a long queue need not be looked through
            queue.queued -= gone
            self._waiting -= len(queue.waiting) - len(queue.queued)
            queue.waiting = deque(item for item in queue.waiting if id(item) in queue.queued)
        queue.running = [item for item in queue.running if id(item) not in gone]
        self._retire(queue)

    def charge(self, name: Hashable, cost: int) -> None:
        """What a queue's running generations took: it has had that, at most a visit's worth counts."""
        queue = self._queues.get(name)
        if queue is not None:
            queue.credit = max(queue.credit - cost, -self.quantum)

    def plan(self, taken: int, admit: Admit[I_]) -> list[tuple[I_, int]]:
        """(request, how much of its cost) for this step, of whose budget `taken` is spoken for already."""
        budget = self.budget - taken
        shares: dict[int, tuple[I_, int]] = {}
        idle = 0
        while budget > 0 and idle < len(self._ring):
            queue = self._ring[0]
            # A queue that the budget's end interrupted goes on with what credit it has left.
            if queue.credit <= 0:
                queue.credit += self.quantum
            before, credit = budget, queue.credit
            budget = self._serve(queue, budget, admit, shares)
            wants_more = self._whole and budget == before and self._starved(queue, budget, shares)
            if wants_more:
                queue.credit += self.quantum
            idle = 0 if budget < before or wants_more or credit <= 0 else idle + 1
            if budget > 0 or queue.credit <= 0:
                if not wants_more:
                    queue.credit = min(queue.credit, 0)
                self._ring.rotate(-1)
            self._retire(queue)
        return list(shares.values())

    def _starved(self, queue: Queue[I_], budget: int, shares: dict[int, tuple[I_, int]]) -> bool:
        """Whether its next request would fit the budget, but not the queue's credit. What this step serves already
        waits for nothing: queues that took turns in asking for it would never be done."""
        for item in queue.running:
            left = item.cost - shares.get(id(item), (item, 0))[1]
            if left > 0:
                return queue.credit < left <= budget
        return False

    def _serve(self, queue: Queue[I_], budget: int, admit: Admit[I_], shares: dict[int, tuple[I_, int]]) -> int:
        """Gives the queue's requests their shares; returns what is left of the budget."""
        for item in list(queue.running):
            given = self._give(queue, item, budget, shares)
            budget -= given
            if item.cost > shares.get(id(item), (item, 0))[1]:
                return budget  # no credit or budget is left for those behind it
        seen = skipped = 0
        while budget > 0 and queue.credit > 0 and skipped < len(queue.waiting) and seen < LOOKAHEAD:
            item = queue.waiting[skipped]
            seen += 1
            answer = self._admit(queue, item, admit)
            if answer is Admission.LATER:
                skipped += 1
                continue
            if answer is not Admission.IN:
                break
            del queue.waiting[skipped]
            queue.queued.discard(id(item))
            self._waiting -= 1
            seen = skipped
            queue.running.append(item)
            budget -= self._give(queue, item, budget, shares)
            if item.cost > shares.get(id(item), (item, 0))[1]:
                break
        return budget

    def _admit(self, queue: Queue[I_], item: I_, admit: Admit[I_]) -> Admission:
        held_up = next((q for q in self._ring if q.overtaken >= MOST_OVERTAKEN and q is not queue), None)
        if held_up is not None:
            return Admission.FULL
        answer = admit(item)
        if answer is Admission.CAPPED:
            queue.overtaken = max(queue.overtaken, 1)
        elif answer is Admission.IN:
            queue.overtaken = 0
            for other in self._ring:
                other.overtaken += other.overtaken > 0
        return answer

    def _give(self, queue: Queue[I_], item: I_, budget: int, shares: dict[int, tuple[I_, int]]) -> int:
        had = shares.get(id(item), (item, 0))[1]
        wanted = item.cost - had
        given = min(wanted, budget, queue.credit)
        if given <= 0 or (self._whole and given < wanted):
            return 0
        queue.credit -= given
        shares[id(item)] = (item, had + given)
        return given

    def started(self, name: Hashable, item: I_) -> None:
        """A request whose prompt is computed: from now on it decodes, or has ended."""
        queue = self._queues.get(name)
        if queue is not None and item in queue.running:
            queue.running.remove(item)
            self._retire(queue)

    def _queue(self, name: Hashable) -> Queue[I_]:
        if name not in self._queues:
            self._queues[name] = Queue(name)
            self._ring.append(self._queues[name])
        return self._queues[name]

    def _retire(self, queue: Queue[I_]) -> None:
        """A queue without requests keeps no credit."""
        if not queue.waiting and not queue.running and queue.name in self._queues:
            del self._queues[queue.name]
            self._ring.remove(queue)
