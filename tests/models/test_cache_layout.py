"""What layers keep: by the spec, allocated so by slots and blocks, and counted so by the cost model."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_spec

from bedplate.economics.model.footprint import kv_bytes, kv_bytes_per_token
from bedplate.inference.forward import kv_cache, paged
from bedplate.inference.forward.kv_cache import SlotCache, SlotSegment
from bedplate.inference.forward.paged import PagedCache
from bedplate.inference.forward.spans import Span
from bedplate.models.layers.attention import RowAttention
from bedplate.models.specs import AudioSpec, EncoderDecoderSpec, TransformerSpec
from bedplate.models.specs.cache import LayerCache, cache_layout
from bedplate.models.specs.parts import LatentAttention, Mamba2, SharedKeys
from bedplate.models.specs.presets import PRESETS
from bedplate.models.specs.transformer import FullAttention

CPU = torch.device("cpu")
LATENT = LatentAttention(kv_rank=16, nope_dim=8, rope_dim=4, value_dim=8)


def stack(name: str) -> TransformerSpec:
    spec = PRESETS[name]
    decoder = spec.decoder if isinstance(spec, EncoderDecoderSpec) else spec
    assert isinstance(decoder, TransformerSpec)
    return decoder


def test_what_layers_keep() -> None:
    assert cache_layout(tiny_spec(layers=1)) == (LayerCache(0, "kv", 2, 8, 8),)
    windows = cache_layout(tiny_spec(layers=3, windows=(64, None)))
    assert [(buffer.layer, buffer.cache_type, buffer.window) for buffer in windows] == [
        (0, "window", 64),
        (1, "kv", None),
        (2, "window", 64),
    ]
    latent = tiny_spec(layers=2, kv_heads=6, head_dim=12, latent=LATENT)
    assert [(buffer.cache_type, buffer.values) for buffer in cache_layout(latent)] == [("latent", 20), ("latent", 20)]
    cross = cache_layout(tiny_spec(layers=2, cross_size=48))
    assert [(buffer.layer, buffer.cache_type) for buffer in cross] == [(0, "kv"), (0, "cross"), (1, "kv"), (1, "cross")]
    assert cache_layout(stack("bert-base")) == ()
    mamba = tiny_spec(layers=2, state=Mamba2(6, 16, 2, 10), state_layers=(True, False))
    assert cache_layout(mamba) == (
        LayerCache(0, "convolution", 1, 96 + 2 * 2 * 10, 3),
        LayerCache(0, "recurrent", 6, 10, 16),
        LayerCache(1, "kv", 2, 8, 8),
    )
    assert [buffer.values for buffer in cache_layout(mamba)] == [136 * 3, 960, 32]
    shared = tiny_spec(layers=4, windows=(4, None), full=FullAttention(16, 1), shared_keys=SharedKeys(2))
    assert cache_layout(shared) == (LayerCache(0, "window", 2, 8, 8, 4), LayerCache(1, "kv", 1, 16, 16))
    assert kv_bytes_per_token(shared, 1) == 64


@pytest.mark.parametrize(
    "name", [name for name, spec in PRESETS.items() if isinstance(spec, TransformerSpec | EncoderDecoderSpec)]
)
def test_the_cost_model_counts_what_layers_keep(name: str) -> None:
    spec = PRESETS[name]
    layout = cache_layout(stack(name))
    growing = [buffer for buffer in layout if buffer.cache_type != "cross" and not buffer.of_sequence]
    assert 2.0 * sum(buffer.values for buffer in growing) == kv_bytes_per_token(spec)
    context, source = 5000, 70
    if isinstance(spec, EncoderDecoderSpec) and isinstance(spec.encoder, AudioSpec):
        source = spec.encoder.window_tokens  # sound is always a whole window
    stored_values = sum(buffer.values * min(context, buffer.window or context) for buffer in growing)
    stored_values += sum(buffer.values * source for buffer in layout if buffer.cache_type == "cross")
    states = sum(
        buffer.values * (4 if buffer.cache_type == "recurrent" else 2) for buffer in layout if buffer.of_sequence
    )
    assert 2.0 * stored_values + states == kv_bytes(spec, context, source_tokens=70)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"kv_heads": 3, "head_dim": 16}, {"windows": (4, None)}])
def test_slots_and_blocks_take_what_the_cost_model_says(dtype: torch.dtype, changes: dict[str, object]) -> None:
    spec = tiny_spec(**changes)
    token_bytes = kv_bytes_per_token(spec, dtype.itemsize)
    slots = SlotCache(spec, dtype, CPU)
    slots.reserve({2: 300})
    blocks = PagedCache(spec, dtype, CPU, 1 << 20)
    assert slots.token_bytes == blocks.token_bytes == token_bytes
    assert _bytes(slots) == slots.rows * slots.capacity * token_bytes
    in_blocks = {buffer.layer: blocks.pools[buffer.window].blocks * buffer.values for buffer in cache_layout(spec)}
    assert _bytes(blocks) == sum(in_blocks.values()) * blocks.block * dtype.itemsize <= 1 << 20
    assert len(blocks.pools) > 1 or _bytes(blocks) == blocks.blocks * blocks.block * token_bytes
    assert slots.saved_bytes(2) == token_bytes * 2 // 3
    assert slots.save(0, 10, 30).nbytes == 20 * token_bytes
    assert slots.save(0, 10, 30, depth=2).nbytes == 20 * slots.saved_bytes(2)


def _bytes(cache: SlotCache | PagedCache) -> int:
    return sum(x.numel() * x.element_size() for x in (*cache.keys, *cache.values))


def test_layers_of_several_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of one size are kept together, whatever layer they are of, and come back where they were."""
    layout = (LayerCache(0, "kv", 2, 8, 6), LayerCache(1, "kv", 1, 6, 6), LayerCache(2, "kv", 2, 8, 8))
    for module in (kv_cache, paged):
        monkeypatch.setattr(module, "row_layout", lambda *_: layout)
    slots, blocks = SlotCache(tiny_spec(), torch.float32, CPU), PagedCache(tiny_spec(), torch.float32, CPU, 1 << 20)
    generator = torch.Generator().manual_seed(0)
    inputs: list[tuple[torch.Tensor, ...]] = []
    for cache in (slots, blocks):
        cache.reserve({0: 32, 1: 32})
    for buffer in layout:
        q, k, v = (
            torch.randn(1, 32, n, size, generator=generator)
            for n, size in ((6, buffer.key_size), (buffer.heads, buffer.key_size), (buffer.heads, buffer.value_size))
        )
        expected = RowAttention(causal=True)(buffer.layer, q, k, v)
        for cache in (slots, blocks):
            for spans in ([Span(1, 0, 32)], [Span(1, 0, 20)], [Span(1, 20, 12)]):
                at = slice(spans[0].start, spans[0].end)
                output = cache.attend(spans)(buffer.layer, q[:, at], k[:, at], v[:, at])
                torch.testing.assert_close(output, expected[:, at])
        inputs.append((k[0], v[0]))
    for depth in (None, 2, 1):
        segment = slots.save(1, 0, 32, depth)
        assert segment.nbytes == 32 * slots.saved_bytes(depth)
        first, second = segment.split(10)
        restored = SlotCache(tiny_spec(), torch.float32, CPU)
        restored.load(0, 0, first, 10)
        restored.load(0, 10, second, 22)
        for number, (k, v) in enumerate(inputs):
            inside = depth is None or number < depth
            assert torch.equal(restored.keys[number][0, :, :32].transpose(0, 1), k if inside else torch.zeros_like(k))
            assert torch.equal(restored.values[number][0, :, :32].transpose(0, 1), v if inside else torch.zeros_like(v))
        segment.release()
        assert isinstance(segment, SlotSegment)
        assert segment.nbytes == 0
    slots.reserve({1: 32, 3: 900})  # grown: what was there is there still
    for number, (k, _) in enumerate(inputs):
        assert torch.equal(slots.keys[number][1, :, :32].transpose(0, 1), k)
