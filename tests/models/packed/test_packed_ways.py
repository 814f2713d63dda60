"""Ways of attending to packed rows on a device: what they are told, what they refuse, and which of them is taken."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.flash_package import MODULES
from tests.models.packed.test_attention import CPU, HOWS, LONG, D, distances, random_qkv, segments_of
from tests.near import assert_near
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.layers.attention_options import PLAIN, AttentionOptions, plain_attention
from bedplate.models.packed import flash, flex, layouts
from bedplate.models.packed.block_attention import BlockAttention
from bedplate.models.packed.flash import FlashAttention
from bedplate.models.packed.flex import FlexAttention
from bedplate.models.packed.placement import Placement
from bedplate.models.packed.varlen import VarlenAttention


def varlen(
    q: Tensor, k: Tensor, v: Tensor, edges: Tensor, key_edges: Tensor, max_length: int, max_key_length: int, **how: Any
) -> Tensor:
    """What torch says that `varlen_attn` does, which has no CPU kernel: sequence by sequence, plainly."""
    assert edges is key_edges
    assert max_length == max_key_length == int(edges.diff().max())
    assert edges.dtype == torch.int32
    assert how["enable_gqa"] == (q.shape[1] != k.shape[1])
    outputs: list[Tensor] = []
    for begin, end in itertools.pairwise(edges.tolist()):
        distance, (left, right) = distances(end - begin), how["window_size"]
        visible = (distance >= -left) if left >= 0 else torch.ones_like(distance, dtype=torch.bool)
        visible = visible & (distance <= right) if right >= 0 else visible
        parts = (x[None, begin:end] for x in (q, k, v))
        outputs.append(plain_attention(*parts, visible, AttentionOptions(how["scale"]), distance)[0])
    return torch.cat(outputs)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("how", ["plain", "scale", "window"])
def test_sequences_of_unequal_lengths_are_told_as_torchs_kernel_takes_them(how: str, causal: bool) -> None:
    """With padding and without."""
    for placement in (Placement.of(segments_of(((0, (5, 9, 3)), (0, (20,))))), Placement.of_lengths([0, 7, 2])):
        q, k, v = random_qkv(3, placement.shape[1], B=placement.shape[0])
        output = VarlenAttention(placement, causal, varlen)(0, q, k, v, HOWS[how])
        assert_near(output, BlockAttention(placement, causal)(0, q, k, v, HOWS[how]))
    with pytest.raises(UnsupportedModelError, match="attention with a cap is not supported by varlen_attn"):
        VarlenAttention(placement, causal, varlen)(0, q, k, v, HOWS["cap"])
    with pytest.raises(UnsupportedModelError, match="shared prefix is not supported by varlen_attn"):
        VarlenAttention(Placement.of_lengths([3, 4]))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("edition", MODULES)
def test_flash_attention_is_told_as_its_package_takes_them(edition: Any, causal: bool) -> None:
    """What it can do, with gradients; what it cannot it refuses by name."""
    name = {"flash2": "flash_attn", "flash3": "flash_attn_interface"}[edition]
    for placement in (Placement.of(segments_of(((0, (5, 9, 3)), (0, (20,))))), Placement.of_lengths([0, 7, 2])):
        for how in ("plain", "scale", "window", "cap"):
            results: list[list[Tensor]] = []
            for attend in (
                FlashAttention(placement, causal, edition, MODULES[edition]),
                BlockAttention(placement, causal),
            ):
                inputs = [x.requires_grad_() for x in random_qkv(3, placement.shape[1], B=placement.shape[0], value=D)]
                out = attend(0, inputs[0], inputs[1], inputs[2], HOWS[how])
                results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
            for ours, theirs in zip(*results, strict=True):
                assert_near(ours, theirs, label=how)
    q, k, v = random_qkv(3, 9, value=D)
    for how, feature in (("bias", "a bias"), ("sinks", "sinks"), ("all", "a bias")):
        with pytest.raises(UnsupportedModelError, match=f"attention with {feature} is not supported by {name}"):
            FlashAttention(placement, causal, edition, MODULES[edition])(0, q, k, v, HOWS[how])
    with pytest.raises(UnsupportedModelError, match=f"shared prefix is not supported by {name}"):
        FlashAttention(Placement.of_lengths([3, 4]), causal, edition, MODULES[edition])
    with pytest.raises(UnsupportedModelError, match=f"{name} is not installed"):
        FlashAttention(placement, causal, edition)(0, q, k, v, PLAIN)


def test_flash_attention_is_taken_where_it_works_and_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, shape=(1, 9, 2, 8))
    times = {"varlen": 1.0, "flex": 1.5, "flash2": 1.2, "flash3": 0.7}
    monkeypatch.setattr(layouts, "package", lambda edition: MODULES[edition])
    monkeypatch.setattr(layouts, "_seconds", lambda backend, *_: times[backend])
    for able, options, shared, winner in (
        (("varlen", "flash2", "flash3"), PLAIN, False, "flash3"),
        (("varlen", "flash2"), PLAIN, False, "varlen"),
        (("varlen", "flex", "flash2"), HOWS["cap"], False, "flash2"),
        (("varlen", "flex", "flash3"), HOWS["sinks"], False, "flex"),
        (("varlen", "flex", "flash3"), PLAIN, True, "flex"),
    ):
        layouts.fastest.cache_clear()
        monkeypatch.setattr(layouts, "works", lambda backend, *_, able=able: backend in able)
        assert layouts.way_of(device, device, options, shared) == winner  # type: ignore[arg-type]
    layouts.fastest.cache_clear()


def test_what_a_package_gives_is_tried_against_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is timed is the whole way, there and back."""
    monkeypatch.setattr(flash, "package", lambda edition: MODULES[edition])
    layouts.works.cache_clear()
    with torch.inference_mode():  # a way may be looked for while an engine runs
        assert layouts.works("flash2", CPU, torch.float32, 8)
        assert layouts.works("flash3", CPU, torch.float32, 8, 1.5)
    monkeypatch.setattr(layouts, "_LENGTHS", (0, 5, 3))
    assert 0 < layouts._seconds("flash2", CPU, torch.float32, 8, None) < 5
    wrong = SimpleNamespace(flash_attn_varlen_func=lambda q, *_, **__: q)
    monkeypatch.setattr(flash, "package", lambda edition: wrong)
    layouts.works.cache_clear()
    assert not layouts.works("flash2", CPU, torch.float32, 8)
    layouts.works.cache_clear()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:flex_attention called without:UserWarning")
