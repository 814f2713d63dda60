"""Every family that the native kernel says it runs, in sizes that it takes: torch's numbers, however a text is cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tests.inference.native.native_models import (
    Cache,
    logits,
    perturbed_decoder,
    random_model,
    relative,
    some_tokens,
    wanted_logits,
)
from tests.rows import first_of_each

from bedplate.inference.native.allowed import refused_field
from bedplate.inference.native.library import load
from bedplate.inference.native.packed_weights import NativeDecoder, NativeEncoder
from bedplate.models.families import FAMILIES
from bedplate.models.inputs import Inputs
from bedplate.models.specs.transformer import LongRopeScaling, TransformerSpec

pytestmark = pytest.mark.skipif(isinstance(load(), str), reason=f"no native kernel here: {load()}")
COUNT = 60


def fitting(spec: TransformerSpec) -> TransformerSpec:
    """The same with sizes that are whole blocks, and ropes of as many pairs as heads then have."""
    experts, rope = spec.experts, spec.position.rope
    if experts is not None:
        shared = 32 if experts.shared_size else 0
        experts = replace(experts, feedforward_size=64, shared_size=shared)
    if rope is not None and isinstance(rope.scaling, LongRopeScaling):
        pairs = int(32 * rope.fraction) // 2
        factors = {name: (getattr(rope.scaling, name) * pairs)[:pairs] for name in ("short", "long")}
        rope = replace(rope, scaling=replace(rope.scaling, **factors))
    layer_input_size = 32 if spec.layer_input_size else 0
    sizes = {"hidden_size": 96, "head_dim": 32, "feedforward_size": 160, "layer_input_size": layer_input_size}
    return spec.with_(**sizes, experts=experts, rope=rope)


def runs(architecture: str) -> dict[str, TransformerSpec]:
    """Of this kind, by family and number of the example."""
    specs: dict[str, TransformerSpec] = {}
    for (format_, name), family in FAMILIES.items():
        for number, example in enumerate(family.examples if format_ == "hf" else ()):
            spec = family.to_spec(dict(example))
            if isinstance(spec, TransformerSpec) and spec.kind == architecture and refused_field(spec) is None:
                specs[f"{name} {number}"] = fitting(spec)
    return specs


DECODERS, ENCODERS = runs("decoder"), runs("encoder")


def test_most_families_are_run() -> None:
    assert len({name.split()[0] for name in DECODERS}) >= 20
    assert len({name.split()[0] for name in ENCODERS}) >= 4


@pytest.mark.parametrize("name", first_of_each(lambda name: name.split()[0], DECODERS))
def test_a_decoder_is_the_torch_model(name: str) -> None:
    spec = DECODERS[name]
    assert refused_field(spec) is None
    model, tokens = perturbed_decoder(spec), some_tokens(COUNT, spec)
    native = NativeDecoder(model, "float32", threads=2)
    whole = logits(Cache(spec, dtype=torch.float32).run(native, [(1, 0, tokens)]))
    assert relative(whole, wanted_logits(model, tokens)) < 1e-5
    cache, cuts = Cache(spec, dtype=torch.float32), (0, 17, 18, 19, COUNT)
    parts = [logits(cache.run(native, [(1, begin, tokens[begin:end])])) for begin, end in pairwise(cuts)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("name", first_of_each(lambda name: name.split()[0], ENCODERS))
def test_an_encoder_is_the_torch_model(name: str) -> None:
    spec = ENCODERS[name]
    assert refused_field(spec) is None
    model, tokens = random_model(spec, dtype=torch.float32), some_tokens(COUNT, spec)
    outputs = NativeEncoder(model, "float32", threads=2).forward(tokens, [20, COUNT - 20]).split([20, COUNT - 20])
    for ours, text in zip(outputs, (tokens[:20], tokens[20:]), strict=True):
        with torch.no_grad():
            assert relative(ours, model(Inputs(torch.tensor([text]))).hidden[0]) < 1e-5
