"""What families have beside the plain decoder, against the torch model, and against itself however work is batched."""

from __future__ import annotations

import pytest
import torch
from tests.inference.native.native_models import (
    COUNT,
    PIECES,
    TOLERANCE,
    Cache,
    base_dtype,
    in_float32,
    in_pieces,
    logits,
    other_formats,
    perturbed_decoder,
    relative,
    some_tokens,
    wanted_logits,
    whole_sequence,
)
from tests.inference.native.native_specs import FAMILIES
from tests.inference.native.test_native import random_adapter

from bedplate.adapters.bank import Bank
from bedplate.core.errors import UsageError
from bedplate.inference.native.library import Library, load
from bedplate.inference.native.packed_weights import NativeDecoder, WeightFormat
from bedplate.models.inputs import Inputs

pytestmark = pytest.mark.skipif(isinstance(load(), str), reason=f"no native kernel here: {load()}")


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_torch_model_in_float32(library: Library, name: str) -> None:
    model = perturbed_decoder(FAMILIES[name])
    whole = whole_sequence(NativeDecoder(model, "float32", threads=2, library=library), model.spec, torch.float32)
    assert relative(whole, wanted_logits(model, some_tokens(COUNT, model.spec))) < 1e-5


@pytest.mark.parametrize(("name", "weights"), other_formats(FAMILIES))
def test_equals_the_torch_model_in_other_formats(name: str, weights: WeightFormat) -> None:
    model = perturbed_decoder(FAMILIES[name], base_dtype(weights))
    whole = whole_sequence(NativeDecoder(model, weights, threads=3), model.spec)
    expected = wanted_logits(in_float32(model, weights), some_tokens(COUNT, model.spec))
    assert relative(whole, expected) < 3 * TOLERANCE[weights]


@pytest.mark.parametrize("name", FAMILIES)
def test_only_what_is_wanted_passes_the_last_layer(name: str) -> None:
    model = perturbed_decoder(FAMILIES[name])
    bank = Bank(model)
    native = NativeDecoder(model, "float32", threads=2)
    adapted = native.adapter_of(bank, random_adapter(model, bank, 5, r=4))
    tokens = some_tokens(COUNT, FAMILIES[name])
    adapters = [adapted if i % 3 == 0 else None for i in range(COUNT)]
    cache = Cache(FAMILIES[name], dtype=torch.float32)
    whole = logits(cache.run(native, [(1, 0, tokens)], adapters=adapters))
    for indices in ([COUNT - 1], [3, 100, COUNT - 2], list(range(5, 90)), []):
        second_cache = Cache(FAMILIES[name], dtype=torch.float32)
        out = native.forward(
            tokens, [2] * COUNT, range(COUNT), second_cache.keys, second_cache.values, indices, adapters=adapters
        )
        assert not indices or torch.equal(logits(out), whole[indices])
        for actual, expected in zip(
            (*second_cache.keys, *second_cache.values), (*cache.keys, *cache.values), strict=True
        ):
            assert not actual.numel() or torch.equal(actual[2, :, :COUNT], expected[1, :, :COUNT])


@pytest.mark.parametrize("name", ["sandwich", "sinks", "heads by layer"])
def test_windows_need_few_places(name: str) -> None:
    """A ring of the last tokens, in which a piece of a row and what its first token sees have room."""
    model = perturbed_decoder(FAMILIES[name])
    spec, tokens = FAMILIES[name], some_tokens(COUNT, FAMILIES[name])
    native = NativeDecoder(model, "float32", threads=2)
    whole = logits(Cache(spec, dtype=torch.float32).run(native, [(1, 0, tokens)]))
    cache = Cache(spec, dtype=torch.float32)
    for layer in range(spec.layers):
        window = spec.window(layer)
        if window is not None and spec.keys_of(layer) == layer:
            C = window + max(PIECES) - 1
            cache.keys[layer], cache.values[layer] = (
                tensor[layer][:, :, :C].contiguous() for tensor in (cache.keys, cache.values)
            )
    assert torch.equal(in_pieces(native, cache, tokens), whole)
    with pytest.raises(UsageError, match="position number"):
        cache.run(native, [(2, 0, tokens[: max(PIECES) + 40])])


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_and_states(name: str) -> None:
    model = perturbed_decoder(FAMILIES[name])
    bank = Bank(model)
    slot = random_adapter(model, bank, 5, r=4)
    native = NativeDecoder(model, "float32", threads=2)
    tokens = some_tokens(40, FAMILIES[name])
    cache = Cache(FAMILIES[name], dtype=torch.float32)
    adapted = native.adapter_of(bank, slot)
    for depth in (1, None):
        out = native.forward(tokens, [0] * 40, range(40), cache.keys, cache.values, [], [adapted] * 40, depth, True)
        merged = in_float32(model, "float32")
        for path, factors in bank.low_rank(slot).items():
            merged.get_submodule(path).weight.data += factors.scaling * factors.b @ factors.a  # type: ignore[union-attr,operator]
        expected = merged(Inputs(torch.tensor([tokens])), depth=depth).hidden[0]
        assert out.hidden_ND is not None
        assert relative(out.hidden_ND, expected) < 1e-5
