"""Projections of one input as one product, and what stands between products as one operation: the same numbers as each
by itself, with adapters and without; and the kernels that do it on a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.interpreted import interpreting
from tests.made import made_base
from tests.near import assert_near
from tests.tiny import tiny_spec
from torch import Tensor

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.modules import block_linears, initial_tensors
from bedplate.models.build import build
from bedplate.models.families import FAMILIES
from bedplate.models.inputs import Inputs
from bedplate.models.layers.fused.linears import FusedLinears, fuse_linears
from bedplate.models.layers.norms import RMSNorm, add_norm
from bedplate.models.layers.positions import Rotation, rotate
from bedplate.models.model import Model

FAMILIES_WITH = {
    "llama": "nothing more",
    "qwen2": "biases",
    "qwen3": "normed queries and keys",
    "gemma3_text": "norms after, an offset of the norms' weights",
    "gpt_neox": "a parallel residual, part of each head turning",
    "olmo2": "norms of the branches alone",
    "qwen3_next": "a gate on the queries, experts",
    "gemma4_text": "keys of other layers, values that are keys, inputs of layers",
    "deepseek_v3": "latents",
}


def separate(model: Model, inputs: Inputs) -> Tensor:
    """As training computes it."""
    with torch.enable_grad():
        return model(inputs).hidden.detach()


@pytest.mark.parametrize("name", FAMILIES_WITH)
def test_without_gradients_the_numbers_are_the_same(name: str) -> None:
    family = FAMILIES["hf", name]
    model = made_base(family.to_spec(dict(family.examples[0])), family).model.double()
    inputs = Inputs(torch.randint(3, model.spec.vocab_size, (2, 7)))
    names = [*model.state_dict()]
    before = separate(model, inputs)
    fuse_linears(model)
    assert [*model.state_dict()] == names
    assert_near(separate(model, inputs), before, 1e-12)
    with torch.no_grad():
        captured = model(inputs, capture=("layers.0", "layers.1"))
        assert_near(captured.hidden, before, 1e-9)
        assert_near(captured.captured["layers.1"], model(inputs, depth=1).hidden, 1e-9)
    joined = [module for module in model.modules() if isinstance(module, FusedLinears)]
    with torch.no_grad():
        assert name == "deepseek_v3" or any(
            layer.product(torch.zeros(1, model.spec.hidden_size).double()) is not None for layer in joined
        )


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_on_joined_projections(dora: bool) -> None:
    torch.manual_seed(1)
    model = build(tiny_spec(attention_bias=True), torch.float64)
    for parameter in model.parameters():
        parameter.requires_grad_(False).add_(torch.randn_like(parameter) * 0.1)
    bank = Bank(model, 3)
    for seed, targets in enumerate([("q", "v", "up"), ("k", "gate", "down"), "all-linear"]):
        config = LoraConfig(r=2 + seed, targets=targets, dora=dora and seed != 1)
        modules = {path: model.get_submodule(path) for path in config.paths([*block_linears(model)], None)}
        start: dict[str, Any] = initial_tensors(config, modules, seed)  # type: ignore[arg-type]
        bank.add(config, {name: value + 0.3 * torch.randn(value.shape) for name, value in start.items()})
    inputs, rows = Inputs(torch.randint(3, 300, (1, 9))), torch.tensor([0, 0, -1, 2, 1, 1, 0, 2, -1])
    chosen: list[int | Tensor | None] = [None, 0, 1, 2, rows]
    before = []
    for selection in chosen:
        bank.select(selection)
        before.append(separate(model, inputs))
    fuse_linears(model)
    for selection, expected in zip(chosen, before, strict=True):
        bank.select(selection)
        with torch.no_grad():
            assert_near(model(inputs).hidden, expected, 1e-9)
    bank.select(None)
    bank.merge(1)
    with torch.no_grad():
        assert_near(model(inputs).hidden, before[2], 1e-5)  # merged in float32


def test_weights_that_were_given_anew_are_not_read_where_they_were() -> None:
    model = build(tiny_spec(), torch.float64).requires_grad_(False)
    inputs = Inputs(torch.randint(3, 300, (1, 5)))
    fuse_linears(model)
    key = model.get_parameter("layers.1.attention.k.weight")
    key.data = torch.randn_like(key)
    with torch.no_grad():
        assert_near(model(inputs).hidden, separate(model, inputs), 1e-12)
        fuse_linears(model)
        assert_near(model(inputs).hidden, separate(model, inputs), 1e-9)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The kernels, run by Triton's interpreter on CPU tensors."""
    interpreting(monkeypatch)
    from bedplate.models.layers.fused import triton_kernels as kernels

    return kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_do_what_the_plain_functions_do(kernels: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2

    def random(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype)

    x, y = random(2, 5, 48), random(2, 5, 48)
    for offset in (0.0, 1.0):
        norm = RMSNorm(48, 1e-5, dtype=dtype, offset=offset)
        norm.weight = torch.nn.Parameter(random(48))
        for ours, theirs in zip(kernels.add_norm(x, y, norm.weight, 1e-5, offset), add_norm(x, y, norm), strict=True):
            assert_near(ours.float(), theirs.float(), tolerance)
    heads = random(2, 5, 4, 16)[:, :, :3]
    for size, interleaved in ((16, False), (16, True), (8, False)):
        angles = torch.randn(2, 5, 1, size // 2)
        angles = angles.repeat_interleave(2, -1) if interleaved else torch.cat((angles, angles), -1)
        by = Rotation(angles.cos().to(dtype), angles.sin().to(dtype), interleaved)
        assert_near(kernels.rotate(heads, *by[:3]).float(), rotate(heads, by).float(), tolerance)
    gates: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"), "relu": F.relu
    }  # fmt: skip
    for name, gate in gates.items():
        assert_near(kernels.gated(x, name).float(), (gate(x[..., :24]) * x[..., 24:]).float(), tolerance)
