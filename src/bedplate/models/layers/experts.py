"""Mixture of experts: a router, and expert feed-forwards that run on tokens sorted by expert.

No token is dropped and none padded (MegaBlocks, https://arxiv.org/abs/2211.15841): an expert processes all tokens that
are routed to it.

Shapes: B rows, T tokens a row, N tokens, D features, E experts, k of them per token, M = N·k sorted copies of tokens, I
input and O output features of an expert's product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.models.layers.feedforward import ACTIVATIONS, FeedForward
from bedplate.models.layers.grouped import Segments, grouped_product
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.norms import make_norm
from bedplate.models.layers.recomputation import gated, recompute_in_backward
from bedplate.models.precision import Device
from bedplate.models.specs.transformer import Experts, TransformerSpec

CLAMP, SIGMOID = 7.0, 1.702
"""gpt-oss's gate: the bound of its inputs, and the factor inside its sigmoid (https://arxiv.org/abs/2508.10925)."""


class ExpertLinear(nn.Module):
    """`y = x W_eᵀ + b_e` for each token's expert e: a weight [E, O, I] and a bias [E, O].

    `low_rank` is None, or a function from the sorted tokens and their segments to the whole output, which calls
    `plain`. It is not part of the module's state.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    low_rank: Callable[[Tensor, Segments], Tensor] | None

    def __init__(
        self,
        experts: int,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.experts, self.in_features, self.out_features = experts, in_features, out_features
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features, device=device, dtype=dtype))
        zeros = nn.Parameter(torch.zeros(experts, out_features, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", zeros)
        self.low_rank = None
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=1.0 / math.sqrt(in_features))

    def forward(self, x_MI: Tensor, segments: Segments) -> Tensor:
        return self.plain(x_MI, segments) if self.low_rank is None else self.low_rank(x_MI, segments)

    def plain(self, x_MI: Tensor, segments: Segments) -> Tensor:
        """The layer without `low_rank`."""
        y_MO = grouped_product(x_MI, self.weight, segments)
        if self.bias is None:
            return y_MO
        return y_MO + self.bias.repeat_interleave(segments.counts_E, dim=0, output_size=len(y_MO))


class Order(NamedTuple):
    """A permutation of token copies by expert: order_M is the copy at each sorted place, inverse_M the place of each
    copy, tokens_M the token at each place; copy n·k + j is token n for its j-th expert."""

    order_M: Tensor
    inverse_M: Tensor
    tokens_M: Tensor
    segments: Segments


def sort_by_expert(chosen_Nk: Tensor, experts: int) -> Order:
    """Sorts the copies of tokens by expert, stably, so that tokens keep their order within an expert."""
    flat_M = chosen_Nk.reshape(-1)
    order_M = flat_M.argsort(stable=True)
    inverse_M = torch.empty_like(order_M)
    inverse_M[order_M] = torch.arange(len(order_M), device=order_M.device)
    counts_E = torch.zeros(experts, dtype=torch.int64, device=flat_M.device)
    counts_E.scatter_add_(0, flat_M, torch.ones_like(flat_M))
    tokens_M = order_M // chosen_Nk.shape[1]
    return Order(order_M, inverse_M, tokens_M, Segments(counts_E, tokens_M, len(chosen_Nk)))


class MixtureOfExperts(nn.Module):
    """A router, its experts, and the shared expert that processes every token."""

    def __init__(self, spec: TransformerSpec, layer: int, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        part, hidden = spec.experts, spec.hidden_size
        assert part is not None
        self.router = Router(spec, layer, device, dtype)
        self.experts = RoutedExperts(spec, device, dtype)
        self.shared = FeedForward(spec, layer, device, dtype, part.shared_size) if part.shared_size else None
        self.shared_gate = Linear(hidden, 1, False, device, dtype) if part.shared_gate else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        routing = self.router(x_ND)
        out_BTD = self.experts(x_ND, routing.chosen_Nk, routing.weights_Nk.to(x_ND.dtype)).view(x_BTD.shape)
        if self.shared is None:
            return out_BTD
        # Rows in their original order, by which adapters on these linears are selected.
        always_BTD = self.shared(x_BTD)
        if self.shared_gate is not None:
            always_BTD = always_BTD * self.shared_gate(x_BTD).sigmoid()
        return out_BTD + always_BTD


class ParallelExperts(nn.Module):
    """Routed experts in parallel to a dense feed-forward that processes every token (Gemma-4)."""

    def __init__(self, spec: TransformerSpec, layer: int, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        self.router = Router(spec, layer, device, dtype)
        self.experts = RoutedExperts(spec, device, dtype)
        self.norm, self.after_norm, self.dense_after_norm = (make_norm(spec, device, dtype) for _ in range(3))

    def forward(self, x_BTD: Tensor, fed_BTD: Tensor) -> Tensor:
        """Adds the experts' output to the dense one's, each after its norm. x: the feed-forward's input before its
        norm; fed: the feed-forward's output."""
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        routing = self.router(x_ND)
        out_ND = self.experts(self.norm(x_ND), routing.chosen_Nk, routing.weights_Nk.to(x_ND.dtype))
        return self.dense_after_norm(fed_BTD) + self.after_norm(out_ND).view(x_BTD.shape)


