"""Mixtures of experts in the kernel, against the torch model, and against themselves however work is batched."""

from __future__ import annotations

import pytest
import torch
from tests.inference.native.native_specs import EXPERTS
from tests.inference.native.test_native import (
    FORMATS,
    Cache,
    base_dtype,
    in_float32,
    library,
    logits,
    make,
    relative,
    some_tokens,
    wanted_logits,
)
from tests.inference.native.test_native_families import COUNT, in_pieces

from bedplate.core.errors import UsageError
from bedplate.inference.native.decoder import NativeDecoder, WeightFormat, unsupported
from bedplate.inference.native.library import Library, load
from bedplate.inference.native.quantize import quantise_int4, quantise_int8
from bedplate.models.decoder import Decoder
from bedplate.models.layers.experts import ExpertLinear
from bedplate.models.layers.routing import Router
from bedplate.models.specs.transformer import Experts

pytestmark = pytest.mark.skipif(isinstance(load(), str), reason=f"no native kernel here: {load()}")
assert library  # a fixture: every level that this processor runs


def made(name: str, dtype: torch.dtype = torch.float32) -> Decoder:
    model = make(EXPERTS[name], dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, Router) and module.selection_bias is not None:
            module.selection_bias.copy_(torch.randn(module.selection_bias.shape, generator=generator) * 0.1)
    return model


def reference_of(model: Decoder, weights: WeightFormat) -> Decoder:
    other = in_float32(model, weights)
    if weights in ("int8", "int4"):
        quantise = quantise_int8 if weights == "int8" else quantise_int4
        for module in other.modules():
            if isinstance(module, ExpertLinear):
                module.weight.data = quantise(module.weight.data.flatten(0, 1)).dequantised().view_as(module.weight)
    return other


@pytest.mark.parametrize("name", EXPERTS)
def test_equals_the_torch_model_in_float32(library: Library, name: str) -> None:
    model = made(name)
    native = NativeDecoder(model, "float32", threads=2, library=library)
    tokens = some_tokens(COUNT, EXPERTS[name])
    whole = logits(Cache(EXPERTS[name], dtype=torch.float32).run(native, [(1, 0, tokens)]))
    assert relative(whole, wanted_logits(model, tokens)) < 1e-5
    assert torch.equal(in_pieces(native, Cache(EXPERTS[name], dtype=torch.float32), tokens), whole)


@pytest.mark.parametrize("weights", FORMATS[1:])
@pytest.mark.parametrize("name", EXPERTS)
def test_equals_the_torch_model_in_other_formats(name: str, weights: WeightFormat) -> None:
    """But for tokens whose nearly even experts rounding swaps."""
    model = made(name, base_dtype(weights))
    native = NativeDecoder(model, weights, threads=3)
    tokens = some_tokens(COUNT, EXPERTS[name])
    whole = logits(Cache(EXPERTS[name]).run(native, [(1, 0, tokens)]))
    expected = wanted_logits(reference_of(model, weights), tokens)
    error = ((whole - expected).norm(dim=1) / expected.norm(dim=1)).median()
    assert error < 0.05
    some = list(range(7, 60, 4))
    cache = Cache(EXPERTS[name])
    few = native.forward(tokens, [2] * COUNT, range(COUNT), cache.keys, cache.values, some)
    assert torch.equal(logits(few), whole[some])
    assert torch.equal(in_pieces(native, Cache(EXPERTS[name]), tokens), whole)


def test_what_experts_cannot_have() -> None:
    model = made("softmax")
    native = NativeDecoder(model, "float32")
    with pytest.raises(UsageError, match=r"no adapters at layers\.0\.feedforward\.experts\.gate_up"):
        native.adapter({"layers.0.feedforward.experts.gate_up": (torch.zeros(2, 96), torch.zeros(128, 2), 1.0)})
    spec = EXPERTS["softmax"].with_(experts=Experts(4, 2, 48))
    assert "experts.feedforward_size is 48" in (unsupported(spec, torch.float32, torch.device("cpu")) or "")
