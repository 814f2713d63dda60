"""Prompt tokens of a step are limited while tenants share the engine, by what steps were measured to take."""

from __future__ import annotations

import pytest
from tests.tiny import write_tiny_base

from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Request, Sampling
from bedplate.inference.engine.step_budget import MIN_TOKENS, SHARED_SECONDS, SLOWDOWN, StepBudget
from bedplate.models.checkpoints.base import Base, load_base

DECODE, TOKEN = 0.1, 0.001


def test_prompts_lengthen_a_step_by_a_bounded_factor() -> None:
    moment = [0.0]
    budget = StepBudget(lambda: moment[0])
    assert budget.tokens(2) is None  # nothing is measured
    for _ in range(50):
        budget.record(4, 0, DECODE)
        budget.record(4, 512, DECODE + 512 * TOKEN)
    limit = budget.tokens(2)
    assert limit is not None
    assert DECODE + limit * TOKEN <= SLOWDOWN * DECODE
    budget.record(4, 512, DECODE + 512 * 10 * TOKEN)  # behind a long context
    assert budget.tokens(2) == MIN_TOKENS
    for _ in range(100):
        budget.record(4, MIN_TOKENS, DECODE + MIN_TOKENS * TOKEN)
    assert budget.tokens(2) == pytest.approx(limit, abs=2)
    moment[0] = SHARED_SECONDS / 2
    assert budget.tokens(1) is not None  # the other tenant is expected again
    moment[0] = 2 * SHARED_SECONDS
    assert budget.tokens(1) is None


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(write_tiny_base(tmp_path_factory.mktemp("tiny") / "tiny"))


@pytest.mark.parametrize("tenants", [1, 2])
def test_a_long_prompt_comes_in_small_pieces_beside_another_tenant(
    base: Base, monkeypatch: pytest.MonkeyPatch, tenants: int
) -> None:
    """The answers are the same ones."""
    monkeypatch.setattr(StepBudget, "tokens", lambda _, tenants: 20 if tenants > 1 else None)
    sampling = Sampling(max_tokens=30, ignore_eos=True)
    requests: list[Request] = [
        Generate((5, 6, 7), sampling, tenant="us"),
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
