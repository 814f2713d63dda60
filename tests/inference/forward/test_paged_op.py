"""Attention over blocks as one operation: the plain way and Triton's kernel, each against attention over the whole
sequence, in pieces of all lengths."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.interpreted import NO_TRITON, interpreting
from tests.near import assert_near
from tests.tiny import tiny_spec

from bedplate.inference.forward import paged
from bedplate.inference.forward.kv_cache import SlotCache
from bedplate.inference.forward.paged import PagedAttention, PagedCache
from bedplate.inference.forward.spans import Span
from bedplate.models.layers.attention import RowAttention
from bedplate.models.layers.attention_options import AttentionOptions

CPU = torch.device("cpu")
SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, -0.3])
HOWS = {
    "plain": AttentionOptions(),
    "scaled and capped": AttentionOptions(scale=0.7, softcap=1.5),
    "a window": AttentionOptions(window=7),
    "sinks in a window": AttentionOptions(window=5, sinks=SINKS),
}
PIECES = [
    [Span(0, 0, 19), Span(1, 0, 3)],
    [Span(0, 19, 1), Span(1, 3, 1), Span(2, 0, 1)],
    [Span(1, 4, 33), Span(2, 1, 2), Span(0, 20, 17)],
    [Span(2, 3, 1), Span(0, 37, 1), Span(1, 37, 1)],
]


@pytest.fixture(params=["plain", "kernel"])
def one_operation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts' chunks too are one operation, as on a device."""
    monkeypatch.setattr(PagedAttention, "_one_operation", lambda self: True)
    if request.param == "kernel":
        interpreting(monkeypatch)
        from bedplate.inference.forward import cache_ops, triton_kernels

        monkeypatch.setattr(paged, "paged_attention", triton_kernels.paged_attention)
        monkeypatch.setattr(paged, "write_kv", triton_kernels.write_kv)
        assert cache_ops.write_kv is not triton_kernels.write_kv


@pytest.mark.parametrize("how", HOWS)
def test_pieces_are_as_the_whole_sequence(how: str, one_operation: None) -> None:
    options = HOWS[how]
    spec = tiny_spec(layers=1, windows=(options.window,) if options.window else ())
    cache = PagedCache(spec, torch.float32, CPU, 1 << 20, block=4, step=8)
    torch.manual_seed(1)
    wholes = [[torch.randn(1, 40, n, 8) for n in (6, 2, 2)] for _ in range(3)]
    for pieces in PIECES:
        cache.reserve({span.row: span.end for span in pieces})
        batch = [torch.cat([wholes[s.row][part][:, s.start : s.end] for s in pieces], dim=1) for part in range(3)]
        # As queries, keys and values lie where they are parts of one product.
        qkv = torch.cat(batch, dim=2)
        q, k, v = qkv[:, :, :6], qkv[:, :, 6:8], qkv[:, :, 8:]
        outputs = cache.attend(pieces)(0, q, k, v, options)[0].split([span.length for span in pieces])
        for span, ours in zip(pieces, outputs, strict=True):
            alone = RowAttention(causal=True)(0, *(x[:, : span.end] for x in wholes[span.row]), options)
            assert_near(ours, alone[0, span.start :], label=f"{how} {span}")


def test_what_others_left_is_not_multiplied(one_operation: None) -> None:
    """Blocks that a row has not written yet hold another's infinities."""
    spec = tiny_spec(layers=1)
    cache = PagedCache(spec, torch.float32, CPU, 1 << 20, block=4)
    for pool in cache.pools.values():
        pool._clear = lambda blocks: None  # as if it were not enough
    for part in (cache.keys[0], cache.values[0]):
        part.fill_(torch.nan)
    slots = SlotCache(spec, torch.float32, CPU)
    torch.manual_seed(2)
    for pieces in PIECES:
        lengths = {span.row: span.end for span in pieces}
        cache.reserve(lengths)
        slots.reserve({0: 40, 1: 40, 2: 40})
        batch: list[Any] = [torch.randn(1, sum(span.length for span in pieces), n, 8) for n in (6, 2, 2)]
        assert_near(cache.attend(pieces)(0, *batch), slots.attend(pieces)(0, *batch))


@pytest.mark.slow
def test_the_kernels_compile_for_a_device(tmp_path: Path) -> None:
    """The interpreter lets pass what the compiler does not."""
    pytest.importorskip("triton", reason=NO_TRITON)
    settings = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    program = Path(__file__).with_name("compiled_kernels.py")
    process = subprocess.run([sys.executable, program], env=settings, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("_attend") == 2
