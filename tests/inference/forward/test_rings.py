"""Layers with windows keep no more than they need, whatever is computed, kept, given back or taken back; latents."""

from __future__ import annotations

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.near import assert_near
from tests.tiny import tiny_spec

from bedplate.core.errors import UsageError
from bedplate.inference.forward.kv_cache import SlotCache
from bedplate.inference.forward.paged import PagedCache
from bedplate.inference.forward.spans import Span
from bedplate.models.layers.attention import RowAttention
from bedplate.models.layers.attention_options import AttentionOptions
from bedplate.models.specs.cache import cache_layout
from bedplate.models.specs.parts import LatentAttention
from bedplate.models.specs.transformer import TransformerSpec

CPU = torch.device("cpu")
STEP = 8
WINDOW = 5
LATENT = tiny_spec(layers=1, kv_heads=6, head_dim=12, latent=LatentAttention(16, 8, 4, 8))


def new_cache(layout: str, spec: TransformerSpec) -> SlotCache | PagedCache:
    if layout == "slots":
        return SlotCache(spec, torch.float32, CPU, step=STEP)
    return PagedCache(spec, torch.float32, CPU, 1 << 20, block=4, step=STEP)


@pytest.mark.parametrize("layout", ["slots", "blocks"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_bounded_rows_are_as_whole_ones(layout: str, data: st.DataObject) -> None:
    """Rows in steps, some taken back a little, some given to another row by way of the prefix cache."""
    spec = tiny_spec(layers=2, windows=(WINDOW, None))
    cache = new_cache(layout, spec)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    wholes = [torch.randn(3, 1, 90, 6, 8, generator=generator) for _ in range(4)]
    positions = dict.fromkeys(range(data.draw(st.integers(1, 3))), 0)
    for _ in range(data.draw(st.integers(1, 8))):
        spans = [Span(row, at, data.draw(st.sampled_from([1, 1, 3, STEP]))) for row, at in positions.items()]
        positions = {span.row: span.end for span in spans}
        cache.reserve(positions)
        parts = [wholes[span.row][:, :, span.start : span.end] for span in spans]
        q, k, v = torch.cat(parts, dim=2)
        attend = cache.attend(spans)
        for layer, how in enumerate((AttentionOptions(window=WINDOW), AttentionOptions())):
            outputs = attend(layer, q, k[:, :, :2], v[:, :, :2], how)[0].split([span.length for span in spans])
            for span, ours in zip(spans, outputs, strict=True):
                q_, k_, v_ = wholes[span.row][:, :, : span.end]
                alone = RowAttention(causal=True)(layer, q_, k_[:, :, :2], v_[:, :, :2], how)
                assert_near(ours, alone[0, span.start :])
        for span in spans:  # guesses that were wrong
            positions[span.row] -= data.draw(st.integers(0, span.length - 1))
            assert cache.rewinds(span.row, positions[span.row])
        if data.draw(st.booleans()):
            row, to = data.draw(st.permutations(range(4)))[:2]
            at = positions.get(row, 0) // cache.block * cache.block
            segment = cache.save(row, 0, at) if at > cache.block else None
            if segment is not None:
                cut = data.draw(st.integers(1, at // cache.block - 1)) * cache.block
                parts = segment.split(cut)
                wholes[to], positions[to] = wholes[row], at
                cache.free(to)
                if cache.copies:
                    cache.reserve(positions)
                for begin, part in zip((0, cut), parts, strict=True):
                    cache.load(to, begin, part, cut if begin == 0 else at - cut)
                    part.release()
    for row in positions:
        cache.free(row)
    assert not isinstance(cache, PagedCache) or all(pool.free == pool.blocks for pool in cache.pools.values())


def test_blocks_of_windows_are_let_go() -> None:
    cache = PagedCache(tiny_spec(layers=2, windows=(WINDOW, None)), torch.float32, CPU, 1 << 20, block=4, step=STEP)
    assert cache.pools[WINDOW].blocks == cache.blocks // 4
    for start in range(0, 8 * cache.blocks // 4, STEP):
        cache.reserve({0: start + STEP})
        cache.attend([Span(0, start, STEP)])
        assert cache.pools[WINDOW].blocks - cache.pools[WINDOW].free <= cache._row_blocks(start + STEP, WINDOW)
    assert cache.save(0, 0, STEP) is None
    assert cache.room([8 * cache.blocks // 4] * 2)
    assert not cache.room([8 * cache.blocks // 4 + 4] * 2)


def test_rings_stay_small_and_say_what_they_have_not() -> None:
    spec = tiny_spec(layers=3, windows=(WINDOW, None), context_length=4096)
    cache = SlotCache(spec, torch.float32, CPU, step=STEP)
    cache.reserve({0: 2000})
    ring = WINDOW + 2 * STEP
    assert [keys.shape[2] for keys in cache.keys] == [ring, cache.capacity, ring]
    assert cache.room([4000] * 3)
    layer_bytes = [layer.values * 4 for layer in cache_layout(spec)]
    limited = SlotCache(spec, torch.float32, CPU, 3 * (2 * ring * layer_bytes[0] + 1000 * layer_bytes[1]), step=STEP)
    assert limited.room([1000] * 3)
    assert not limited.room([1001] * 3)
    q, k, v = torch.randn(3, 1, 40, 6, 8)
    for start in range(0, 40, STEP):
        part = slice(start, start + STEP)
        cache.attend([Span(0, start, STEP)])(
            0, q[:, part], k[:, part, :2], v[:, part, :2], AttentionOptions(window=WINDOW)
        )
    assert cache.save(0, 40 - ring, 40) is not None
    assert cache.save(0, 40 - ring - 1, 40) is None
    assert cache.rewinds(0, 40 - 2 * STEP)
    assert not cache.rewinds(0, 40 - 2 * STEP - 2)
    with pytest.raises(UsageError, match="a pass has 9 tokens of one row, and this cache takes 8"):
        cache.attend([Span(0, 40, 9)])


def test_a_short_text_in_the_slot_of_a_long_one_gives_its_memory_back() -> None:
    spec = tiny_spec(layers=4, kv_heads=6, head_dim=64, context_length=4096)
    cache = SlotCache(spec, torch.float32, CPU)
    cache.reserve({0: 4000})
    process = psutil.Process()
    before = process.memory_info().rss
    cache.attend([Span(0, 0, 4000)])
    for tensor in (*cache.keys, *cache.values):
        tensor[0, :, :4000] = 1.0
    assert process.memory_info().rss - before > 40 << 20  # of 46.9 MiB
    cache.free(0)
    cache.attend([Span(0, 0, 10)])
    assert process.memory_info().rss - before < 4 << 20
    assert all(not tensor[0, :, 10:].any() for tensor in (*cache.keys, *cache.values))


def test_growth_without_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = SlotCache(tiny_spec(layers=1), torch.float32, CPU)
    cache.attend([Span(0, 0, 200)])
    cache.keys[0][0] = 1.0

    def fail(rows: int) -> None:
        raise MemoryError

    monkeypatch.setattr(cache.states, "reserve", fail)
    with pytest.raises(MemoryError):
        cache.reserve({3: 300})
    assert cache.rows == 1
    assert bool((cache.keys[0][0, :, :200] == 1.0).all())


@pytest.mark.parametrize("layout", ["slots", "blocks"])
def test_a_latent_is_one_key_and_its_end_the_value(layout: str) -> None:
    cache = (
        SlotCache(LATENT, torch.float32, CPU) if layout == "slots" else PagedCache(LATENT, torch.float32, CPU, 1 << 20)
    )
    cache.reserve({0: 32})
    assert cache.token_bytes == 20 * 4
    q, k = torch.randn(1, 32, 6, 20), torch.randn(1, 32, 1, 20)
    whole = RowAttention(causal=True)(0, q, k, k[..., 4:])
    for start, length in ((0, 16), (16, 1), (17, 15)):
        at = slice(start, start + length)
        output = cache.attend([Span(0, start, length)])(0, q[:, at], k[:, at], k[:, at, :, 4:])
        assert_near(output, whole[:, at])
    segment = cache.save(0, 0, 16)
    assert segment is not None
    assert segment.nbytes == 16 * cache.token_bytes
