"""What a decode step asks of a device: how many operations the host starts, and how often it waits; counted on CPU
tensors that say they are none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from tests.counting import Counted
from tests.made import made_base
from tests.tiny import tiny_spec

from bedplate.adapters.lora import LoraConfig, block_linears, initial_tensors
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.job import Job
from bedplate.inference.engine.requests import Generate, Generation, Result, Sampling
from bedplate.inference.engine.runner import Runner
from bedplate.inference.engine.share import Share
from bedplate.models.checkpoints.base import Base
from bedplate.models.layers.fused.joined import lay_together

LAYERS = 32
ROWS = 8


@cache
def base() -> Base:
    return made_base(tiny_spec(layers=LAYERS, hidden_size=24, heads=3, kv_heads=1, feedforward_size=32))


def asked(adapters: Sequence[str | None]) -> list[Generate]:
    """Prompts of different lengths, each with its adapter."""
    settings = Sampling(max_tokens=5, ignore_eos=True)
    return [
        Generate(tuple(range(3 + row, 20 + 3 * row)), settings, adapter=adapters[row % len(adapters)])
        for row in range(ROWS)
    ]


def adapted(engine: Engine, count: int) -> list[str]:
    modules = block_linears(engine.base.model)
    for seed in range(count):
        config = LoraConfig(r=2)
        start = initial_tensors(config, modules, seed)  # type: ignore[arg-type]
        engine.load_adapter(str(seed), config, {name: value + 0.02 for name, value in start.items()})
    return [str(seed) for seed in range(count)]


def steps(
    engine: Engine, requests: list[Generate], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Result], list[Counted]]:
    """The answers, and what each step counted in which all rows wrote."""
    found: list[Counted] = []
    run: Callable[[Runner, Sequence[Share]], list[Job]] = Runner.execute

    def execute(self: Runner, work: Sequence[Share]) -> list[Job]:
        if len(work) < ROWS or not all(one.job.decoding for one in work):
            return run(self, work)
        with monkeypatch.context() as patched, Counted() as counted:
            patched.setattr(torch.Tensor, "is_cpu", property(lambda tensor: False))
            ended = run(self, work)
        found.append(counted)
        return ended

    with monkeypatch.context() as patched:
        patched.setattr(Runner, "execute", execute)
        results = engine.run(requests)
    return results, found


@pytest.mark.parametrize("paged", [True, False])
def test_a_step_of_the_base_is_few_operations_and_waits_once(paged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_together(base().model)
    with Engine(base(), kernel="torch", paged=paged, slot_bytes=1 << 22, cache_bytes=1 << 20, adapters=4) as engine:
        results, counted = steps(engine, asked([None]), monkeypatch)
        for result, request in zip(results, asked([None]), strict=True):
            (alone,) = engine.run([request])
            assert isinstance(result, Generation)
            assert isinstance(alone, Generation)
            assert result.token_ids == alone.token_ids
    assert len(counted) >= 3
    for one in counted:
        assert one.started <= 350, one.operations.most_common()
        assert one.waited <= 1, one.waits


@pytest.mark.parametrize("paged", [True, False])
def test_a_step_of_several_adapters_waits_once(paged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_together(base().model)
    with Engine(base(), kernel="torch", paged=paged, slot_bytes=1 << 22, cache_bytes=1 << 20, adapters=4) as engine:
        requests = asked([None, *adapted(engine, 3)])
        results, counted = steps(engine, requests, monkeypatch)
        said = [engine.run([request])[0] for request in requests]
    for result, alone in zip(results, said, strict=True):
        assert isinstance(result, Generation)
        assert isinstance(alone, Generation)
        assert result.token_ids == alone.token_ids
    assert len({result.token_ids for result in results[:4]}) == 4  # type: ignore[union-attr]
    # Three at each linear: into all ranks, out of them, and the row's own ranks between.
    for one in counted:
        assert one.started <= 350 + 3 * 7 * LAYERS, one.operations.most_common()
        assert one.waited <= 1, one.waits
