"""Backward passes that are written by hand, against autograd of the plain formulas and against finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.near import assert_near
from torch import Tensor

from bedplate.adapters.adapted import adapted
from bedplate.models.layers import gradients
from bedplate.models.layers.feedforward import ACTIVATIONS
from bedplate.models.layers.gradients import added_rms_norm, gated, rms_norm, rotate_halves
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.products import Products, has_onednn


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def angles(tokens: int, half: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    a = drawn(1, tokens, 1, half, seed=9)
    return torch.cat((a.cos(), a.cos()), -1).to(dtype), torch.cat((a.sin(), a.sin()), -1).to(dtype)


def plain_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def test_finite_differences() -> None:
    x, weight = drawn(2, 3, 6).requires_grad_(), drawn(6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (x, weight))
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, weight.detach(), 1e-5), (x,))
    y = drawn(2, 3, 6, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y, w: added_rms_norm(x, y, w, 1e-5), (x, y, weight))
    assert torch.autograd.gradcheck(lambda x, y: gated(x, y, F.silu), (x, y))
    cos, sin = angles(3, 4)
    assert torch.autograd.gradcheck(lambda x: rotate_halves(x, cos, sin), (drawn(1, 3, 2, 8).requires_grad_(),))
    for bias in (False, True):
        module = Linear(6, 5, bias).double().requires_grad_(False)
        a, b = drawn(2, 6, seed=2).requires_grad_(), drawn(5, 2, seed=3).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, a, b, m=module: adapted(x, m, a, b, 1.7), (x, a, b))


@pytest.mark.parametrize("piece", [gradients.PIECE, 300])
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 3e-6), (torch.bfloat16, 1.5e-2)])
def test_the_plain_formulas(dtype: torch.dtype, rel: float, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole or in pieces, whose last is smaller. In bfloat16 within its own rounding: 8 bits of mantissa, a few
    roundings."""
    monkeypatch.setattr(gradients, "PIECE", piece)
    x, weight, grad = (drawn(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(1, 50, 64), (64,), (1, 50, 64)]))
    cos, sin = angles(50, 8, dtype)
    formulas = {
        "norm": (lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: F.rms_norm(x, (64,), w, 1e-5)),
        "rotation": (
            lambda x, w: rotate_halves(x.view(1, 50, 4, 16), cos, sin).flatten(2) * w,
            lambda x, w: plain_rotation(x.view(1, 50, 4, 16), cos.to(x.dtype), sin.to(x.dtype)).flatten(2) * w,
        ),
        "sum and norm": (
            lambda x, w: torch.stack(added_rms_norm(x, (2 * x).detach(), w, 1e-5)).sum(0),
            lambda x, w: (x + (2 * x).detach()) + F.rms_norm(x + (2 * x).detach(), (64,), w, 1e-5),
        ),
    }
    for name in ("silu", "gelu", "gelu_tanh", "relu2"):  # those with a kernel of torch's own, and one without
        act = ACTIVATIONS[name]
        formulas[f"gate, {name}"] = (
            lambda x, w, act=act: gated(x, x.flip(1), act) * w,
            lambda x, w, act=act: act(x) * x.flip(1) * w,
        )
    for name, (ours, plain) in formulas.items():
        inputs = [t.clone().requires_grad_() for t in (x, weight)]
        exact = [t.double().requires_grad_() for t in (x, weight)]
        y, expected = ours(*inputs), plain(*exact)
        assert y.dtype == dtype
        assert_near(y, expected, rel, name)
        grads = torch.autograd.grad(y, inputs, grad)
        for actual, reference in zip(grads, torch.autograd.grad(expected, exact, grad.double()), strict=True):
            assert actual.dtype == dtype
            assert_near(actual, reference, rel, name)


@pytest.mark.parametrize("products", ["torch", "onednn"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 3e-6), (torch.bfloat16, 1.5e-2)])
def test_frozen_linears_with_and_without_an_adapter(
    dtype: torch.dtype, rel: float, bias: bool, products: Products
) -> None:
    if products == "onednn" and not has_onednn():
        pytest.skip("this torch has no oneDNN")
    module = Linear(48, 32, bias)
    module = module.to(dtype).requires_grad_(False)
    module.products = products
    exact = Linear(48, 32, bias).double().requires_grad_(False)
    exact.load_state_dict(module.state_dict())
    x, a, b = drawn(2, 20, 48, dtype=dtype), drawn(4, 48, dtype=torch.float32), drawn(32, 4, dtype=torch.float32)
    grad = drawn(2, 20, 32, dtype=dtype, seed=5)

    def plain(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return exact(x) + 0.5 * F.linear(F.linear(x, a), b)

    inputs, exact_inputs = (
        [t.to(d).requires_grad_() for t, d in zip((x, a, b), ds, strict=True)]
        for ds in ((dtype, torch.float32, torch.float32), (torch.float64,) * 3)
    )
    y, expected = adapted(inputs[0], module, inputs[1], inputs[2], 0.5), plain(*exact_inputs)
    assert_near(y, expected, rel)
    grads = torch.autograd.grad(y, inputs, grad)
    for actual, reference, of in zip(
        grads, torch.autograd.grad(expected, exact_inputs, grad.double()), inputs, strict=True
    ):
        assert actual.dtype == of.dtype
        assert actual.is_contiguous()
        assert_near(actual, reference, rel)
    alone, without = module(inputs[0]), exact(exact_inputs[0])
    assert_near(alone, without, rel)
    (to_x,), (expected_grad,) = (
        torch.autograd.grad(out, [at], g)
        for out, at, g in ((alone, inputs[0], grad), (without, exact_inputs[0], grad.double()))
    )
    assert_near(to_x, expected_grad, rel)


@pytest.mark.parametrize("bias", [False, True])
def test_linears_that_are_trained_by_onednn(bias: bool) -> None:
    if not has_onednn():
        pytest.skip("this torch has no oneDNN")
    module, exact = Linear(48, 32, bias), Linear(48, 32, bias).double()
    exact.load_state_dict(module.state_dict())
    module.products = "onednn"
    x, grad = drawn(2, 20, 48, dtype=torch.float32).requires_grad_(), drawn(2, 20, 32, dtype=torch.float32, seed=5)
    exact_x = x.detach().double().requires_grad_()
    y, expected = module(x), exact(exact_x)
    assert_near(y, expected, 3e-6)
    grads = torch.autograd.grad(y, [x, *module.parameters()], grad)
    for actual, reference in zip(
        grads, torch.autograd.grad(expected, [exact_x, *exact.parameters()], grad.double()), strict=True
    ):
        assert_near(actual, reference, 3e-6)
    (alone,) = torch.autograd.grad(module(x.detach()), [module.weight], grad)
    assert_near(alone, grads[1], 3e-6)
    stale = module(x)
    with torch.no_grad():
        module.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.sum().backward()
