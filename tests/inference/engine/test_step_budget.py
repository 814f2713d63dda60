"""Prompt tokens of a step are limited while tenants share the engine, by what steps were measured to take."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest
from tests.tiny import write_tiny_base

from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Request, Sampling, Stream
from bedplate.inference.engine.step_budget import (
    FIRST_TOKENS,
    MIN_TOKENS,
    PROMPT_SLOWDOWN,
    SHARED_SECONDS,
    SLOWDOWN,
    RecentCompute,
    StepBudget,
)
from bedplate.models.checkpoints.base import Base, load_base

DECODE, TOKEN = 0.1, 0.001


def learned(budget: StepBudget, steps: int, seconds: Callable[[int], float], decodes: int = 4) -> list[int]:
    """The limits of so many steps that each compute what they may, every tenth one no prompt."""
    limits: list[int] = []
    for number in range(steps):
        limit = budget.tokens(2, decodes)
        assert limit is not None
        tokens = 0 if decodes and number % 10 == 0 else limit
        budget.record(decodes, tokens, seconds(tokens))
        limits.append(limit)
    return limits


def test_prompts_lengthen_a_step_by_a_bounded_factor() -> None:
    moment = [0.0]
    budget = StepBudget(lambda: moment[0])
    assert budget.tokens(2, 0) == FIRST_TOKENS  # before anything is measured
    limit = learned(budget, 60, lambda tokens: DECODE + tokens * TOKEN)[-1]
    assert DECODE + limit * TOKEN == pytest.approx(SLOWDOWN * DECODE, rel=0.02)
    dearer = learned(budget, 500, lambda tokens: DECODE + tokens * 10 * TOKEN)[-1]
    assert dearer == pytest.approx(max(limit / 10, 2 * MIN_TOKENS), rel=0.2)
    moment[0] = SHARED_SECONDS / 2
    assert budget.tokens(1, 4) is not None  # the other tenant is expected again
    moment[0] = 2 * SHARED_SECONDS
    assert budget.tokens(1, 4) is None


def test_what_prompts_take_is_learned_where_no_step_is_without_them() -> None:
    """Before, nothing was limited until a step without prompts came, which never did while others' prompts waited."""
    budget = StepBudget(lambda: 0.0)
    for number in range(60):
        tokens = 20 + 37 * number % 150
        budget.record(4, tokens, DECODE + tokens * TOKEN)
    limit = budget.tokens(2, 4)
    assert limit is not None
    assert DECODE + limit * TOKEN == pytest.approx(SLOWDOWN * DECODE, rel=0.02)


def test_steps_of_prompts_alone_are_long_enough_to_lose_little() -> None:
    budget = StepBudget(lambda: 0.0)
    limits = learned(budget, 200, lambda tokens: DECODE + tokens * TOKEN, decodes=0)[20:]
    assert DECODE / (DECODE + sum(limits) / len(limits) * TOKEN) <= 1.1 / PROMPT_SLOWDOWN
    assert max(limits) * TOKEN <= 1.1 * PROMPT_SLOWDOWN * DECODE


def test_a_limit_that_is_far_too_low_is_left_again() -> None:
    """Steps that are all alike say nothing of what a token takes; the limit stayed where noise had brought it."""
    budget = StepBudget(lambda: 0.0)
    for _ in range(300):
        budget.record(4, MIN_TOKENS, DECODE + MIN_TOKENS * TOKEN)
    limits = learned(budget, 300, lambda tokens: DECODE + tokens * TOKEN)
    assert limits[-1] * TOKEN == pytest.approx((SLOWDOWN - 1) * DECODE, rel=0.1)
    assert max(limits) * TOKEN <= 1.1 * (SLOWDOWN - 1) * DECODE


def test_one_step_that_waited_for_the_machine_changes_little() -> None:
    budget = StepBudget(lambda: 0.0)
    limit = learned(budget, 60, lambda tokens: DECODE + tokens * TOKEN)[-1]
    budget.record(4, limit, 100 * SLOWDOWN * DECODE)
    hurt = budget.tokens(2, 4)
    assert hurt is not None
    assert hurt >= limit / 3


@pytest.mark.parametrize("cold", [20, 100])
def test_a_slow_first_step_is_forgotten(cold: float) -> None:
    """Beside it a step without prompts seemed to take no time, and counted as none from then on, whatever it took."""
    budget = StepBudget(lambda: 0.0)
    budget.record(4, FIRST_TOKENS, cold * DECODE)
    for number in range(600):
        tokens = (budget.tokens(2, 4) or 0) if number % 2 else 0
        budget.record(4, tokens, DECODE + tokens * TOKEN)
    assert (budget.tokens(2, 4) or 0) * TOKEN == pytest.approx((SLOWDOWN - 1) * DECODE, rel=0.1)


