"""Which experts see a token, and how much each of them counts.

Mixtral (https://arxiv.org/abs/2401.04088): softmax, the best k, renormalised. DeepSeek-V3
(https://arxiv.org/abs/2412.19437, section 2.1.2): sigmoid, a bias that changes the choice alone, groups. Scores are
made in float32 or wider: a choice that rounding changes is another expert.

Shapes: N tokens, D features, E experts, k of them for a token.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.models.precision import Device
from bedplate.models.specs.transformer import Experts, TransformerSpec

TINY = 1e-20
"""Added to the sum that sigmoid scores are divided by, which can be 0."""


@dataclass(frozen=True, eq=False)
class Routing:
    """A layer's routing decisions for the tokens of a pass, padding included.

    logits_NE, scores_NE: float32 or wider, with their graph; chosen_Nk: the experts; weights_Nk: how each counts.
    """

    router: Router
    logits_NE: Tensor
    scores_NE: Tensor
    chosen_Nk: Tensor
    weights_Nk: Tensor


_heard: ContextVar[list[Routing] | None] = ContextVar("routings", default=None)


@contextmanager
def collect_routings() -> Generator[list[Routing]]:
    """Collects the routings of every layer that runs while it is open; an outer collector gets them too. Layers that
    are recomputed in the backward pass run after it is closed, and are not collected twice."""
    routings: list[Routing] = []
    outer = _heard.get()
    token = _heard.set(routings)
    try:
        yield routings
    finally:
        _heard.reset(token)
        if outer is not None:
            outer.extend(routings)


class Router(nn.Module):
    """Scores of all experts, and the choice among them."""

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
        # The balancer moves it by steps that bfloat16 would lose.
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
        heard = _heard.get()
        if heard is not None:
            heard.append(routing)
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
    wanted_NE = (logits_NE if part.scoring == "softmax_chosen" else scores_NE).detach()
    if selection_bias_E is not None:
        wanted_NE = wanted_NE + selection_bias_E.to(wanted_NE.dtype)
    if part.groups > 1:
        wanted_NE = _in_best_groups(wanted_NE, part.groups, part.groups_chosen)
    chosen_Nk = wanted_NE.topk(part.per_token, dim=-1).indices
    if part.scoring == "softmax_chosen":
        weights_Nk = logits_NE.gather(1, chosen_Nk).softmax(-1)
    else:
        weights_Nk = scores_NE.gather(1, chosen_Nk)
        if part.renormalise:
            total = weights_Nk.sum(-1, keepdim=True)
            weights_Nk = weights_Nk / (total + TINY if part.scoring == "sigmoid" else total)
    return scores_NE, chosen_Nk, weights_Nk if part.scale == 1 else weights_Nk * part.scale


def _in_best_groups(wanted_NE: Tensor, groups: int, chosen: int) -> Tensor:
    """−∞ outside of the groups whose two best experts together are among the best."""
    each_NGe = wanted_NE.unflatten(1, (groups, -1))
    best_NG = each_NGe.topk(2, dim=-1).values.sum(-1)
    kept_NG = torch.zeros_like(best_NG, dtype=torch.bool)
    kept_NG.scatter_(1, best_NG.topk(chosen, dim=-1).indices, True)
    return each_NGe.masked_fill(~kept_NG[..., None], -torch.inf).flatten(1)
