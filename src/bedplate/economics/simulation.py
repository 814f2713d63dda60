"""A discrete-event simulation of one engine behind its queue: the scheduler's rules, with a clock instead of a model.

Per step, as the engine does: every running generation takes one token; what is left of the step's budget goes to
prompts, in chunks, in the order they came; no more generations run at once than there are rows. A step takes what
`StepModel` says. Stretches in which nothing but the running generations happens are stepped over at once, their time
being linear in the keys they read.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from bedplate.core.errors import UsageError
from bedplate.economics.machine import Load
from bedplate.economics.traffic import Call, percentile


class StepModel(Protocol):
    """How long a step takes. `load.keys` enters linearly."""

    def seconds(self, load: Load) -> float: ...


@dataclass(frozen=True)
class Service:
    """An engine and the server around it.

    max_rows: generations at once. max_step_tokens: budget of one step. call_seconds: of a call beside the engine, half
    before and half after it. call_share: how much of that time no step can run, the server's work taking its cores.
    drafted, accepted: tokens guessed after each token by speculation, and the share of them that is right.
    """

    steps: StepModel
    max_rows: int = 16
    max_step_tokens: int = 512
    call_seconds: float = 0.0
    call_share: float = 1.0
    drafted: int = 0
    accepted: float = 0.0
    adapters: bool = False

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.max_step_tokens < 1:
            raise UsageError("an engine needs at least one row and one token a step")
        if not 0 <= self.accepted <= 1 or self.drafted < 0:
            raise UsageError("the accepted share of drafted tokens must be in 0 … 1, and their number at least 0")

    @property
    def tokens_per_decode(self) -> float:
        """Expected tokens of a row in a step: the sampled one, and drafted ones up to the first wrong one
        (https://arxiv.org/abs/2211.17192, equation 1)."""
        a = self.accepted
        return self.drafted + 1.0 if a == 1 else (1 - a ** (self.drafted + 1)) / (1 - a)


@dataclass(frozen=True)
class Outcome:
    """What became of the calls, in their order: seconds until the first token and until the end; and of the engine.

    busy_seconds: spent in steps, of seconds from the first call to the last answer. mean_batch: running generations of
    an average decoding step.
    """

    first_token_seconds: tuple[float, ...]
    total_seconds: tuple[float, ...]
    output_tokens: int
    busy_seconds: float
    seconds: float
    steps: int
    mean_batch: float
    decode_steps: int

    @property
    def utilisation(self) -> float:
        """Share of the time in which a step ran."""
        return self.busy_seconds / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Output tokens a second, idle time included."""
        return self.output_tokens / self.seconds

    def total(self, share: float) -> float:
        """A percentile of the seconds from a call to its answer's end."""
        return percentile(self.total_seconds, share)

    def first_token(self, share: float) -> float:
        """A percentile of the seconds from a call to its first token."""
        return percentile(self.first_token_seconds, share)


@dataclass(eq=False)
class _Row:
    call: Call
    number: int
    done: int
    """Of the prompt, cached tokens included."""
    said: float = 0.0

    @property
    def left(self) -> float:
        return self.call.output_tokens - self.said


@dataclass
class _State:
    now: float = 0.0
    busy: float = 0.0
    steps: int = 0
    decode_steps: int = 0
    decoded_rows: float = 0.0
    owed: float = 0.0
    """Seconds of the server's own work that the next step has to wait for."""
    prompts: list[_Row] = field(default_factory=list[_Row])
    running: list[_Row] = field(default_factory=list[_Row])
    first: dict[int, float] = field(default_factory=dict[int, float])
    end: dict[int, float] = field(default_factory=dict[int, float])


def simulate(service: Service, calls: Sequence[Call]) -> Outcome:
    """Every call from its arrival to its answer. UsageError without calls."""
    if not calls:
        raise UsageError("nothing to simulate: there are no calls")
    before = service.call_seconds / 2
    coming = deque(sorted(enumerate(calls), key=lambda pair: pair[1].at))
    waiting: deque[tuple[int, Call]] = deque()
    state = _State(now=coming[0][1].at)
    began = state.now
    while coming or waiting or state.prompts or state.running:
        while coming and coming[0][1].at + before <= state.now:
            waiting.append(coming.popleft())
            state.owed += service.call_seconds * service.call_share
        if not (waiting or state.prompts or state.running):
            state.now = max(state.now, coming[0][1].at + before)
            continue
        _step(service, state, waiting, coming[0][1].at + before if coming else math.inf)
    after = service.call_seconds / 2
    return Outcome(
        tuple(state.first[i] + after - call.at for i, call in enumerate(calls)),
        tuple(state.end[i] + after - call.at for i, call in enumerate(calls)),
        sum(call.output_tokens for call in calls),
        state.busy,
        max(state.end.values()) + after - began,
        state.steps,
        state.decoded_rows / state.decode_steps if state.decode_steps else 0.0,
        state.decode_steps,
    )


def _step(service: Service, state: _State, waiting: deque[tuple[int, Call]], next_arrival: float) -> None:
    chunks, copied = _chunks(service, state, waiting)
    if not chunks and state.running:
        _decode(service, state, next_arrival)
        return
    per_row = 1 + service.drafted
    finished = [row for row, _, end in chunks if end == row.call.prompt_tokens]
    load = Load(
        tokens=per_row * len(state.running) + sum(end - begin for _, begin, end in chunks),
        rows=per_row * len(state.running) + len(finished),
        keys=sum(row.call.prompt_tokens + row.said + 1 for row in state.running) + sum(end for _, _, end in chunks),
        pairs=sum((end - begin) * (begin + end + 1) / 2 for _, begin, end in chunks),
        copied=copied,
        started=len(finished),
        ended=sum(row.left <= service.tokens_per_decode for row in state.running)
        + sum(row.call.output_tokens == 1 for row in finished),
    )
    _pass_time(service, state, _adapted(service, load, [*state.running, *(row for row, _, _ in chunks)]), 1)
    _advance(service, state, 1)
    for row in finished:
        state.prompts.remove(row)
        state.first[row.number] = state.now
        row.said = 1.0
        if row.left <= 0:
            state.end[row.number] = state.now
        else:
            state.running.append(row)


def _chunks(
    service: Service, state: _State, waiting: deque[tuple[int, Call]]
) -> tuple[list[tuple[_Row, int, int]], int]:
    """(row, begin, end) of the prompts' tokens that this step computes, and the cached tokens that new rows begin
    with."""
    budget = service.max_step_tokens - (1 + service.drafted) * len(state.running)
    chunks: list[tuple[_Row, int, int]] = []
    copied = 0
    for row in state.prompts:
        if budget > 0:
            budget -= _cut(row, budget, chunks)
    while budget > 0 and waiting and len(state.running) + len(state.prompts) < service.max_rows:
        number, call = waiting.popleft()
        # The last token of a prompt is always computed: its state chooses the first token of the answer.
        row = _Row(call, number, min(call.cached_tokens, call.prompt_tokens - 1))
        copied += row.done
        state.prompts.append(row)
        budget -= _cut(row, budget, chunks)
    return chunks, copied


def _cut(row: _Row, budget: int, chunks: list[tuple[_Row, int, int]]) -> int:
    count = min(budget, row.call.prompt_tokens - row.done)
    chunks.append((row, row.done, row.done + count))
    row.done += count
    return count


def _decode(service: Service, state: _State, next_arrival: float) -> None:
    """As many steps of the running generations as surely happen before one ends or another call comes."""
    per_step, per_row = service.tokens_per_decode, 1 + service.drafted
    rows = state.running
    least = max(1, math.ceil(min(row.left for row in rows) / per_step - 1e-9))
    load = _adapted(
        service,
        Load(
            tokens=per_row * len(rows),
            rows=per_row * len(rows),
            keys=sum(row.call.prompt_tokens + row.said + 1 for row in rows),
        ),
        rows,
    )
    count = 1
    if least > 1:
        # All but the last step, in which one ends. Later steps read more keys, so their time bounds how many fit.
        slowest = service.steps.seconds(replace(load, keys=load.keys + least * per_step * len(rows)))
        fitting = (next_arrival - state.now) / slowest if slowest > 0 else least - 1
        count = max(1, min(least - 1, int(min(fitting, least - 1))))
    ended = sum(row.left <= per_step for row in rows) if count == 1 else 0
    middle = load.keys + (count - 1) / 2 * per_step * len(rows)
    _pass_time(service, state, replace(load, keys=middle, ended=ended), count)
    _advance(service, state, count)


def _pass_time(service: Service, state: _State, load: Load, count: int) -> None:
    seconds = service.steps.seconds(load) * count + state.owed
    state.owed = 0.0
    state.now += seconds
    state.busy += seconds
    state.steps += count
    if state.running:
        state.decode_steps += count
        state.decoded_rows += count * len(state.running)


def _advance(service: Service, state: _State, count: int) -> None:
    kept: list[_Row] = []
    for row in state.running:
        row.said += count * service.tokens_per_decode
        if row.left <= 1e-9:
            state.end[row.number] = state.now
        else:
            kept.append(row)
    state.running = kept


def _adapted(service: Service, load: Load, rows: Sequence[_Row]) -> Load:
    if not service.adapters:
        return load
    return replace(load, adapters=len({row.call.skin for row in rows}), adapted_tokens=load.tokens)
