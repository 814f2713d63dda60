"""Mixtures of experts: sorted products and plain ones agree, forwards and backwards."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.layers import grouped
from bedplate.models.layers.experts import ExpertLinear, MixtureOfExperts, RoutedExperts
from bedplate.models.layers.grouped import Segments, grouped_product, torch_product_works
from bedplate.models.specs.transformer import AttentionSpec, Experts, FeedForwardSpec, TransformerSpec

SPEC = TransformerSpec(
    kind="decoder",
    vocab_size=50,
    hidden_size=12,
    layers=2,
    context_length=64,
    attention=AttentionSpec(heads=2, kv_heads=2, head_dim=6),
    feedforward=FeedForwardSpec(size=10),
    experts=Experts(5, 2, 7),
)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2}


def plain_product(x_MI: torch.Tensor, weight_EOI: torch.Tensor, segments: Segments) -> torch.Tensor:
    """x_m Wᵀ of each token's expert, [M, O], written out."""
    parts = [torch.nn.functional.linear(x_MI[begin:end], weight_EOI[expert]) for expert, begin, end in segments.spans]
    return torch.cat(parts) if parts else x_MI.new_zeros(0, weight_EOI.shape[1])


def plain_experts(
    layer: RoutedExperts, x_ND: torch.Tensor, chosen_Nk: torch.Tensor, weights_Nk: torch.Tensor
) -> torch.Tensor:
    """`RoutedExperts` written out: every token through the weights of each of its experts."""

    def product(x_NI: torch.Tensor, linear: ExpertLinear, chosen_N: torch.Tensor) -> torch.Tensor:
        y_NO = torch.einsum("ni,noi->no", x_NI, linear.weight[chosen_N])
        return y_NO if linear.bias is None else y_NO + linear.bias[chosen_N]

    out_ND = torch.zeros_like(x_ND)
    for chosen_N, weights_N in zip(chosen_Nk.unbind(1), weights_Nk.unbind(1), strict=True):
        h_NI = layer.activation(product(x_ND, layer.gate_up, chosen_N))
        out_ND = out_ND + product(h_NI, layer.down, chosen_N) * weights_N[:, None]
    return out_ND


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "changes", [{}, {"experts": Experts(5, 3, 7, bias=True), "activation": "clamped_silu"}, {"gated": False}]
)
def test_sorted_tokens_give_what_each_token_by_itself_does(dtype: torch.dtype, changes: dict[str, Any]) -> None:
    torch.manual_seed(1)
    spec = SPEC.with_(**changes)
    assert spec.experts is not None
    layer = MixtureOfExperts(spec, 0, None, dtype).experts
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(9, spec.hidden_size, dtype=dtype, requires_grad=True)
    chosen = torch.randint(1, 5, (9, spec.experts.per_token))  # the first expert has no token
    weights = torch.rand(chosen.shape, dtype=dtype, requires_grad=True)
    results: list[list[torch.Tensor]] = []
    for forward in (layer, partial(plain_experts, layer)):
        out = forward(x, chosen, weights)
        tensors = [x, weights, *layer.gate_up.parameters(), *layer.down.parameters()]
        results.append([out, *torch.autograd.grad((out * torch.linspace(-1, 1, out.shape[1])).sum(), tensors)])
    for ours, plain in zip(*results, strict=True):
        assert torch.allclose(ours, plain, TOLERANCE[dtype], TOLERANCE[dtype])
    assert not results[0][3][0].any(), "an expert without tokens has no gradient"


@pytest.mark.parametrize("sizes", [(8, 16), (6, 10)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_products_of_torch_agree_with_the_loop_where_they_work(
    dtype: torch.dtype, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that they do not take, since they are no multiple of 16 bytes, are the loop's."""
    torch.manual_seed(0)
    works = torch_product_works(torch.device("cpu"), dtype)
    assert works or dtype == torch.float64, "torch has grouped products of this dtype"
    monkeypatch.setattr(grouped, "uses_grouped_mm", lambda _: works)
    x, weight = torch.randn(20, sizes[1], dtype=dtype, requires_grad=True), torch.randn(4, *sizes, dtype=dtype)
    weight.requires_grad_()
    segments = Segments(torch.tensor([3, 0, 10, 7]))
    results: list[list[torch.Tensor]] = []
    for product in (grouped_product, plain_product):
        out = product(x, weight, segments)
        results.append([out, *torch.autograd.grad(out.square().sum(), (x, weight))])
    for ours, plain in zip(*results, strict=True):
        assert torch.allclose(ours, plain, TOLERANCE[dtype], TOLERANCE[dtype])


def test_no_tokens_are_no_products() -> None:
    layer = MixtureOfExperts(SPEC, 0, None, torch.float32)
    assert layer(torch.zeros(1, 0, SPEC.hidden_size)).shape == (1, 0, SPEC.hidden_size)


def test_a_router_refuses_groups_that_cannot_be() -> None:
    with pytest.raises(UnsupportedModelError, match="5 experts cannot be 2 groups"):
        Experts(5, 2, 7, groups=2)
    with pytest.raises(UnsupportedModelError, match="3 groups are chosen"):
        Experts(8, 2, 7, groups=2, groups_chosen=3)
    with pytest.raises(UnsupportedModelError, match="5 experts per token, but 1 of 2 groups"):
        Experts(8, 5, 7, groups=2)
