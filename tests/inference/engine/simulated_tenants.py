"""Tenants at one engine, on a clock that only its steps and their pauses move: what each request waits is exact."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import pytest
import torch
from tests.core.clocks import set_monotonic

from bedplate.inference.engine import runner, steps
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Request, Stream, generate, job
from bedplate.inference.engine.step_budget import RecentCompute, StepBudget
from bedplate.inference.forward.batch import FlatBatch, PassOutput
from bedplate.models.checkpoints.base import Base

Behavior = Generator[float | Sequence[Request]]
"""What a client does: seconds that it pauses, or requests that it sends at once and whose answers it awaits."""


@dataclass(frozen=True)
class Costs:
    """Seconds of a pass: of the pass itself, of each row, of each token, and of a token behind so many others once
    more."""

    step: float = 0.004
    row: float = 0.0003
    token: float = 0.0001
    context: float = 500.0

    def seconds(self, batch: FlatBatch) -> float:
        tokens = sum(span.length * (1 + (span.start + span.length / 2) / self.context) for span in batch.spans)
        return self.step + self.row * len(batch.spans) + self.token * tokens


class Simulation:
    """One engine whose passes compute nothing and take what `costs` says."""

    def __init__(self, base: Base, monkeypatch: pytest.MonkeyPatch, costs: Costs | None = None, **sizes: int) -> None:
        self.now, self.costs = 0.0, costs or Costs()
        self.waits: defaultdict[str, list[float]] = defaultdict(list[float])
        """Seconds of each tenant's requests."""
        for module in (steps, runner, job, generate):
            set_monotonic(monkeypatch, module, lambda: self.now)
        self.engine = Engine(base, kernel="torch", **sizes)
        monkeypatch.setattr(self.engine._steps, "_step_budget", StepBudget(lambda: self.now))
        monkeypatch.setattr(self.engine._steps, "_recent", RecentCompute(lambda: self.now))
        self._draw = torch.Generator().manual_seed(0)
        self._cache = self.engine._runner.cache
        monkeypatch.setattr(self.engine._runner, "forward", self._pass)

    def _pass(self, batch: FlatBatch) -> PassOutput:
        self.now += self.costs.seconds(batch)
        if self._cache is not None:
            self._cache.note(batch.spans)  # type: ignore[attr-defined]
        spec = self.engine.base.spec
        logits_WV = torch.randn(len(batch.logit_indices), spec.vocab_size, generator=self._draw)
        return PassOutput(logits_WV, torch.ones(len(batch.tokens), spec.hidden_size) if batch.states else None)

    def run(self, clients: Sequence[Behavior], seconds: float) -> None:
        """Lets the clients ask for so long."""
        numbers, until = itertools.count(), self.now + seconds
        due = [(self.now, next(numbers), client) for client in clients]
        waiting: list[tuple[float, list[Stream], Behavior]] = []
        while self.now < until:
            while due and due[0][0] <= self.now:
                _, _, client = heapq.heappop(due)
                move = next(client, None)
                if isinstance(move, float):
                    heapq.heappush(due, (self.now + move, next(numbers), client))
                elif move is not None:
                    waiting.append((self.now, self.engine._enqueue(move, wake=False), client))
            if not self.engine._steps.busy:
                self.now = due[0][0] if due else until
                continue
            self.engine._steps.step()
            ended = [ask for ask in waiting if all(stream.finished for stream in ask[1])]
            for begin, streams, client in ended:
                waiting.remove((begin, streams, client))
                self.waits[streams[0].request.tenant].append(self.now - begin)
                heapq.heappush(due, (self.now, next(numbers), client))
        for _, streams, _ in waiting:
            for stream in streams:
                stream.cancel()
        self.engine._steps.step()
        self.engine.close()


def tokens(draw: random.Random, count: int) -> tuple[int, ...]:
    return tuple(draw.randrange(10, 300) for _ in range(count))