class RoutedExperts(nn.Module):
    """The feed-forwards of all experts; the gate and up projections are one product."""

    def __init__(self, spec: TransformerSpec, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        part, hidden = spec.experts, spec.hidden_size
        assert part is not None
        self.activation = gate(spec)
        gate_up_size = part.feedforward_size * (2 if spec.feedforward.gated else 1)
        self.gate_up = ExpertLinear(part.count, hidden, gate_up_size, part.bias, device, dtype)
        self.down = ExpertLinear(part.count, part.feedforward_size, hidden, part.bias, device, dtype)

    def forward(self, x_ND: Tensor, chosen_Nk: Tensor, weights_Nk: Tensor) -> Tensor:
        """Σ_j w_nj · expert_nj(x_n), [N, D], on tokens sorted by expert."""
        order = sort_by_expert(chosen_Nk, self.gate_up.experts)

        def copied(x_ND: Tensor) -> Tensor:
            sorted_rows: Any = _Sorted.apply(x_ND, order, chosen_Nk.shape[1])
            return sorted_rows

        x_MD = copied(x_ND)
        with recompute_in_backward(x_MD, copied, x_ND):
            gate_up_MI = self.gate_up(x_MD, order.segments)
        h_MI = self.activation(gate_up_MI)
        with recompute_in_backward(h_MI, self.activation, gate_up_MI):
            y_MD = self.down(h_MI, order.segments)
        combined: Any = _Combined.apply(y_MD, weights_Nk, order)
        return combined


def gate(spec: TransformerSpec) -> Callable[[Tensor], Tensor]:
    """The activation between an expert's two products; the first product gives the gate's features before the up
    features."""
    if spec.feedforward.activation == "clamped_silu":
        return clamped_silu
    act = ACTIVATIONS[spec.feedforward.activation]
    if not spec.feedforward.gated:
        return act

    def gated_activation(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return gated(first, second, act)

    return gated_activation


def clamped_silu(x: Tensor) -> Tensor:
    """(u + 1) · g · sigmoid(1.702 g), g at most 7 and u between −7 and 7 (gpt-oss)."""
    g, u = x.chunk(2, dim=-1)
    g, u = g.clamp(max=CLAMP), u.clamp(-CLAMP, CLAMP)
    return (u + 1) * (g * torch.sigmoid(SIGMOID * g))


class _Sorted(torch.autograd.Function):
    """Copies tokens to their sorted places; the backward pass sums a token's copies in their order."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order: Order, k: int) -> Tensor:  # type: ignore[override]
        ctx.order, ctx.k = order, k
        return x_ND.index_select(0, order.tokens_M)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        each_NkD = grad.index_select(0, ctx.order.inverse_M).unflatten(0, (-1, ctx.k))
        return each_NkD.sum(1), None, None


class _Combined(torch.autograd.Function):
    """Sums a token's copies, weighted by its router weights."""

    @staticmethod
    def forward(ctx: Any, y_MD: Tensor, weights_Nk: Tensor, order: Order) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(y_MD, weights_Nk)
        ctx.order = order
        each_NkD = y_MD.index_select(0, order.inverse_M).unflatten(0, weights_Nk.shape)
        return torch.bmm(weights_Nk[:, None], each_NkD).squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        y_MD, weights_Nk = ctx.saved_tensors
        order: Order = ctx.order
        grad_MD = grad.index_select(0, order.tokens_M)
        to_weights: Tensor | None = None
        if ctx.needs_input_grad[1]:
            to_weights = torch.linalg.vecdot(grad_MD, y_MD).index_select(0, order.inverse_M).view_as(weights_Nk)
        to_y = grad_MD.mul_(weights_Nk.reshape(-1).index_select(0, order.order_M)[:, None])
        return to_y, to_weights, None


# --- routing: the experts of each token, and their weights
#
# Mixtral (https://arxiv.org/abs/2401.04088): softmax, the best k, renormalised. DeepSeek-V3
# (https://arxiv.org/abs/2412.19437, section 2.1.2): sigmoid, a bias that changes the choice alone, groups. Scores are
# computed in float32 or wider, since rounding could change which expert is chosen.

TINY = 1e-20
"""Added to the sum by which sigmoid scores are normalised, because it can be 0."""


@dataclass(frozen=True, eq=False)
class Routing:
    """A layer's routing decisions for the tokens of a pass, padding included.

    logits_NE, scores_NE: float32 or wider, with their graph; chosen_Nk: the experts; weights_Nk: the weight of each.
    """

    router: Router
    logits_NE: Tensor
    scores_NE: Tensor
    chosen_Nk: Tensor
    weights_Nk: Tensor


_collector: ContextVar[list[Routing] | None] = ContextVar("routings", default=None)


@contextmanager
def collect_routings() -> Generator[list[Routing]]:
    """Collects the routings of every layer that runs in this context; an outer collector receives them too. Layers
    recomputed in the backward pass run after it is closed, and are not collected twice."""
    routings: list[Routing] = []
    outer = _collector.get()
    token = _collector.set(routings)
    try:
        yield routings
    finally:
        _collector.reset(token)
        if outer is not None:
            outer.extend(routings)


class Router(nn.Module):
    """Scores all experts for each token and chooses k of them."""

    bias: nn.Parameter | None
    scale: nn.Parameter | None
    expert_scale: nn.Parameter | None
    selection_bias: Tensor | None

    def __init__(self, spec: TransformerSpec, layer: int, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        assert spec.experts is not None
        self.layer, self.part = layer, spec.experts
        count = self.part.count
        self.weight = nn.Parameter(torch.empty(count, spec.hidden_size, device=device, dtype=dtype))
        bias = nn.Parameter(torch.zeros(count, device=device, dtype=dtype)) if self.part.router_bias else None
        self.register_parameter("bias", bias)
        sizes = {"scale": spec.hidden_size, "expert_scale": count}
        for name, size in sizes.items():
            unit_scale = nn.Parameter(torch.ones(size, device=device, dtype=dtype)) if self.part.router_scales else None
            self.register_parameter(name, unit_scale)
        self.eps = spec.norm.eps
        # float32: `Routers.step` moves it by steps that bfloat16 would round away.
        number = torch.zeros(count, device=device, dtype=torch.float32) if self.part.selection_bias else None
        self.register_buffer("selection_bias", number)
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=spec.hidden_size**-0.5)

    def forward(self, x_ND: Tensor) -> Routing:
        compute_dtype = torch.promote_types(x_ND.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(compute_dtype)
        logits_NE = F.linear(self._read(x_ND).to(compute_dtype), self.weight.to(compute_dtype), bias)
        scores_NE, chosen_Nk, weights_Nk = choose(logits_NE, self.part, self.selection_bias)
        if self.expert_scale is not None:
            weights_Nk = weights_Nk * self.expert_scale.to(compute_dtype)[chosen_Nk]
        routing = Routing(self, logits_NE, scores_NE, chosen_Nk, weights_Nk)
        collector = _collector.get()
        if collector is not None:
            collector.append(routing)
        return routing

    def _read(self, x_ND: Tensor) -> Tensor:
        """The router's input: the hidden state, or its scaled norm where the router has a scale."""
        if self.scale is None:
            return x_ND
        size = x_ND.shape[-1]
        return F.rms_norm(x_ND, (size,), None, self.eps) * self.scale * size**-0.5


def choose(logits_NE: Tensor, part: Experts, selection_bias_E: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [N, E], the chosen experts [N, k] and their weights [N, k]."""
    scores_NE = logits_NE.sigmoid() if part.scoring == "sigmoid" else logits_NE.softmax(-1)
    selection_NE = (logits_NE if part.scoring == "softmax_chosen" else scores_NE).detach()
    if selection_bias_E is not None:
        selection_NE = selection_NE + selection_bias_E.to(selection_NE.dtype)
    if part.groups > 1:
        selection_NE = _in_best_groups(selection_NE, part.groups, part.groups_chosen)
    chosen_Nk = selection_NE.topk(part.per_token, dim=-1).indices
    if part.scoring == "softmax_chosen":
        weights_Nk = logits_NE.gather(1, chosen_Nk).softmax(-1)
    else:
        weights_Nk = scores_NE.gather(1, chosen_Nk)
        if part.renormalise:
            total = weights_Nk.sum(-1, keepdim=True)
            weights_Nk = weights_Nk / (total + TINY if part.scoring == "sigmoid" else total)
    return scores_NE, chosen_Nk, weights_Nk if part.scale == 1 else weights_Nk * part.scale


def _in_best_groups(selection_NE: Tensor, groups: int, chosen: int) -> Tensor:
    """Masks scores with −∞ outside of the best groups, by the sum of each group's two best experts."""
    each_NGe = selection_NE.unflatten(1, (groups, -1))
    best_NG = each_NGe.topk(2, dim=-1).values.sum(-1)
    chosen_NG = torch.zeros_like(best_NG, dtype=torch.bool)
    chosen_NG.scatter_(1, best_NG.topk(chosen, dim=-1).indices, True)
    return each_NGe.masked_fill(~chosen_NG[..., None], -torch.inf).flatten(1)
