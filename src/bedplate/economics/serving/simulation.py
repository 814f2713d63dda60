"""A discrete-event simulation of one engine behind its queue: the scheduler's rules, with a clock instead of a model.

Per step, as the engine does: every running generation takes one token; what is left of the step's budget goes to
prompts, in chunks, in the order they came; no more generations run at once than there are rows. A step takes what
`StepModel` says. Stretches in which nothing but the running generations happens are stepped over at once, their time
being linear in the keys they read.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from bedplate.core.errors import UsageError
from bedplate.economics.hardware.machine import Load
from bedplate.economics.serving.traffic_model import ArrivingCall, percentile


class StepModel(Protocol):
    """How long a step takes. `load.keys` enters linearly."""

    def seconds(self, load: Load) -> float: ...


@dataclass(frozen=True)
class ServiceModel:
    """An engine and the server around it.

    max_rows: generations at once. max_step_tokens: budget of one step. call_seconds: of a call beside the engine, half
    before and half after it: steps go on meanwhile, and what the server's work takes from them is part of their cost.
    drafted, accepted: tokens guessed after each token by speculation, and the share of them that is right.
    """

    steps: StepModel
    max_rows: int = 16
    max_step_tokens: int = 512
    call_seconds: float = 0.0
    drafted: int = 0
    accepted: float = 0.0
    adapters: bool = False

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.max_step_tokens < 1:
            raise UsageError("an engine needs at least one row and one token a step")
        if not 0 <= self.accepted <= 1 or self.drafted < 0:
            raise UsageError("the accepted share of drafted tokens must be in 0 … 1, and their number at least 0")

    @cached_property
    def tokens_per_decode(self) -> float:
        """Expected tokens of a row in a step: the sampled one, and drafted ones up to the first wrong one
        (https://arxiv.org/abs/2211.17192, equation 1)."""
        a = self.accepted
        return self.drafted + 1.0 if a == 1 else (1 - a ** (self.drafted + 1)) / (1 - a)


@dataclass(frozen=True)
class Simulated:
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
class _Prompt:
    """A call whose prompt is computed; `prefilled`: its tokens so far, cached ones included."""

    call: ArrivingCall
    number: int
    prefilled: int


@dataclass
class _Running:
    """The generations that run. Each gets as many tokens in a step as any other, so that sums over them suffice.

    emitted: tokens that one which had run from the beginning would have. ends: a heap of (`emitted` at which it ends,
    order, call number, skin). offset: keys that they read, less `emitted` of each. skins: how many of them use which.
    """

    emitted: float = 0.0
    ends: list[tuple[float, int, int, int]] = field(default_factory=list[tuple[float, int, int, int]])
    offset: dict[int, float] = field(default_factory=dict[int, float])
    offsets: float = 0.0
    skins: Counter[int] = field(default_factory=Counter[int])

    def __len__(self) -> int:
        return len(self.ends)

    def add(self, call: ArrivingCall, number: int) -> None:
        """A call that has its first token."""
        heapq.heappush(self.ends, (self.emitted + call.output_tokens - 1, number, number, call.skin))
        # Its next token reads the prompt, the first token and itself.
        self.offset[number] = call.prompt_tokens + 2 - self.emitted
        self.offsets += self.offset[number]
        self.skins[call.skin] += 1

    @property
    def keys(self) -> float:
        """What the next step reads."""
        return self.offsets + self.emitted * len(self.ends)

    @property
    def least_left(self) -> float:
        """Tokens until the first one ends."""
        return self.ends[0][0] - self.emitted

    def advance(self, tokens: float) -> list[int]:
        """Each says so many; the numbers of those that thereby end."""
        self.emitted += tokens
        ended: list[int] = []
        while self.ends and self.ends[0][0] <= self.emitted + 1e-9:
            _, _, number, skin = heapq.heappop(self.ends)
            self.offsets -= self.offset.pop(number)
            self.skins[skin] -= 1
            if not self.skins[skin]:
                del self.skins[skin]
            ended.append(number)
        return ended

    def ending(self, tokens: float) -> int:
        """How many would end by then. The heap's first entries are looked at, as far as they do."""
        return _count_below(self.ends, self.emitted + tokens + 1e-9)


def _count_below(heap: Sequence[tuple[float, int, int, int]], limit: float, at: int = 0) -> int:
    if at >= len(heap) or heap[at][0] > limit:
        return 0
    return 1 + _count_below(heap, limit, 2 * at + 1) + _count_below(heap, limit, 2 * at + 2)


@dataclass
class _State:
    clock: float = 0.0
    busy: float = 0.0
    steps: int = 0
    decode_steps: int = 0
    decoded_rows: float = 0.0
    prompts: list[_Prompt] = field(default_factory=list[_Prompt])
    running: _Running = field(default_factory=_Running)
    first: dict[int, float] = field(default_factory=dict[int, float])
    end: dict[int, float] = field(default_factory=dict[int, float])


def simulate(service: ServiceModel, calls: Sequence[ArrivingCall]) -> Simulated:
    """Every call from its arrival to its answer. UsageError without calls."""
    if not calls:
        raise UsageError("nothing to simulate: there are no calls")
    before = service.call_seconds / 2
    coming = deque(sorted(enumerate(calls), key=lambda pair: pair[1].at))
    waiting: deque[tuple[int, ArrivingCall]] = deque()
    state = _State(clock=coming[0][1].at)
    began = state.clock
    while coming or waiting or state.prompts or state.running:
        while coming and coming[0][1].at + before <= state.clock:
            waiting.append(coming.popleft())
        if not (waiting or state.prompts or state.running):
            state.clock = max(state.clock, coming[0][1].at + before)
            continue
        _step(service, state, waiting, coming[0][1].at + before if coming else math.inf)
    after = service.call_seconds / 2
    return Simulated(
        tuple(state.first[i] + after - call.at for i, call in enumerate(calls)),
        tuple(state.end[i] + after - call.at for i, call in enumerate(calls)),
        sum(call.output_tokens for call in calls),
        state.busy,
        max(state.end.values()) + after - began,
        state.steps,
        state.decoded_rows / state.decode_steps if state.decode_steps else 0.0,
        state.decode_steps,
    )


def _step(service: ServiceModel, state: _State, waiting: deque[tuple[int, ArrivingCall]], next_arrival: float) -> None:
    running = state.running
    if running and not state.prompts and not waiting:
        _decode(service, state, next_arrival)
        return
    chunks, copied = _chunks(service, state, waiting)
    if not chunks and running:
        _decode(service, state, next_arrival)
        return
    rows = (1 + service.drafted) * len(running)
    tokens, read, pairs = 0, 0, 0.0
    finished: list[_Prompt] = []
    for prompt, begin, end in chunks:
        tokens += end - begin
        read += end
        pairs += (end - begin) * (begin + end + 1) / 2
        if end == prompt.call.prompt_tokens:
            finished.append(prompt)
    load = Load(
        tokens=rows + tokens,
        rows=rows + len(finished),
        keys=running.keys + read,
        pairs=pairs,
        copied=copied,
        started=len(finished),
        ended=running.ending(service.tokens_per_decode)
        + sum(ended_prompt.call.output_tokens == 1 for ended_prompt in finished),
    )
    _pass_time(
        service, state, _adapted(service, load, running, [chunk_prompt.call.skin for chunk_prompt, _, _ in chunks]), 1
    )
    _advance(service, state, 1)
    for ended_prompt in finished:
        state.prompts.remove(ended_prompt)
        state.first[ended_prompt.number] = state.clock
        if ended_prompt.call.output_tokens == 1:
            state.end[ended_prompt.number] = state.clock
        else:
            running.add(ended_prompt.call, ended_prompt.number)


def _chunks(
    service: ServiceModel, state: _State, waiting: deque[tuple[int, ArrivingCall]]
) -> tuple[list[tuple[_Prompt, int, int]], int]:
    """(prompt, begin, end) of the prompts' tokens that this step computes, and the cached tokens that new ones begin
    with."""
    budget = service.max_step_tokens - (1 + service.drafted) * len(state.running)
    chunks: list[tuple[_Prompt, int, int]] = []
    copied = 0
    for prompt in state.prompts:
        if budget > 0:
            budget -= _cut(prompt, budget, chunks)
    while budget > 0 and waiting and len(state.running) + len(state.prompts) < service.max_rows:
        number, call = waiting.popleft()
        # The last token of a prompt is always computed: its state chooses the first token of the answer.
        prompt = _Prompt(call, number, min(call.cached_tokens, call.prompt_tokens - 1))
        copied += prompt.prefilled
        state.prompts.append(prompt)
        budget -= _cut(prompt, budget, chunks)
    return chunks, copied


def _cut(prompt: _Prompt, budget: int, chunks: list[tuple[_Prompt, int, int]]) -> int:
    count = min(budget, prompt.call.prompt_tokens - prompt.prefilled)
    chunks.append((prompt, prompt.prefilled, prompt.prefilled + count))
    prompt.prefilled += count
    return count


def _decode(service: ServiceModel, state: _State, next_arrival: float) -> None:
    """As many steps of the running generations as surely happen before one ends or another call comes."""
    per_step, running = service.tokens_per_decode, state.running
    spoken = per_step * len(running)
    rows = (1 + service.drafted) * len(running)
    min_steps = max(1, math.ceil(running.least_left / per_step - 1e-9))
    load = _adapted(service, Load(tokens=rows, rows=rows, keys=running.keys), running)
    count = 1
    if min_steps > 1:
        # All but the last step, in which one ends. Later steps read more keys, so their time bounds how many fit.
        slowest = service.steps.seconds(load._replace(keys=load.keys + min_steps * spoken))
        fitting = (next_arrival - state.clock) / slowest if slowest > 0 else min_steps - 1
        count = max(1, int(min(fitting, min_steps - 1)))
    middle = load.keys + (count - 1) / 2 * spoken
    ended = running.ending(per_step) if count == 1 else 0
    _pass_time(service, state, load._replace(keys=middle, ended=ended), count)
    _advance(service, state, count)


def _pass_time(service: ServiceModel, state: _State, load: Load, count: int) -> None:
    seconds = service.steps.seconds(load) * count
    state.clock += seconds
    state.busy += seconds
    state.steps += count
    if state.running:
        state.decode_steps += count
        state.decoded_rows += count * len(state.running)


def _advance(service: ServiceModel, state: _State, count: int) -> None:
    if state.running:
        for number in state.running.advance(count * service.tokens_per_decode):
            state.end[number] = state.clock


def _adapted(service: ServiceModel, load: Load, running: _Running, beginning: Sequence[int] = ()) -> Load:
    if not service.adapters:
        return load
    return load._replace(adapters=len({*running.skins, *beginning}), adapted_tokens=load.tokens)
