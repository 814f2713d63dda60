"""Mixtures of experts in the kernel, against the torch model, and against themselves however work is batched."""

from __future__ import annotations

import pytest
import torch
from tests.inference.native.native_models import (
    COUNT,
    Cache,
    base_dtype,
    in_float32,
    logits,
    other_formats,
    perturbed_decoder,
    relative,
    some_tokens,
    wanted_logits,
    whole_sequence,
)
from tests.inference.native.native_specs import EXPERTS, spec_of

from bedplate.core.errors import UsageError
from bedplate.inference.native.library import Library, load
from bedplate.inference.native.packed_weights import NativeDecoder, WeightFormat, unsupported
from bedplate.models.specs.transformer import Experts

pytestmark = pytest.mark.skipif(isinstance(load(), str), reason=f"no native kernel here: {load()}")


@pytest.mark.parametrize("name", EXPERTS)
def test_equals_the_torch_model_in_float32(library: Library, name: str) -> None:
    model = perturbed_decoder(EXPERTS[name])
    whole = whole_sequence(NativeDecoder(model, "float32", threads=2, library=library), model.spec, torch.float32)
    assert relative(whole, wanted_logits(model, some_tokens(COUNT, model.spec))) < 1e-5


@pytest.mark.parametrize(("name", "weights"), other_formats(EXPERTS))
def test_equals_the_torch_model_in_other_formats(name: str, weights: WeightFormat) -> None:
    """But for tokens whose nearly even experts rounding swaps."""
    model = perturbed_decoder(EXPERTS[name], base_dtype(weights))
    native = NativeDecoder(model, weights, threads=3)
    whole, tokens = whole_sequence(native, model.spec), some_tokens(COUNT, model.spec)
    expected = wanted_logits(in_float32(model, weights), tokens)
    error = ((whole - expected).norm(dim=1) / expected.norm(dim=1)).median()
    assert error < 0.05
    picked = list(range(7, 60, 4))
    cache = Cache(EXPERTS[name])
    partial = native.forward(tokens, [2] * COUNT, range(COUNT), cache.keys, cache.values, picked)
    assert torch.equal(logits(partial), whole[picked])


@pytest.mark.parametrize(("experts", "adapted"), [(None, False), (None, True), (Experts(4, 2, 352), False)])
def test_features_between_products_are_taken_in_runs(experts: Experts | None, adapted: bool) -> None:
    """Eleven blocks of them, eight at once of a token alone and of a few; of many tokens one after the other."""
    model = perturbed_decoder(spec_of(layers=1, feedforward_size=352, experts=experts))
    native, tokens = NativeDecoder(model, "float32", threads=1), some_tokens(20, model.spec)
    adapters, reference = None, model
    if adapted:
        generator = torch.Generator().manual_seed(5)
        a, b = torch.randn(2, 96, generator=generator) * 0.1, torch.randn(2, 352, generator=generator).t() * 0.1
        adapters = [native.adapter({"layers.0.feedforward.up": (a, b, 1.0)})] * 20
        reference = in_float32(model, "float32")
        reference.get_submodule("layers.0.feedforward.up").weight.data += b @ a
    whole = logits(Cache(model.spec, dtype=torch.float32).run(native, [(0, 0, tokens)], adapters=adapters))
    assert relative(whole, wanted_logits(reference, tokens)) < 1e-5
    cache, parts = Cache(model.spec, dtype=torch.float32), []
    for first, size in ((0, 1), (1, 2), (3, 8), (11, 1), (12, 8)):
        part = tokens[first : first + size]
        part_adapters = None if adapters is None else adapters[:size]
        parts.append(logits(cache.run(native, [(0, first, part)], adapters=part_adapters)))
    assert torch.equal(torch.cat(parts), whole)


def test_what_experts_cannot_have() -> None:
    model = perturbed_decoder(EXPERTS["softmax"])
    native = NativeDecoder(model, "float32")
    with pytest.raises(UsageError, match=r"no adapters at layers\.0\.feedforward\.experts\.gate_up"):
        native.adapter({"layers.0.feedforward.experts.gate_up": (torch.zeros(2, 96), torch.zeros(128, 2), 1.0)})
    spec = EXPERTS["softmax"].with_(experts=Experts(4, 2, 48))
    assert "experts.feedforward_size is 48" in (unsupported(spec, torch.float32, torch.device("cpu")) or "")
