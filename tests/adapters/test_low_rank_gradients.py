"""A frozen linear with LoRA: outputs and gradients against the plain formula recorded by autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.adapters.linear_adapter import LowRank
from bedplate.models.layers.linear import Linear, has_onednn

SCALING = 1.7


def linear(dtype: torch.dtype, bias: bool, frozen: bool, rank: int = 3) -> tuple[Linear, LowRank]:
    module = Linear(10, 6, bias=bias, dtype=dtype).requires_grad_(not frozen)
    if module.bias is not None:
        nn.init.normal_(module.bias)
    a, b = (nn.Parameter(torch.randn(shape, dtype=torch.promote_types(dtype, torch.float32)))
            for shape in ((rank, 10), (6, rank)))  # fmt: skip
    return module, LowRank(a, b, SCALING)


def plain(x: Tensor, module: Linear, adapter: LowRank) -> Tensor:
    """LoRA's formula, computed in float64."""
    x, a, b = x.double(), adapter.a.to(x.dtype).double(), adapter.b.to(x.dtype).double()
    bias = None if module.bias is None else module.bias.double()
    return F.linear(x, module.weight.double(), bias) + SCALING * x @ a.T @ b.T


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_output_and_gradients_are_those_of_the_plain_formula(
    seed: int, dtype: torch.dtype, tolerance: float, bias: bool, frozen: bool
) -> None:
    torch.manual_seed(seed)
    module, adapter = linear(dtype, bias, frozen)
    x = torch.randn(2, 5, 10, dtype=dtype).transpose(0, 1).requires_grad_()
    seed_grad = torch.randn(5, 2, 6, dtype=dtype)
    variables = [x, adapter.a, adapter.b, *(() if frozen else module.parameters())]
    output, expected = adapter.output(x, module), plain(x, module, adapter)
    assert output.dtype == dtype
    assert output.shape == (5, 2, 6)
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=4 * tolerance)
    gradients = torch.autograd.grad(output, variables, seed_grad)
    for gradient, exact in zip(gradients, torch.autograd.grad(expected, variables, seed_grad.double()), strict=True):
        assert gradient.dtype == exact.dtype
        torch.testing.assert_close(gradient.double(), exact.double(), rtol=tolerance, atol=20 * tolerance)


@pytest.mark.skipif(not has_onednn(), reason="this build of torch has no oneDNN")
def test_the_product_of_onednn_has_the_same_update() -> None:
    torch.manual_seed(0)
    module, adapter = linear(torch.float32, bias=True, frozen=True)
    x = torch.randn(7, 10, requires_grad=True)
    variables = [x, adapter.a, adapter.b]
    results = []
    for products in ("torch", "onednn"):
        module.products = products  # type: ignore[assignment]
        output = adapter.output(x, module)
        results.append([output, *torch.autograd.grad(output.square().sum(), variables)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


def test_the_adapter_is_trained_where_its_input_needs_no_gradient() -> None:
    module, adapter = linear(torch.float64, bias=False, frozen=True)
    x, variables = torch.randn(4, 10, dtype=torch.float64), [adapter.a, adapter.b]
    gradients = torch.autograd.grad(adapter.output(x, module).sum(), variables)
    torch.testing.assert_close(gradients, torch.autograd.grad(plain(x, module, adapter).sum(), variables))


def test_a_weight_changed_before_the_backward_pass_is_refused() -> None:
    module, adapter = linear(torch.float64, bias=False, frozen=True)
    output = adapter.output(torch.randn(4, 10, dtype=torch.float64, requires_grad=True), module).sum()
    with torch.no_grad():
        module.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()
