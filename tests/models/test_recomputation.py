"""Backward passes that are written by hand, against autograd of the plain formulas and against finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.near import assert_near
from torch import Tensor

from bedplate.models.layers.feedforward import ACTIVATIONS
from bedplate.models.layers.linear import Linear, has_onednn
from bedplate.models.layers.recomputation import gated, rms_norm


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_finite_differences() -> None:
    x, weight = drawn(2, 3, 6).requires_grad_(), drawn(6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (x, weight))
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, weight.detach(), 1e-5), (x,))
    y = drawn(2, 3, 6, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: gated(x, y, F.silu), (x, y))


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 3e-6), (torch.bfloat16, 1.5e-2)])
def test_the_plain_formulas(dtype: torch.dtype, rel: float) -> None:
    """In bfloat16 within its own rounding: 8 bits of mantissa, a few roundings."""
    x, weight, grad = (drawn(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(1, 50, 64), (64,), (1, 50, 64)]))
    pairs = {"norm": (lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: F.rms_norm(x, (64,), w, 1e-5))}
    for name in ("silu", "gelu", "gelu_tanh", "relu2"):
        act = ACTIVATIONS[name]
        pairs[f"gate, {name}"] = (
            lambda x, w, act=act: gated(x, x.flip(1), act) * w,
            lambda x, w, act=act: act(x) * x.flip(1) * w,
        )
    for name, (ours, plain) in pairs.items():
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        exact = [t.double().requires_grad_() for t in (x, weight)]
        y, expected = ours(*leaves), plain(*exact)
        assert y.dtype == dtype
        assert_near(y, expected, rel, name)
        gradients = torch.autograd.grad(y, leaves, grad)
        for ours_grad, theirs in zip(gradients, torch.autograd.grad(expected, exact, grad.double()), strict=True):
            assert ours_grad.dtype == dtype
            assert_near(ours_grad, theirs, rel, name)


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
