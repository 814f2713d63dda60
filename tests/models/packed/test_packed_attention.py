"""Ways of attending to packed rows on a device: what they are told, what they refuse, and which of them is taken."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.models.packed.test_attention import CPU, HOWS, LONG, D, distances, random_qkv, segments_of
from tests.near import assert_near
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.layers.attention_options import PLAIN, AttentionOptions, plain_attention
from bedplate.models.packed import packed_attention
from bedplate.models.packed.block_attention import BlockAttention
from bedplate.models.packed.packed_attention import FlexAttention, VarlenAttention
from bedplate.models.packed.placement import Placement


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
    with pytest.raises(UnsupportedModelError, match="attention with a softcap is not supported by varlen_attn"):
        VarlenAttention(placement, causal, varlen)(0, q, k, v, HOWS["cap"])
    with pytest.raises(UnsupportedModelError, match="shared prefix is not supported by varlen_attn"):
        VarlenAttention(Placement.of_lengths([3, 4]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:flex_attention called without:UserWarning")
@pytest.mark.parametrize(("how", "causal"), [("window", False), ("bias", True), ("sinks", False), ("all", True)])
def test_flex_attention_gives_what_the_blocks_give(how: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With padding, long documents and a prefix; where all see each other, without one. Compiled, but for sinks, whose
    sums torch's CPU kernels do not give."""
    if HOWS[how].sinks is not None:
        monkeypatch.setattr(packed_attention, "_compiled", lambda changing: flex_attention)
    rows = LONG if causal else ((0, LONG[0][1]), (0, LONG[1][1]))
    placement = Placement.of(segments_of(rows))
    q, k, v = random_qkv(4, placement.shape[1], B=len(rows), value=D)
    with torch.no_grad():
        output = FlexAttention(placement, causal)(0, q, k, v, HOWS[how])
    assert_near(output, BlockAttention(placement, causal)(0, q, k, v, HOWS[how]))


def test_a_way_that_fails_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the blocks are; flex attention has no gradient there, and torch's kernel does not exist."""
    q, _, v = random_qkv(0, 9)
    assert packed_attention.choose_backend(q, v, PLAIN, shared=False) == "blocks"
    assert not packed_attention.works("varlen", CPU, torch.float32, 8)
    assert packed_attention.works("blocks", CPU, torch.float32, 8)
    device = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, shape=(1, 9, 2, 8))
    for able, options, shared, winner in (
        (("varlen", "flex"), PLAIN, False, "varlen"),
        (("varlen", "flex"), PLAIN, True, "flex"),
        (("varlen", "flex"), HOWS["sinks"], False, "flex"),
        (("flex",), PLAIN, False, "flex"),
        ((), HOWS["window"], False, "blocks"),
    ):
        monkeypatch.setattr(packed_attention, "works", lambda backend, *_, able=able: backend in able)
        assert packed_attention.choose_backend(device, device, options, shared) == winner  # type: ignore[arg-type]
