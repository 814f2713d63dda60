"""Layers that keep a state: chunked as token by token, packed as alone, cached as whole, counted as built."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.near import assert_near
from tests.tiny import tiny_spec
from torch import Tensor

from bedplate.core.errors import UnsupportedModelError, UsageError
from bedplate.economics.model.parameters import parameters
from bedplate.inference.forward.kv_cache import SlotCache
from bedplate.inference.forward.paged import PagedCache
from bedplate.inference.forward.spans import Span
from bedplate.models.build import build
from bedplate.models.inputs import Inputs
from bedplate.models.layers.recurrence import chunked, recurrent
from bedplate.models.model import Model
from bedplate.models.packed.placement import Placement
from bedplate.models.specs.parts import DeltaRule, Mamba2, ShortConvolution
from bedplate.models.specs.transformer import TransformerSpec

CPU = torch.device("cpu")
PARTS = {
    "convolution": ShortConvolution(3, bias=True),
    "delta_rule": DeltaRule(heads=4, key_heads=2, key_dim=6, value_dim=8),
    "mamba2": Mamba2(heads=6, head_dim=8, groups=2, state_dim=5),
}
TOLERANCE = 1e-9
"""Of float64, whose sums are in another order."""


def spec_of(part: str, **changes: object) -> TransformerSpec:
    """Two layers with a state, and one with attention between them."""
    return tiny_spec(state=PARTS[part], state_layers=(True, False, True), attention_gate=True, **changes)


def model_of(part: str) -> Model:
    torch.manual_seed(3)
    model = build(spec_of(part), torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def states(model: Model, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return model(inputs).hidden


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize(("length", "size"), [(1, 64), (5, 4), (16, 4), (37, 8)])
def test_chunks_are_tokens_one_by_one(delta: bool, length: int, size: int) -> None:
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(2, length, 3, n, dtype=torch.float64, generator=generator) for n in (5, 5, 7))
    k = k / k.norm(dim=-1, keepdim=True)
    rates = torch.randn(2, 2, length, 3, dtype=torch.float64, generator=generator).sigmoid()
    g, beta = -rates[0] * 9, rates[1] if delta else None
    state = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=generator)
    inputs = [x.requires_grad_() for x in (q, k, v, g, state)]
    results: list[list[Tensor]] = []
    for form in (recurrent, lambda *args: chunked(*args, size)):
        out, last = form(q, k, v, g, beta, state)
        results.append([out, last, *torch.autograd.grad(out.square().sum() + last.sum(), inputs)])
    for actual, reference in zip(*results, strict=True):
        assert_near(actual, reference, TOLERANCE)


@pytest.mark.parametrize("part", PARTS)
def test_documents_are_apart(part: str) -> None:
    """Packed behind a shared prefix and beside padding, as alone; in every layout of training too."""
    model, tokens = model_of(part), torch.arange(40) * 7 % 300
    lengths = (5, 9, 1, 16)  # the prefix, and three documents
    segments = torch.tensor([0] * 5 + [1] * 9 + [2] + [3] * 16 + [-1] * 9)
    row, begin = states(model, Inputs(tokens[None], segments=segments[None]))[0], lengths[0]
    for number, length in enumerate(lengths[1:], 1):
        picked = torch.cat((tokens[: lengths[0]], tokens[begin : begin + length]))
        alone = states(model, Inputs(picked[None]))[0]
        assert_near(row[:5], alone[:5], TOLERANCE)
        assert_near(row[segments == number], alone[5:], TOLERANCE)
        begin += length
    flat = Inputs(tokens[None, :31], segments=segments[None, :31])
    with torch.no_grad():
        assert_near(model(replace(flat, placement=Placement.of_lengths(lengths))).hidden[0], row[:31], TOLERANCE)
    # Padding before the documents, and behind one.
    batch_segments = torch.tensor([[-1] * 9 + [1] * 15 + [2] * 16, [1] * 12 + [-1] * 28])
    rows = states(model, Inputs(torch.stack((tokens, tokens)), segments=batch_segments))
    for row, at in ((0, slice(9, 24)), (0, slice(24, 40)), (1, slice(0, 12))):
        assert_near(rows[row, at], states(model, Inputs(tokens[None, at]))[0], TOLERANCE)


@pytest.mark.parametrize("layout", ["slots", "blocks"])
@pytest.mark.parametrize("part", PARTS)
def test_pieces_are_the_whole(part: str, layout: str) -> None:
    """Rows in pieces beside each other; a pass that fails leaves no trace; a snapshot goes on in another row."""
    model, spec = model_of(part), spec_of(part)
    cache = (
        SlotCache(spec, torch.float64, CPU)
        if layout == "slots"
        else PagedCache(spec, torch.float64, CPU, 1 << 20, block=4)
    )
    rows = {0: torch.arange(33) * 5 % 300, 1: torch.arange(21) * 11 % 300}
    wholes = {row: states(model, Inputs(tokens[None]))[0] for row, tokens in rows.items()}

    def run(*spans: Span, of: dict[int, Tensor] = rows) -> list[Tensor]:
        cache.reserve({span.row: span.end for span in spans})
        tokens = torch.cat([of[span.row][span.start : span.end] for span in spans])
        at = torch.cat([torch.arange(span.start, span.end) for span in spans])
        attend = cache.attend(spans)
        with torch.inference_mode():
            hidden = model(Inputs(tokens[None], at[None]), cache=attend).hidden[0]
        return list(hidden.split([span.length for span in spans]))

    def good(*spans: Span, of: dict[int, Tensor] = rows, whole: dict[int, Tensor] = wholes) -> None:
        for span, output in zip(spans, run(*spans, of=of), strict=True):
            assert_near(output, whole[span.row][span.start : span.end], TOLERANCE)
        cache.commit()

    good(Span(0, 0, 12))
    good(Span(0, 12, 1), Span(1, 0, 9))
    run(Span(0, 13, 4), Span(1, 9, 1))  # not committed
    good(Span(1, 9, 7), Span(0, 13, 3))
    assert cache.rewinds(0, 16)
    assert not cache.rewinds(0, 15)
    with pytest.raises(UsageError, match="row 0 cannot go on from token 15: its states are those of token 16"):
        cache.attend([Span(0, 15, 1)])
    segment = cache.save(0, 0, 16)
    assert segment is not None
    assert segment.resumes
    first, second = segment.split(8)
    assert (first.resumes, second.resumes) == (False, True)
    assert second.nbytes == 8 * cache.token_bytes + cache.states.nbytes
    if cache.copies:
        cache.reserve({0: 33, 1: 21, 3: 33})
    cache.load(3, 0, first, 8)
    assert not cache.rewinds(3, 8)
    cache.load(3, 8, second, 8)
    good(Span(0, 16, 5), Span(3, 16, 17), of={**rows, 3: rows[0]}, whole={**wholes, 3: wholes[0]})
    good(Span(1, 16, 5), Span(0, 21, 12))
    snapshot = cache.save(1, 0, 20)
    assert snapshot is not None
    assert not snapshot.resumes  # the row is further
    cache.free(3)


@pytest.mark.parametrize("part", PARTS)
def test_what_is_built_is_counted(part: str) -> None:
    spec = spec_of(part)
    assert parameters(spec).total == sum(p.numel() for p in build(spec, device="meta").parameters())


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="state_layers say where"):
        tiny_spec(state_layers=(True,))
    with pytest.raises(UnsupportedModelError, match="5 value heads cannot share 2 key heads"):
        DeltaRule(5, 2, 4, 4)
    with pytest.raises(UnsupportedModelError, match="no layer has any: use slots"):
        PagedCache(tiny_spec(state=ShortConvolution()), torch.float32, CPU, 1 << 20)
