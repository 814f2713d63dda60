"""Keys and values of running requests take the memory of what they contain, whatever was asked before."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.made import made_base
from tests.tiny import tiny_spec

from bedplate.inference.engine import engine as engine_module
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Embed, Generate, Sampling
from bedplate.inference.forward.kv_cache import SlotCache, SlotSegment

CONTEXT = 4096
TOKEN_BYTES = 2 * 6 * 64 * 4
LONG_BYTES = CONTEXT * TOKEN_BYTES
"""Of the longest row: 12.6 MB."""


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_short_requests_behind_a_long_one_take_little_and_all_is_given_back(monkeypatch):
    growths: list[tuple[Any, ...]] = []
    grow = SlotCache._allocate

    def counted(cache: SlotCache, *sizes: Any) -> None:
        growths.append(sizes)
        grow(cache, *sizes)

    monkeypatch.setattr(SlotCache, "_allocate", counted)
    monkeypatch.setattr(engine_module, "IDLE_SECONDS", 0.3, raising=False)
    process = psutil.Process()
    base = made_base(tiny_spec(layers=1, kv_heads=6, head_dim=64, context_length=CONTEXT))
    with Engine(base, kernel="torch", slot_bytes=6 * LONG_BYTES, cache_bytes=0) as engine:
        engine.submit(Embed((5,) * (CONTEXT - 1))).result(60)
        before = process.memory_info().rss
        for stream in [engine.submit(Embed((token,))) for token in range(3, 67)]:
            stream.result(60)
        assert len(growths) <= 12, "the cache grows by doubling: 64 rows, and 4,096 tokens from 256"
        assert process.memory_info().rss - before < LONG_BYTES
        cache = engine._runner.cache
        assert isinstance(cache, SlotCache)
        assert until(lambda: (cache.rows, cache.capacity) == (1, 256))
        assert not cache._reach
        assert engine.run([Embed((5,) * 300)])[0].usage.prompt_tokens == 300


def test_a_long_row_leaves_room_for_the_short_ones():
    """Each counts with its own length, so that all of them run together."""
    base = made_base(tiny_spec(layers=1, kv_heads=6, head_dim=64, context_length=CONTEXT))
    sampling = Sampling(max_tokens=20, ignore_eos=True)
    decodes: list[int] = []
    with Engine(
        base, kernel="torch", slot_bytes=LONG_BYTES, cache_bytes=0, on_step=lambda step: decodes.append(step.decodes)
    ) as engine:
        engine.run([Generate((token,) * (CONTEXT // 2 if token == 3 else 8), sampling) for token in range(3, 11)])
    assert max(decodes) == 8


def test_long_rows_of_one_tenant_leave_room_for_another():
    """Of two tenants each has a third of the cache, however many of its requests wait, and the next one a third."""
    base = made_base(tiny_spec(layers=1, kv_heads=6, head_dim=64, context_length=CONTEXT))
    with Engine(base, kernel="torch", slot_bytes=3 * LONG_BYTES, cache_bytes=0, max_step_tokens=64) as engine:
        theirs = [engine.submit(Embed((token,) * (CONTEXT - 100), tenant="them")) for token in range(3, 7)]
        assert until(lambda: engine.running > 0)
        assert len(engine.submit(Generate((5, 6), Sampling(max_tokens=2), tenant="us")).result(60).token_ids) <= 2
        assert engine.running <= 2
        assert not any(stream.finished for stream in theirs[1:])
        for stream in theirs[2:]:  # each takes as long
            stream.cancel()
        assert all(stream.result(60).usage.prompt_tokens == CONTEXT - 100 for stream in theirs[:2])


@pytest.mark.parametrize("windows", [(), (24, None)])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_rows_keep_what_they_contain_within_the_limit(windows: Any, data: st.DataObject) -> None:
    """Rows of any length come and go: live ones lose nothing, and nobody reads what another left."""
    spec = tiny_spec(layers=2, kv_heads=2, head_dim=16, context_length=CONTEXT, windows=windows)
    limit = 600 * SlotCache(spec, torch.float32, torch.device("cpu")).token_bytes
    cache = SlotCache(spec, torch.float32, torch.device("cpu"), limit, step=8)
    draw = torch.Generator().manual_seed(0)
    rows: dict[int, SlotSegment] = {}
    for _ in range(data.draw(st.integers(1, 12))):
        row, length = data.draw(st.integers(0, 9)), data.draw(st.sampled_from([1, 3, 40, 70, 300, 500]))
        if row in rows and data.draw(st.booleans()):
            cache.free(row)
            del rows[row]
        lengths = {number: segment.tokens for number, segment in rows.items()}
        if row in rows or not cache.room([*lengths.values(), length]):
            continue
        cache.reserve({**lengths, row: length})
        parts = [
            torch.randn(*part.shape[:1], part.shape[2], length, part.shape[4], generator=draw)
            for part in cache._data.values()
        ]
        rows[row] = SlotSegment(length, parts)
        cache.load(row, 0, rows[row], length)
        assert len(rows) == 1 or cache._bytes(cache._reach.values()) <= limit
        for number, segment in rows.items():
            assert cache.rewinds(number, segment.tokens)
            begin = max(0, segment.tokens - 24)  # what every layer has
            saved = cache.save(number, begin, segment.tokens)
            assert saved is not None
            for ours, written in zip(saved.data, segment.data, strict=True):
                assert torch.equal(ours, written[..., begin:, :])
        for number in range(cache.rows):
            reach = cache._reach.get(number, 0)
            assert all(not part[:, number, :, reach:].any() for part in cache._data.values())
