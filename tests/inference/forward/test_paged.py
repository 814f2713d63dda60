"""Blocks against slots: the same answers in float32, and every block accounted for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference.mixtures import free_blocks, mixture, random_prompt
from tests.near import assert_near
from tests.tiny import tiny_spec

from bedplate.core.errors import ContextLengthExceeded, UsageError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import (
    Classification,
    Embed,
    Embedding,
    Generate,
    Generation,
    Result,
    Sampling,
    Score,
    Scores,
)
from bedplate.inference.forward.kv_cache import SlotCache
from bedplate.inference.forward.paged import BLOCK, PagedCache
from bedplate.inference.forward.spans import Span
from bedplate.models.checkpoints.base import Base, load_base

TOKEN = 2 * 3 * 2 * 8 * 4
CPU = torch.device("cpu")


def _numbers(result: Result) -> list[float]:
    if isinstance(result, Generation):
        return [*result.token_ids, *result.logprobs]
    if isinstance(result, Scores):
        return list(result.totals)
    return list(result.scores if isinstance(result, Classification) else cast(Embedding, result).vector)


@pytest.fixture(scope="module")
def base(tiny_dir: Path) -> Base:
    return load_base(tiny_dir)


@pytest.fixture(scope="module")
def slots(base: Base) -> list[list[float]]:
    with Engine(base, cache_bytes=0) as engine:
        return [_numbers(result) for result in engine.run(mixture(40))]


def _held_by_tree(engine: Engine) -> int:
    return engine.stats().cache_bytes // (BLOCK * TOKEN)


@pytest.mark.parametrize(
    ("budget", "memory"), [pytest.param(512, 1 << 24, marks=pytest.mark.slow), (23, 1 << 24), (64, 12 * BLOCK * TOKEN)]
)
def test_every_kind_equals_slots_and_blocks_come_back(
    base: Base, slots: list[list[float]], budget: int, memory: int
) -> None:
    with Engine(base, paged=True, max_step_tokens=budget, slot_bytes=memory, cache_bytes=6 * BLOCK * TOKEN) as engine:
        cache = engine._runner.cache
        assert isinstance(cache, PagedCache)
        for _ in range(2):
            for ours, theirs in zip(engine.run(mixture(40)), slots, strict=True):
                np.testing.assert_allclose(_numbers(ours), theirs, atol=1e-3)
            ends = time.monotonic() + 5  # a result is there before its row's blocks are back
            while free_blocks(cache) + _held_by_tree(engine) != cache.blocks and time.monotonic() < ends:
                time.sleep(0.01)
            assert free_blocks(cache) + _held_by_tree(engine) == cache.blocks
        assert engine.stats().prefix_hits > 0
        engine._tree.clear()
        assert free_blocks(cache) == cache.blocks


def test_full_blocks_of_a_beginning_are_shared_not_copied(base: Base) -> None:
    with Engine(base, paged=True, slot_bytes=1 << 22, cache_bytes=1 << 20) as engine:
        cache = engine._runner.cache
        assert isinstance(cache, PagedCache)
        prompt = random_prompt(1, 5 * BLOCK + 3)
        engine.pin(prompt)
        used = cache.blocks - free_blocks(cache)
        assert used == 5
        with engine.exclusive():
            streams = [
                engine.submit(Generate((*prompt, i), Sampling(max_tokens=3, ignore_eos=True), tenant=str(i)))
                for i in range(4)
            ]
            engine._steps.step()
            # Each row holds the five shared blocks and one of its own.
            assert cache.blocks - free_blocks(cache) == used + 4
        for stream in streams:
            assert stream.result(timeout=60).usage.cached_tokens == 5 * BLOCK
        engine.unpin(prompt)


def test_a_soft_prompt_takes_whole_blocks(base: Base) -> None:
    vectors = torch.randn(BLOCK, 48, generator=torch.Generator().manual_seed(2)) * 0.5
    request = Generate(random_prompt(3, 20), Sampling(max_tokens=8, ignore_eos=True), adapter="soft")
    token_ids: list[tuple[int, ...]] = []
    for paged in (False, True):
        with Engine(base, paged=paged, slot_bytes=1 << 22, cache_bytes=1 << 20) as engine:
            engine.load_soft_prompt("soft", vectors)
            token_ids.append(cast(Generation, engine.run([request])[0]).token_ids)
            if paged:
                with pytest.raises(UsageError, match="multiple of 16"):
                    engine.load_soft_prompt("odd", vectors[:7])
    assert token_ids[0] == token_ids[1]


def test_rows_that_outgrow_the_pool_are_put_out_and_come_back(base: Base) -> None:
    samplings = [Sampling(max_tokens=90, temperature=1.0, seed=i, ignore_eos=True) for i in range(6)]
    requests = [Generate(random_prompt(i, 10), sampling) for i, sampling in enumerate(samplings)]
    with Engine(base, paged=True, slot_bytes=14 * BLOCK * TOKEN, cache_bytes=0) as engine:
        together = [_numbers(result) for result in engine.run(requests)]
        assert engine.stats().preemptions > 0
    with Engine(base) as engine:
        for request, ours in zip(requests, together, strict=True):
            np.testing.assert_allclose(ours, _numbers(engine.run([request])[0]), atol=1e-3)


def test_a_request_larger_than_the_pool_is_refused_before_it_begins(base: Base) -> None:
    """When it is submitted, or where something was pinned since, when it would begin; to its last block it fits."""
    room, plain = 4 * BLOCK, Sampling(max_tokens=3, ignore_eos=True)
    with Engine(base, paged=True, slot_bytes=room * TOKEN, cache_bytes=0) as engine:
        for large in (
            Generate(random_prompt(1, 200), plain),
            Generate(random_prompt(1, room - 2), plain),
            Generate(random_prompt(1, room), Sampling(max_tokens=None)),
            Score(random_prompt(1, room - 2), ((5,), (6, 7, 8, 9))),
            Embed(random_prompt(1, room + 1)),
        ):
            with pytest.raises(ContextLengthExceeded, match=f"this engine's cache holds {room} tokens"):
                engine.submit(large)
        fitting = Generate(random_prompt(1, room - 3), plain), Embed(random_prompt(2, room))
        for request in (*fitting, Generate(random_prompt(3, 9), Sampling(max_tokens=None, ignore_eos=True))):
            result = engine.submit(request).result(timeout=60)
        assert cast(Generation, result).usage.completion_tokens == room - 9
        prefix = random_prompt(4, BLOCK)
        engine.pin(prefix)
        with pytest.raises(ContextLengthExceeded, match=f"{room} tokens beside {BLOCK} pinned ones"):
            engine.submit(fitting[0]).result(timeout=60)
        engine.submit(Generate(prefix + random_prompt(5, room - BLOCK - 3), plain)).result(timeout=60)
        with pytest.raises(MemoryError, match="blocks of the cache"):
            engine.pin(random_prompt(6, room))
        engine.unpin(prefix)
        engine._tree.clear()
        assert free_blocks(cast(PagedCache, engine._runner.cache)) == 4
        assert (engine.running, engine.waiting) == (0, 0)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_attention_over_blocks_equals_attention_over_slots(data: st.DataObject) -> None:
    spec = tiny_spec()
    block = data.draw(st.sampled_from([1, 4, 16]))
    slots = SlotCache(spec, torch.float32, CPU)
    paged = PagedCache(spec, torch.float32, CPU, 1 << 20, block=block)
    positions: dict[int, int] = {}
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    for _ in range(data.draw(st.integers(1, 4))):
        rows = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True))
        spans = [Span(row, positions.get(row, 0), data.draw(st.sampled_from([1, 1, 2, 9, 30]))) for row in rows]
        positions |= {span.row: span.end for span in spans}
        slots.reserve(positions)
        paged.reserve(positions)
        N = sum(span.length for span in spans)
        q, k, v = (torch.randn(1, N, n, 8, generator=generator) for n in (6, 2, 2))
        for layer in (0, 2):
            ours, theirs = paged.attend(spans)(layer, q, k, v), slots.attend(spans)(layer, q, k, v)
            assert_near(ours, theirs)
    for row in positions:
        paged.free(row)
    assert free_blocks(paged) == paged.blocks