@pytest.mark.parametrize(("how", "causal"), [("window", False), ("bias", True), ("sinks", False), ("all", True)])
def test_flex_attention_gives_what_the_blocks_give(how: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With padding, long documents and a prefix; where all see each other, without one. Compiled, but for sinks, whose
    sums torch's CPU kernels do not give."""
    if HOWS[how].sinks is not None:
        monkeypatch.setattr(flex, "_compiled", lambda changing: flex_attention)
    rows = LONG if causal else ((0, LONG[0][1]), (0, LONG[1][1]))
    placement = Placement.of(segments_of(rows))
    q, k, v = random_qkv(4, placement.shape[1], B=len(rows), value=D)
    with torch.no_grad():
        output = FlexAttention(placement, causal)(0, q, k, v, HOWS[how])
    assert_near(output, BlockAttention(placement, causal)(0, q, k, v, HOWS[how]))


def test_a_way_that_fails_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the blocks are; flex attention has no gradient there, and torch's kernel does not exist."""
    q, _, v = random_qkv(0, 9)
    assert layouts.way_of(q, v, PLAIN, shared=False) == "blocks"
    assert not layouts.works("varlen", CPU, torch.float32, 8)
    assert layouts.works("blocks", CPU, torch.float32, 8)
    device = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, shape=(1, 9, 2, 8))
    for able, options, shared, winner in (
        (("varlen", "flex"), PLAIN, False, "varlen"),
        (("varlen", "flex"), PLAIN, True, "flex"),
        (("varlen", "flex"), HOWS["sinks"], False, "flex"),
        (("flex",), PLAIN, False, "flex"),
        ((), HOWS["window"], False, "blocks"),
    ):
        monkeypatch.setattr(layouts, "works", lambda backend, *_, able=able: backend in able)
        assert layouts.way_of(device, device, options, shared) == winner  # type: ignore[arg-type]
