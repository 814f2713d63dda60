"""Rows of a batch stay apart in the kernel where one is not a number, and so do those that share a slot one after the
other: what stands there, keys and values alike, is not even multiplied by 0."""

from __future__ import annotations

import pytest
import torch
from tests.inference.native.native_models import (
    FORMATS,
    SPECS,
    Cache,
    base_dtype,
    logits,
    random_decoder,
    some_tokens,
)
from tests.inference.native.native_specs import EXPERTS, FAMILIES

from bedplate.inference.native.library import Library, load
from bedplate.inference.native.packed_weights import NativeDecoder, WeightFormat

pytestmark = pytest.mark.skipif(isinstance(load(), str), reason=f"no native kernel here: {load()}")
ROW_SPECS = {
    "grouped": SPECS["grouped"],
    "sandwich": FAMILIES["sandwich"],
    "sinks": FAMILIES["sinks"],
    "softmax": EXPERTS["softmax"],
    "sigmoid": EXPERTS["sigmoid"],
}
BAD = 7


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        pytest.param(name, weights, marks=() if (number + place) % len(FORMATS) == 0 else pytest.mark.slow)
        for number, name in enumerate(ROW_SPECS)
        for place, weights in enumerate(FORMATS)
    ],
)
def test_a_row_that_is_not_a_number_stays_alone(name: str, weights: WeightFormat) -> None:
    """In its batch, few tokens or many, and in its slot afterwards: what it left there, and a prefix copied into it."""
    spec, dtype = ROW_SPECS[name], base_dtype(weights)
    model = random_decoder(spec, dtype=dtype)
    native = NativeDecoder(model, weights, threads=2)
    tokens = [token for token in some_tokens(210, spec) if token != BAD][:200]
    fine, cut = tokens[:40], 130
    alone = logits(Cache(spec, dtype=dtype).run(native, [(0, 0, tokens)]))
    first = logits(Cache(spec, dtype=dtype).run(native, [(0, 0, fine)]))
    original = model.embedding.weight[BAD].clone()
    for bad in (torch.nan, torch.inf):
        model.embedding.weight[BAD] = bad  # the kernel reads the model's own embedding
        cache = Cache(spec, dtype=dtype)
        ruined = [*fine[:9], BAD, *tokens[10:200]]
        out = logits(cache.run(native, [(0, 0, fine), (1, 0, ruined), (2, 0, tokens)]))
        assert torch.equal(out[:40], first)
        assert torch.equal(out[-200:], alone)
        assert not out[49:240].isfinite().all(1).any()
        step = logits(cache.run(native, [(0, 40, tokens[40:41]), (1, 200, [3])]))
        assert torch.equal(step[0], alone[40])
        model.embedding.weight[BAD] = original
        # The slot's next owners: one that begins anew, and one whose first tokens another row has computed.
        reused = torch.cat(
            [logits(cache.run(native, [(1, 0, fine)])), logits(cache.run(native, [(1, 40, tokens[40:])]))]
        )
        assert torch.equal(reused, alone)
        cache.run(native, [(1, 0, ruined)])
        for tensor in (*cache.keys, *cache.values):
            tensor[1, :, :cut] = tensor[2, :, :cut]
            tensor[1, :, cut:] = bad
        remainder = [
            logits(cache.run(native, [(1, cut, tokens[cut : cut + 1])])),
            logits(cache.run(native, [(1, cut + 1, tokens[cut + 1 :])])),
        ]
        assert torch.equal(torch.cat(remainder), alone[cut:])


@pytest.mark.parametrize("name", ["sandwich", "sinks"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_what_stands_before_a_window_is_not_read(library: Library, name: str, weights: WeightFormat) -> None:
    spec, dtype = ROW_SPECS[name], base_dtype(weights)
    native = NativeDecoder(random_decoder(spec, dtype=dtype), weights, threads=2, library=library)
    tokens = some_tokens(300, spec)
    alone = logits(Cache(spec, dtype=dtype).run(native, [(0, 0, tokens)]))
    for begin, end in ((150, 151), (201, 204), (260, 300)):
        cache = Cache(spec, dtype=dtype)
        cache.run(native, [(2, 0, tokens[:begin])])
        for layer in range(spec.layers):
            window = spec.window(layer)
            if window is not None:
                for tensor in (cache.keys[layer], cache.values[layer]):
                    tensor[2, :, : begin - window + 1] = torch.nan
        assert torch.equal(logits(cache.run(native, [(2, begin, tokens[begin:end])])), alone[begin:end])
