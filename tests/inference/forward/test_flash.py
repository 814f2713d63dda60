"""FlashAttention over blocks: steps by functions that are declared and checked as its package's, against our own
operation; and where it is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.flash_package import MODULES
from tests.near import assert_near
from tests.tiny import tiny_spec

from bedplate.core.errors import UnsupportedModelError
from bedplate.inference.forward import flash, paged_attention
from bedplate.inference.forward.flash import FlashPaged, flash_for
from bedplate.inference.forward.paged import PagedCache
from bedplate.inference.forward.spans import Span
from bedplate.models.layers.attention_options import AttentionOptions

CPU, H, G, D = torch.device("cpu"), 6, 2, 8
HOWS = {
    "plain": AttentionOptions(),
    "scaled and capped": AttentionOptions(scale=0.7, cap=1.5),
    "a window": AttentionOptions(window=7),
}


def drawn(count: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    # As queries, keys and values lie where they are parts of one product.
    qkv = torch.randn(1, count, H + 2 * G, D, generator=generator).bfloat16()
    return qkv[:, :, :H], qkv[:, :, H : H + G], qkv[:, :, H + G :]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(("edition", "block"), [("flash2", 256), ("flash3", 4)])
def test_steps_are_as_our_own(edition: Any, block: int, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of different lengths after a prompt, over several blocks; what is kept is the same too."""
    options, window = HOWS[how], HOWS[how].window
    spec = tiny_spec(layers=1, windows=(window,) if window else ())
    caches = [PagedCache(spec, torch.bfloat16, CPU, 1 << 22, block=block, step=8) for _ in range(2)]
    flash_lengths: list[list[int]] = []

    def choose(q: Any, k: Any, v: Any, block: int, lengths: list[int], how: AttentionOptions) -> FlashPaged | None:
        kernel = FlashPaged(edition, MODULES[edition])
        assert kernel.refusal(q, v, block, lengths, how) is None
        flash_lengths.append(lengths)
        return kernel

    positions = {0: 300, 1: 3, 2: 20}
    pieces = [[Span(row, 0, count)] for row, count in positions.items()]
    for _ in range(5):
        pieces.append([Span(row, positions[row], 1) for row in positions])
        positions = {row: at + 1 for row, at in positions.items()}
    for number, spans in enumerate(pieces):
        q, k, v = drawn(sum(span.length for span in spans), number)
        outputs = []
        for cache, flashes in zip(caches, (True, False), strict=True):
            with monkeypatch.context() as patched:
                if flashes:
                    patched.setattr(paged_attention, "flash_for", choose)
                cache.reserve({span.row: span.end for span in spans})
                outputs.append(cache.attend(spans)(0, q, k, v, options))
        assert_near(outputs[0].float(), outputs[1].float(), 2e-2, f"{how} {spans}")
    assert flash_lengths == [[1, 1, 1]] * 5
    for row, end in positions.items():
        for ours, theirs in zip(*([c.keys[0], c.values[0]] for c in caches), strict=True):
            at = torch.arange(max(end - (window or end), 0), end)
            cached = (
                x[torch.tensor(c.table(row, window))[at // block], at % block]
                for x, c in zip((ours, theirs), caches, strict=True)
            )
            assert torch.equal(*cached)


def test_what_it_cannot_do_is_refused_by_name() -> None:
    q, k, v = (x[0] for x in drawn(2, 0))
    pool = torch.zeros(3, 16, G, D, dtype=torch.bfloat16)
    tables: Any = (torch.zeros(2, 1, dtype=torch.int32), torch.zeros(2, dtype=torch.int32))
    second, third = (FlashPaged(edition, MODULES[edition]) for edition in ("flash2", "flash3"))
    for kernel, values, lengths, how, message in (
        (
            second,
            v,
            [1, 1],
            AttentionOptions(),
            "flash_attn reads blocks of a multiple of 256 tokens, and these have 16",
        ),
        (
            third,
            v,
            [1, 1],
            AttentionOptions(bias=lambda distance: distance),
            "attention with a bias is not supported by flash_attn_interface",
        ),
        (third, v, [1, 1], AttentionOptions(sinks=torch.zeros(H)), "attention with sinks is not supported"),
        (third, v, [2, 3], AttentionOptions(), "takes as many new tokens of every row"),
        (third, torch.zeros(2, G, 5).bfloat16(), [1, 1], AttentionOptions(), "keys and values of one size up to 256"),
    ):
        with pytest.raises(UnsupportedModelError, match=message):
            kernel(q, k, values, pool, pool, *tables, lengths, how)
    with pytest.raises(UnsupportedModelError, match=r"takes half precision, and these are torch\.float32"):
        third(q.float(), k.float(), v.float(), pool.float(), pool.float(), *tables, [1, 1], AttentionOptions())


def test_it_is_taken_where_it_is_the_same_and_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on a CPU; elsewhere where both are so."""
    q, k, v = (x[0] for x in drawn(2, 0))
    assert flash_for(q, k, v, 16, [1, 1], AttentionOptions()) is None
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda tensor: False))
    monkeypatch.setattr(flash, "package", lambda edition: None)
    assert flash_for(q, k, v, 16, [1, 1], AttentionOptions()) is None
    monkeypatch.setattr(flash, "package", lambda edition: MODULES[edition])
    monkeypatch.setattr(flash, "faster", lambda *_: True)
    for block, lengths, how, edition in (
        (16, [1, 1], AttentionOptions(), "flash3"),
        (256, [1, 1], AttentionOptions(cap=2.0), "flash3"),
        (16, [1, 1], AttentionOptions(sinks=torch.zeros(H)), None),
        (16, [2, 2], AttentionOptions(), None),
    ):
        kernel = flash_for(q, k, v, block, lengths, how)
        assert (None if kernel is None else kernel.edition) == edition
    monkeypatch.setattr(flash, "package", lambda edition: MODULES[edition] if edition == "flash2" else None)
    assert flash_for(q, k, v, 16, [1, 1], AttentionOptions()) is None
    assert flash_for(q, k, v, 512, [1, 1], AttentionOptions()) is not None


def test_whether_it_is_faster_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([2.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr(flash, "least_seconds", lambda run, *_: (run(), next(times))[1])
    monkeypatch.setattr(flash, "_CONTEXTS", (40, 9, 3))
    monkeypatch.setattr(flash, "package", lambda edition: MODULES[edition])
    arguments: Any = (CPU, torch.bfloat16, (H, G, D), 16)
    assert flash.faster.__wrapped__("flash3", *arguments, None, None)
    assert not flash.faster.__wrapped__("flash3", *arguments, 1.5, 7)
    monkeypatch.setattr(flash, "package", lambda edition: MODULES["flash2"])  # whose arguments are others
    assert not flash.faster.__wrapped__("flash3", *arguments, None, None)