def test_noise_does_not_open_the_limit() -> None:
    """Where long steps happened to take less than short ones, a token seemed free, and millions were allowed."""
    budget = StepBudget(lambda: 0.0)
    for number in range(60):
        tokens = (16, 80)[number % 2]
        budget.record(4, tokens, DECODE * (1.1 if tokens == 16 else 1.0))
    assert (budget.tokens(2, 4) or 0) <= 4 * 80


def test_every_tenant_may_begin_a_prompt_in_a_step() -> None:
    """Beside a tenant whose bursts made steps slow, the short prompts of seven others came one by one."""
    budget = StepBudget(lambda: 0.0)
    learned(budget, 60, lambda tokens: DECODE + tokens * 100 * TOKEN)
    assert budget.tokens(8, 4) == 8 * MIN_TOKENS


def test_a_tenant_makes_a_step_longer_by_its_part() -> None:
    moment = [0.0]
    budget = StepBudget(lambda: moment[0])
    budget.tokens(8, 4)
    assert budget.part(700, 4) == 100
    assert budget.part(20, 4) == MIN_TOKENS
    moment[0] = SHARED_SECONDS / 2
    budget.tokens(2, 4)
    assert budget.part(700, 4) == 100  # the others are expected again
    moment[0] = 3 * SHARED_SECONDS
    budget.tokens(2, 4)
    assert budget.part(700, 4) == 700


def test_a_tenant_with_far_more_compute_than_the_others_is_known_until_it_is_forgotten() -> None:
    moment = [0.0]
    recent = RecentCompute(lambda: moment[0])
    for _ in range(100):
        moment[0] += 0.01
        recent.add(0.01, {"them": 64, "us": 16, "others": 16})
    assert recent.excessive({"them", "us"}) == {"them"}
    assert not recent.excessive({"them"})  # nobody else has a request
    assert not recent.excessive({"us", "others"})
    for _ in range(100):
        moment[0] += 0.01
        recent.add(0.01, {"us": 1, "others": 1})
    assert not recent.excessive({"them", "us"})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(write_tiny_base(tmp_path_factory.mktemp("tiny") / "tiny"))


@pytest.mark.parametrize("tenants", [1, 2])
def test_a_long_prompt_comes_in_small_pieces_beside_another_tenant(
    base: Base, monkeypatch: pytest.MonkeyPatch, tenants: int
) -> None:
    """The answers are the same ones."""
    monkeypatch.setattr(StepBudget, "tokens", lambda _, tenants, decodes: 20 if tenants > 1 else None)
    sampling = Sampling(max_tokens=30, ignore_eos=True)
    requests: list[Request] = [
        Generate((5, 6, 7), Sampling(max_tokens=150, ignore_eos=True), tenant="us"),
        Generate(tuple(range(3, 303)), sampling, tenant="them" if tenants == 2 else "us"),
    ]
    pieces: list[int] = []

    def note(step: object) -> None:
        pieces.append(sum(count for _, count, _ in step.spans[step.decodes :]))  # type: ignore[attr-defined]

    with Engine(base, kernel="torch", cache_bytes=0, on_step=note) as engine:
        streams = [engine.submit(request) for request in requests]
        together = [stream.result(60) for stream in streams]
        assert max(pieces) <= 20 if tenants == 2 else max(pieces) >= 256
        engine._steps._on_step = None
        assert [result.token_ids for result in together] == [  # type: ignore[attr-defined]
            engine.run([request])[0].token_ids  # type: ignore[attr-defined]
            for request in requests
        ]


def test_a_tenant_that_arrives_while_a_step_is_planned_fails_nobody(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tenants with requests were looked through while other threads added theirs."""
    sampling, late = Sampling(max_tokens=4, ignore_eos=True), list[Stream]()
    with Engine(base, kernel="torch") as engine:
        excessive = engine._steps._recent.excessive

        def arriving(tenants: Collection[str]) -> frozenset[str]:
            for tenant in tenants:
                if engine.running and not late:
                    late.append(engine.submit(Generate((5, 6), sampling, tenant=f"after {tenant}")))
            return excessive(tenants)

        monkeypatch.setattr(engine._steps._recent, "excessive", arriving)
        stream = engine.submit(Generate((5, 6, 7), sampling, tenant="us"))
        assert len(stream.result(60).token_ids) == 4  # type: ignore[attr-defined]
        assert len(late[0].result(60).token_ids) == 4  # type: ignore[attr-defined]
