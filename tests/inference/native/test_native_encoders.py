"""Encoders in the kernel, at each level that this processor runs: against the torch model in float32, transformers, and
themselves in other company."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tests.encoders import ENCODERS as REFERENCES
from tests.inference.native.native_models import (
    TOLERANCE,
    base_dtype,
    other_formats,
    random_model,
    relative,
    some_tokens,
)
from tests.inference.native.native_specs import ENCODERS
from tests.near import assert_near
from torch import Tensor

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears
from bedplate.core.errors import ContextLengthExceeded, UsageError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Classification, Embed, Embedding, Label
from bedplate.inference.execution import choice
from bedplate.inference.execution.calibration import PlanTimings
from bedplate.inference.native.library import Library, load
from bedplate.inference.native.packed_weights import NativeEncoder, WeightFormat
from bedplate.inference.native.quantize import quantise_int4, quantise_int8
from bedplate.models.build import build
from bedplate.models.checkpoints.base import load_base
from bedplate.models.inputs import Inputs
from bedplate.models.model import Model

pytestmark = pytest.mark.skipif(isinstance(load(), str), reason=f"no native kernel here: {load()}")

LENGTHS = (1, 130, 3, 16, 290, 65, 8, 129, 17)
"""Of texts: within and across blocks of 16 and 128 keys, and units of 64 queries."""


def sharp_model(name: str, dtype: torch.dtype = torch.float32) -> Model:
    """A model whose attention looks somewhere."""
    model = random_model(ENCODERS[name], dtype=dtype)
    for path, parameter in model.named_parameters():
        if path.endswith(("q.weight", "k.weight")):
            parameter.mul_(3.0)
    return model


def texts_of(model: Model) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens of texts, and which part each of them is of."""
    spec = model.spec.main
    texts = [some_tokens(length, spec, length) for length in LENGTHS]
    return texts, [[i * spec.token_types // length for i in range(length)] for length in LENGTHS]


def states_alone(model: Model, tokens: list[int], types: list[int], depth: int | None = None) -> Tensor:
    token_types = torch.tensor([types]) if model.spec.main.token_types else None
    return model(Inputs(torch.tensor([tokens]), types=token_types), depth=depth).hidden[0]


def flat(parts: list[list[int]]) -> list[int]:
    return [token for part in parts for token in part]


@pytest.mark.parametrize("name", ENCODERS)
def test_equals_the_torch_model_in_any_company(library: Library, name: str) -> None:
    model = sharp_model(name)
    texts, types = texts_of(model)
    native = NativeEncoder(model, "float32", threads=2, library=library)
    states = native.forward(flat(texts), LENGTHS, flat(types)).split(LENGTHS)
    rethreaded = NativeEncoder(model, "float32", threads=3, library=library)
    # Two threads share these texts out; of three one would have too much, so that they share each product.
    assert torch.equal(rethreaded.forward(flat(texts), LENGTHS, flat(types)), torch.cat(states))
    for tokens, token_types, ours in zip(texts, types, states, strict=True):
        assert relative(ours, states_alone(model, tokens, token_types)) < 1e-5
        assert torch.equal(rethreaded.forward(tokens, [len(tokens)], token_types), ours)


def far_in(weights: WeightFormat, name: str, library: Library | None = None) -> float:
    """How far states are from those of the torch model whose weights are what the format stores."""
    model = random_model(ENCODERS[name], dtype=base_dtype(weights))
    texts, types = texts_of(model)
    output = NativeEncoder(model, weights, threads=2, library=library).forward(flat(texts), LENGTHS, flat(types))
    stored = build(model.spec)
    stored.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
    if weights in ("int8", "int4"):
        quantise = quantise_int8 if weights == "int8" else quantise_int4
        for linear in block_linears(stored).values():
            linear.weight.data = quantise(linear.weight.data).dequantised()
    with torch.no_grad():
        expected = torch.cat([states_alone(stored, *pair) for pair in zip(texts, types, strict=True)])
    return relative(output, expected)


@pytest.mark.parametrize(("name", "weights"), other_formats(ENCODERS))
def test_equals_the_torch_model_in_other_formats(name: str, weights: WeightFormat) -> None:
    assert far_in(weights, name) < 3 * TOLERANCE[weights]


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_every_level_has_these_formats(library: Library, weights: WeightFormat) -> None:
    assert far_in(weights, "bert", library) < 3 * TOLERANCE[weights]


@pytest.mark.parametrize("name", ENCODERS)
def test_depth_and_adapters(name: str) -> None:
    model = random_model(ENCODERS[name], dtype=torch.float32)  # merged weights round, which sharper attention enlarges
    texts, types = texts_of(model)
    bank, generator = Bank(model), torch.Generator().manual_seed(7)
    config = LoraConfig(r=5)
    slot = bank.add(config, seed=0, trainable=True)
    drawn = {key: torch.randn(t.shape, generator=generator) * 0.1 for key, t in bank.state(slot).items()}
    bank.remove(slot)
    slot = bank.add(config, drawn)
    native = NativeEncoder(model, "float32", threads=2)
    adapter = native.adapter_of(bank, slot)
    adapters = [adapter if number % 2 else None for number in range(len(LENGTHS))]
    merged = build(model.spec)
    merged.load_state_dict(model.state_dict())
    for path, factors in bank.low_rank(slot).items():
        merged.get_submodule(path).weight.data += factors.scaling * factors.b @ factors.a  # type: ignore[union-attr,operator]
    for depth in (0, 1, None):
        outputs = native.forward(flat(texts), LENGTHS, flat(types), adapters, depth).split(LENGTHS)
        for number, ours in enumerate(outputs):
            with torch.no_grad():
                expected = states_alone(merged if number % 2 else model, texts[number], types[number], depth)
            assert relative(ours, expected) < 1e-5


def test_what_is_refused() -> None:
    native = NativeEncoder(sharp_model("bert"), "float32")
    assert native.forward([], []).shape == (0, 96)
    with pytest.raises(UsageError, match="do not go together"):
        native.forward([1, 2, 3], [2])
    with pytest.raises(UsageError, match="do not go together"):
        native.forward([1, 2], [2, 0])
    with pytest.raises(UsageError, match=r"token number .* 0 … 330"):
        native.forward([1, 331], [2])
    with pytest.raises(UsageError, match=r"type number .* 0 … 1"):
        native.forward([1, 2], [2], [0, 2])
    with pytest.raises(UsageError, match="depth 3"):
        native.forward([1, 2], [2], depth=3)
    with pytest.raises(ContextLengthExceeded, match="301 tokens"):
        native.forward([1] * 301, [301])


SIZES: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "bert, three labels", "roberta, a cross-encoder"])
def test_the_engine_gives_what_transformers_gives(tmp_path: Path, name: str) -> None:
    reference = REFERENCES[name].random_model(0, torch.float32, **SIZES)
    reference.save_pretrained(tmp_path)
    texts = [tuple(some_tokens(length, ENCODERS["bert"].with_(vocab_size=90), length)) for length in (3, 60, 17, 3)]
    with Engine(load_base(tmp_path), kernel="native") as engine, torch.no_grad():
        assert engine.kernel == "native"
        if "," not in name:
            requests = [Embed(ids, pooling="mean", normalise=False) for ids in texts]
            outputs = [cast(Embedding, result).vector for result in engine.run(requests)]
            expected = [reference(torch.tensor([ids])).last_hidden_state[0].mean(0) for ids in texts]
        else:
            type_ids = [tuple(int(at > 2) * (name == "bert, three labels") for at in range(len(ids))) for ids in texts]
            requests = [Label(ids, types=types) for ids, types in zip(texts, type_ids, strict=True)]
            outputs = [cast(Classification, result).scores for result in engine.run(requests)]
            expected = [
                reference(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits[0]
                for ids, types in zip(texts, type_ids, strict=True)
            ]
    assert_near(outputs, torch.stack(expected), rel=1e-5)


@pytest.mark.parametrize("faster", ["native", "torch"])
def test_the_faster_kernel_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: str) -> None:
    REFERENCES["bert"].random_model(0, torch.float32, **SIZES).save_pretrained(tmp_path)

    def timings(spec: Any, plans: Any, **options: Any) -> PlanTimings:
        return PlanTimings({plan: {"prefill": 1.0 if plan.kernel == faster else 2.0} for plan in plans})

    monkeypatch.setattr(choice, "plan_timings", timings)
    with Engine(load_base(tmp_path)) as engine:
        assert engine.kernel == faster
        assert len(engine.run([Embed((3, 4, 5))])) == 1
