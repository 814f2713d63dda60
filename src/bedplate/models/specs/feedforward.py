"""Feed-forwards as data: activations, gates, mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.specs.checks import at_least, finite

# "clamped_silu" is gpt-oss's gate: (min(up) + 1) · g · sigmoid(1.702 g), both clamped at 7.
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "quick_gelu", "clamped_silu"]
Scoring = Literal["softmax", "softmax_chosen", "sigmoid"]

MOST_EXPERTS = 100_000
"""Experts of one layer at most; published models have a few hundred."""


@dataclass(frozen=True)
class FeedForwardSpec:
    """The dense feed-forward of a stack's layers: `size` features within, an activation, with a gate or without."""

    size: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the feed-forward (https://arxiv.org/abs/2101.03961, DeepSeekMoE 2401.06066).

    `per_token` of `count` experts of `feedforward_size` see a token, and always the shared one of `shared_size`
    features (several shared experts side by side are one of their widths' sum; 0: none). The first `first_dense` layers
    have the spec's own feed-forward instead; of the others, the last of each `every` layers has experts.
    router_bias: the router is an affine map. selection_bias: one number an expert that the load balancer sets and that
    changes only the choice: a buffer, not counted as a parameter. bias: of the experts' products. shared_gate: one
    learned row that scales the shared expert (Qwen2-MoE).
    scoring: how logits become scores: a softmax over all experts, or over the chosen ones (gpt-oss), or a sigmoid of
    each (DeepSeek-V3). renormalise: the chosen ones' scores are divided by their sum; scale: and then multiplied.
    groups, groups_chosen: experts are chosen from so many of so many groups only, the best by the sum of their two
    highest scores (DeepSeek-V3).
    beside: the experts stand beside the layer's own feed-forward: they have a norm before them, and each of the two one
    behind it; the router reads what their norms read (Gemma-4). router_scales: the router's input is normalised, times
    a learned vector and 1/√hidden, and each expert's weight is multiplied by a learned number (Gemma-4).
    """

    count: int
    per_token: int
    feedforward_size: int
    shared_size: int = 0
    first_dense: int = 0
    every: int = 1
    router_bias: bool = False
    selection_bias: bool = False
    bias: bool = False
    shared_gate: bool = False
    scoring: Scoring = "softmax"
    renormalise: bool = True
    scale: float = 1.0
    groups: int = 1
    groups_chosen: int = 1
    beside: bool = False
    router_scales: bool = False

    def __post_init__(self) -> None:
        at_least(self, 1, "count", "per_token", "feedforward_size", "every", "groups", "groups_chosen")
        at_least(self, 0, "shared_size", "first_dense")
        finite(self, "scale")
        if self.count > MOST_EXPERTS:
            raise UnsupportedModelError(f"{self.count} experts: a layer has at most {MOST_EXPERTS:,}")
        if self.per_token > self.count:
            raise UnsupportedModelError(f"{self.per_token} experts per token, but there are only {self.count}")
        if self.shared_gate and not self.shared_size:
            raise UnsupportedModelError("shared_gate needs a shared expert: shared_size is 0")
        if self.beside and self.shared_size:
            raise UnsupportedModelError("experts beside a feed-forward have no shared one: shared_size must be 0")
        self._check_groups()

    def _check_groups(self) -> None:
        if self.groups == 1:
            return
        if self.count % self.groups or self.count < 2 * self.groups:
            raise UnsupportedModelError(f"{self.count} experts cannot be {self.groups} groups of two or more each")
        if self.groups_chosen > self.groups:
            raise UnsupportedModelError(f"{self.groups_chosen} groups are chosen, but there are only {self.groups}")
        if self.per_token > self.groups_chosen * self.count // self.groups:
            raise UnsupportedModelError(
                f"{self.per_token} experts per token, but {self.groups_chosen} of {self.groups} groups have fewer"
            )

    def in_layer(self, layer: int) -> bool:
        """Whether this layer has experts."""
        return layer >= self.first_dense and (layer - self.first_dense + 1) % self.every == 0
