"""The simulated engine against queueing theory, against a clock that takes every step, and against what must hold."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.errors import UsageError
from bedplate.economics.hardware.machine import Load
from bedplate.economics.serving.simulation import ArrivingCall, ServiceModel, Traffic, parse_lengths, simulate


@dataclass
class Costs:
    """seconds = fixed + token · tokens + key · keys + pair · pairs; counts what it was asked."""

    fixed: float = 0.0
    token: float = 0.0
    key: float = 0.0
    pair: float = 0.0
    loads: list[Load] = field(default_factory=list)

    def seconds(self, load: Load) -> float:
        self.loads.append(load)
        return self.fixed + self.token * load.tokens + self.key * load.keys + self.pair * load.pairs


def pollaczek_khinchine(rate: float, times: Sequence[float]) -> float:
    """Mean wait of M/G/1: λ E[S²] / (2 (1 − ρ)) (Pollaczek 1930, Khinchine 1932)."""
    mean, square = sum(times) / len(times), sum(t * t for t in times) / len(times)
    return rate * square / (2 * (1 - rate * mean))


@pytest.mark.parametrize(
    ("outputs", "load"),
    [
        ("20", 0.6),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (("1-40", 0.8), ("20", 0.3), ("20", 0.8), ("1-40", 0.3), ("1-40", 0.6))
        ),
    ],
)
def test_one_row_waits_as_the_queue_of_theory_does(outputs: str, load: float) -> None:
    # One row at a time, and steps of one length: a call takes a step for its prompt and each further token.
    service = ServiceModel(Costs(fixed=0.01), max_rows=1)
    traffic = Traffic(parse_lengths("5", "it"), parse_lengths(outputs, "it"))
    lengths = range(1, 41) if "-" in outputs else [20]
    times = [0.01 * n for n in lengths]
    rate = load / (sum(times) / len(times))
    waits: list[float] = []
    for seed in range(6):
        calls = traffic.calls(rate, 4000, seed)
        outcome = simulate(service, calls)
        waits += [t - 0.01 * c.output_tokens for t, c in zip(outcome.total_seconds, calls, strict=True)]
    # A call that comes during a step waits for its end: nothing else differs from the theory's queue.
    assert sum(waits) / len(waits) == pytest.approx(pollaczek_khinchine(rate, times), rel=0.08)


def naive(service: ServiceModel, calls: Sequence[ArrivingCall]) -> tuple[list[float], list[float], int]:
    """The same rules with every step taken: (first token, end) of each call, and the steps."""
    clock, steps = min(call.at for call in calls), 0
    coming = sorted(range(len(calls)), key=lambda i: calls[i].at)
    waiting: list[int] = []
    prompts: list[list[int]] = []  # [call, tokens done]
    running: dict[int, int] = {}  # call: tokens said
    first, end = [0.0] * len(calls), [0.0] * len(calls)
    while coming or waiting or prompts or running:
        while coming and calls[coming[0]].at <= clock:
            waiting.append(coming.pop(0))
        if not (waiting or prompts or running):
            clock = calls[coming[0]].at
            continue
        budget = service.max_step_tokens - len(running)
        tokens, keys, pairs, finished = len(running), 0, 0.0, []
        keys += sum(calls[i].prompt_tokens + generated + 1 for i, generated in running.items())
        while budget > 0 and waiting and len(running) + len(prompts) < service.max_rows:
            if any(at < calls[i].prompt_tokens for i, at in prompts) and budget <= sum(
                calls[i].prompt_tokens - at for i, at in prompts
            ):
                break
            i = waiting.pop(0)
            prompts.append([i, min(calls[i].cached_tokens, calls[i].prompt_tokens - 1)])
        for prompt in prompts:
            i, at = prompt
            count = min(budget, calls[i].prompt_tokens - at)
            if count <= 0:
                continue
            budget -= count
            tokens += count
            keys += at + count
            pairs += sum(range(at + 1, at + count + 1))
            prompt[1] += count
            if prompt[1] == calls[i].prompt_tokens:
                finished.append(i)
        clock += service.steps.seconds(Load(tokens, 0, keys=float(keys), pairs=float(pairs)))
        steps += 1
        for i in list(running):
            running[i] += 1
            if running[i] == calls[i].output_tokens:
                end[i] = clock
                del running[i]
        prompts = [prompt for prompt in prompts if prompt[0] not in finished]
        for i in finished:
            first[i] = clock
            if calls[i].output_tokens == 1:
                end[i] = clock
            else:
                running[i] = 1
    return first, end, steps


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.integers(1, 60), st.integers(0, 30), st.integers(1, 25)), min_size=1, max_size=14
    ),
    st.integers(1, 5),
    st.integers(6, 40),
)
def test_stepping_over_is_as_stepping_through(drawn: list[tuple[float, int, int, int]], rows: int, budget: int) -> None:
    calls = [ArrivingCall(at, prompt, cached, output) for at, prompt, cached, output in drawn]
    service = ServiceModel(Costs(0.004, 0.0007, 0.00002, 0.000003), max_rows=rows, max_step_tokens=budget)
    outcome = simulate(service, calls)
    first, end, steps = naive(service, calls)
    assert outcome.steps == steps
    assert outcome.first_token_seconds == pytest.approx([f - c.at for f, c in zip(first, calls, strict=True)], abs=1e-9)
    assert outcome.total_seconds == pytest.approx([e - c.at for e, c in zip(end, calls, strict=True)], abs=1e-9)


def test_long_answers_are_stepped_over() -> None:
    costs = Costs(fixed=0.01, key=1e-6)
    outcome = simulate(ServiceModel(costs), [ArrivingCall(0.0, 10, 0, 5000)])
    assert outcome.steps == 5000
    assert len(costs.loads) < 20
    # 10 in the prompt, then contexts 12 … 5010 of the further tokens: a sum by hand.
    assert outcome.seconds == pytest.approx(5000 * 0.01 + 1e-6 * (10 + sum(range(12, 5011))))


def test_prompts_are_cut_by_the_budget_that_generations_leave() -> None:
    costs = Costs(fixed=1.0)
    simulate(
        ServiceModel(costs, max_rows=3, max_step_tokens=10), [ArrivingCall(0.0, 1, 0, 5), ArrivingCall(0.5, 24, 0, 1)]
    )
    assert [load.tokens for load in costs.loads[:4]] == [1, 10, 10, 7]
    # 9 and 9 and 6 of the prompt beside one running row, whose context grows.
    assert [load.pairs for load in costs.loads[1:4]] == [45, 9 * 9 + 45, 6 * 18 + 21]
    assert [load.keys for load in costs.loads[1:4]] == [3 + 9, 4 + 18, 5 + 24]


def test_no_more_rows_run_than_there_are() -> None:
    costs = Costs(fixed=0.1)
    outcome = simulate(ServiceModel(costs, max_rows=2), [ArrivingCall(0.0, 4, 0, 6) for _ in range(7)])
    assert max(load.rows for load in costs.loads) == 2
    assert outcome.mean_batch <= 2
    # In the order they came, two by two.
    assert list(outcome.total_seconds) == sorted(outcome.total_seconds)


def test_cached_tokens_are_not_computed_but_the_last_one_is() -> None:
    costs = Costs(fixed=1.0)
    simulate(ServiceModel(costs), [ArrivingCall(0.0, 30, 20, 1), ArrivingCall(50.0, 30, 30, 1)])
    assert [(load.tokens, load.copied, load.keys) for load in costs.loads] == [(10, 20, 30), (1, 29, 30)]


def test_speculation_says_the_tokens_that_theory_expects() -> None:
    # Leviathan et al. 2022: drawing how many of k guesses are right, each with chance a, until the first wrong one.
    generator, k, a = random.Random(0), 4, 0.7
    drawn = []
    for _ in range(40_000):
        right = next((n for n in range(k) if generator.random() > a), k)
        drawn.append(right + 1)
    service = ServiceModel(Costs(fixed=0.01), drafted=k, accepted=a)
    assert service.tokens_per_decode == pytest.approx(sum(drawn) / len(drawn), rel=0.01)
    plain = simulate(replace(service, drafted=0, accepted=0.0), [ArrivingCall(0.0, 5, 0, 401)])
    guessed = simulate(service, [ArrivingCall(0.0, 5, 0, 401)])
    assert guessed.steps == math.ceil(400 / service.tokens_per_decode) + 1
    assert guessed.seconds < plain.seconds / 2.5
    assert ServiceModel(Costs(), drafted=3, accepted=1.0).tokens_per_decode == 4
    assert ServiceModel(Costs(), drafted=3, accepted=0.0).tokens_per_decode == 1


def test_adapters_are_counted_by_skin() -> None:
    costs = Costs(fixed=0.1)
    calls = [ArrivingCall(0.0, 4, 0, 3, skin) for skin in (0, 1, 1, 2)]
    simulate(ServiceModel(costs, adapters=True), calls)
    assert {load.adapters for load in costs.loads} == {3}
    assert all(load.adapted_tokens == load.tokens for load in costs.loads)


def test_what_a_server_adds_to_a_call() -> None:
    calls = [ArrivingCall(0.0, 4, 0, 3)]
    alone = simulate(ServiceModel(Costs(fixed=0.1)), calls)
    served = simulate(ServiceModel(Costs(fixed=0.1), call_seconds=0.02), calls)
    assert alone.total_seconds[0] == pytest.approx(0.3)
    assert served.total_seconds[0] == pytest.approx(0.32)
    assert served.first_token_seconds[0] == pytest.approx(0.12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 50), st.floats(0.5, 20), st.integers(1, 8))
def test_nothing_is_lost_and_time_adds_up(seed: int, rate: float, rows: int) -> None:
    calls = Traffic(parse_lengths("1-80", "it"), parse_lengths("1-20", "it")).calls(rate, 40, seed)
    outcome = simulate(ServiceModel(Costs(0.003, 0.0001), max_rows=rows, max_step_tokens=64), calls)
    assert len(outcome.total_seconds) == 40
    assert all(0 < f <= t for f, t in zip(outcome.first_token_seconds, outcome.total_seconds, strict=True))
    assert 0 < outcome.utilisation <= 1 + 1e-9
    assert outcome.output_tokens == sum(call.output_tokens for call in calls)


def test_what_cannot_be_is_refused() -> None:
    for wrong in ({"max_rows": 0}, {"max_step_tokens": 0}, {"accepted": 1.5}, {"drafted": -1}):
        with pytest.raises(UsageError):
            ServiceModel(Costs(), **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no calls"):
        simulate(ServiceModel(Costs()), [])
