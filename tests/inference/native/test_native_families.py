"""What families have beside the plain decoder, against the torch model, and against itself however work is batched."""

from __future__ import annotations

import pytest
import torch
from tests.inference.native.native_specs import FAMILIES
from tests.inference.native.test_native import (
    FORMATS,
    TOLERANCE,
    Cache,
    base_dtype,
    in_float32,
    library,
    logits,
    make,
    random_adapter,
    relative,
    some_tokens,
    wanted_logits,
)
from torch import Tensor

from bedplate.adapters.bank import Bank
from bedplate.core.errors import UsageError
from bedplate.inference.native.decoder import NativeDecoder, WeightFormat
from bedplate.inference.native.library import Library, load
from bedplate.models.decoder import Decoder
from bedplate.models.inputs import Inputs

pytestmark = pytest.mark.skipif(isinstance(load(), str), reason=f"no native kernel here: {load()}")
assert library  # a fixture: every level that this processor runs

COUNT = 290
PIECES = (1, 2, 130, 3, 16, 1, 1, 64, 5, 31, 36)


def made(name: str, dtype: torch.dtype = torch.float32) -> Decoder:
    model = make(FAMILIES[name], dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    for path, parameter in model.named_parameters():
        if path.endswith("sinks"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if path.endswith(("q.weight", "k.weight")):
            parameter.mul_(3.0)  # attention that looks somewhere
    return model


def in_pieces(native: NativeDecoder, cache: Cache, tokens: list[int]) -> Tensor:
    parts: list[Tensor] = []
    done = 0
    for size in PIECES:
        batch = [(1, done, tokens[done : done + size]), (0, done // 9, tokens[:size])]
        parts.append(logits(cache.run(native, batch if size > 1 else batch[:1]))[:size])
        done += size
    assert done == len(tokens)
    return torch.cat(parts)


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_torch_model_in_float32(library: Library, name: str) -> None:
    model = made(name)
    native = NativeDecoder(model, "float32", threads=2, library=library)
    tokens = some_tokens(COUNT, FAMILIES[name])
    whole = logits(Cache(FAMILIES[name], dtype=torch.float32).run(native, [(1, 0, tokens)]))
    assert relative(whole, wanted_logits(model, tokens)) < 1e-5
    assert torch.equal(in_pieces(native, Cache(FAMILIES[name], dtype=torch.float32), tokens), whole)


@pytest.mark.parametrize("weights", FORMATS[1:])
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_torch_model_in_other_formats(name: str, weights: WeightFormat) -> None:
    model = made(name, base_dtype(weights))
    native = NativeDecoder(model, weights, threads=3)
    tokens = some_tokens(COUNT, FAMILIES[name])
    whole = logits(Cache(FAMILIES[name]).run(native, [(1, 0, tokens)]))
    assert relative(whole, wanted_logits(in_float32(model, weights), tokens)) < 3 * TOLERANCE[weights]
    assert torch.equal(in_pieces(native, Cache(FAMILIES[name]), tokens), whole)


@pytest.mark.parametrize("name", FAMILIES)
def test_only_what_is_wanted_passes_the_last_layer(name: str) -> None:
    model = made(name)
    bank = Bank(model)
    native = NativeDecoder(model, "float32", threads=2)
    adapted = native.adapter_of(bank, random_adapter(model, bank, 5, r=4))
    tokens = some_tokens(COUNT, FAMILIES[name])
    adapters = [adapted if i % 3 == 0 else None for i in range(COUNT)]
    cache = Cache(FAMILIES[name], dtype=torch.float32)
    whole = logits(cache.run(native, [(1, 0, tokens)], adapters=adapters))
    for wanted in ([COUNT - 1], [3, 100, COUNT - 2], list(range(5, 90)), []):
        other = Cache(FAMILIES[name], dtype=torch.float32)
        out = native.forward(tokens, [2] * COUNT, range(COUNT), other.keys, other.values, wanted, adapters=adapters)
        assert not wanted or torch.equal(logits(out), whole[wanted])
        for found, expected in zip((*other.keys, *other.values), (*cache.keys, *cache.values), strict=True):
            assert torch.equal(found[2, :, :COUNT], expected[1, :, :COUNT])


@pytest.mark.parametrize("name", ["sandwich", "sinks"])
def test_windows_need_few_places(name: str) -> None:
    """A ring of the last tokens, in which a piece of a row and what its first token sees have room."""
    model = made(name)
    spec, tokens = FAMILIES[name], some_tokens(COUNT, FAMILIES[name])
    native = NativeDecoder(model, "float32", threads=2)
    whole = logits(Cache(spec, dtype=torch.float32).run(native, [(1, 0, tokens)]))
    cache = Cache(spec, dtype=torch.float32)
    for layer in range(spec.layers):
        window = spec.window(layer)
        if window is not None:
            C = window + max(PIECES) - 1
            cache.keys[layer], cache.values[layer] = (
                tensor[layer][:, :, :C].contiguous() for tensor in (cache.keys, cache.values)
            )
    assert torch.equal(in_pieces(native, cache, tokens), whole)
    with pytest.raises(UsageError, match="position number"):
        cache.run(native, [(2, 0, tokens[: max(PIECES) + 40])])


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_and_states(name: str) -> None:
    model = made(name)
    bank = Bank(model)
    slot = random_adapter(model, bank, 5, r=4)
    native = NativeDecoder(model, "float32", threads=2)
    tokens = some_tokens(40, FAMILIES[name])
    cache = Cache(FAMILIES[name], dtype=torch.float32)
    adapted = native.adapter_of(bank, slot)
    for depth in (1, None):
        out = native.forward(tokens, [0] * 40, range(40), cache.keys, cache.values, [], [adapted] * 40, depth, True)
        merged = in_float32(model, "float32")
        for path, one in bank.low_rank(slot).items():
            merged.get_submodule(path).weight.data += one.scaling * one.b @ one.a  # type: ignore[union-attr,operator]
        expected = merged(Inputs(torch.tensor([tokens])), depth=depth).hidden[0]
        assert out.hidden_ND is not None
        assert relative(out.hidden_ND, expected) < 1e-5
