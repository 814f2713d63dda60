"""What of a model its division over devices depends on, counted once for a search over many layouts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from bedplate.economics.model.activations import (
    Recompute,
    head_activation_bytes,
    layer_activation_bytes,
    stacks_of,
)
from bedplate.economics.model.attention_pairs import attention_flops
from bedplate.economics.model.flops import training_flops_per_token
from bedplate.economics.model.parameters import weights
from bedplate.models.specs import (
    Spec,
)


@dataclass(frozen=True)
class LayoutShape:
    """Counts of parameters, features, and bytes a token.

    dense, experts: parameters inside the blocks. first, last: parameters before and after them (tables; head). block,
    block_experts: of the largest block, without and of its experts. activation_bytes: of all layers together, a token,
    by recompute; block_activation_bytes: of the largest layer (what "full" computes again at a time). logit_bytes:
    after the last block. attention_share: of the training operations. expert_layers × expert_features: values a token
    sends to experts and gets back. tied: the head is the token table. divisible: its blocks may be spread over pipeline
    stages.
    """

    layers: int
    heads: int
    hidden: int
    dense: int
    experts: int
    first: int
    last: int
    block: int
    block_experts: int
    expert_count: int
    expert_layers: int
    expert_features: int
    kv_features: int
    activation_bytes: dict[Recompute, float]
    block_activation_bytes: float
    logit_bytes: float
    flops_per_token: float
    attention_share: float
    tied: bool
    divisible: bool

    @property
    def total(self) -> int:
        return self.dense + self.experts + self.first + self.last


@lru_cache(maxsize=64)
def shape_of(spec: Spec, sequence_tokens: int, value_bytes: float = 2.0) -> LayoutShape:
    """The shape of a model that is trained on sequences of so many tokens, activations in `value_bytes` each."""
    stacks = stacks_of(spec)
    main = stacks[-1]
    all_weights = weights(spec)
    inside = [weight for weight in all_weights if weight.layer is not None]
    per_layer: dict[tuple[bool, int], int] = {}
    for weight in inside:
        place = (weight.copies > 1, weight.layer or 0)
        per_layer[place] = per_layer.get(place, 0) + weight.stored
    first = sum(weight.stored for weight in all_weights if weight.layer is None and weight.role == "table")
    outside = sum(weight.stored for weight in all_weights if weight.layer is None) - first
    experts = sum(size for (is_expert, _), size in per_layer.items() if is_expert)
    part = main.experts
    flops = training_flops_per_token(spec, sequence_tokens)
    attention = sum(3 * attention_flops(stack, sequence_tokens) / sequence_tokens for stack in stacks) / len(stacks)
    bytes_by_recompute: dict[Recompute, float] = {
        recompute: sum(
            layer_activation_bytes(stack, n, sequence_tokens, value_bytes, recompute)
            for stack in stacks
            for n in range(stack.layers)
        )
        for recompute in ("none", "selective", "full")
    }
    # What the loss holds: logits in 16 and in 32 bits, and the gradients of both; 32 bits are in head_activation_bytes.
    logits = head_activation_bytes(main, value_bytes)
    if main.kind == "decoder":
        logits += (2 * value_bytes + 4.0) * main.vocab_size
    return LayoutShape(
        layers=main.layers,
        heads=main.attention.heads,
        hidden=main.hidden_size,
        dense=sum(weight.stored for weight in inside) - experts,
        experts=experts,
        first=first,
        last=outside,
        block=max((size for (is_expert, _), size in per_layer.items() if not is_expert), default=0),
        block_experts=max((size for (is_expert, _), size in per_layer.items() if is_expert), default=0),
        expert_count=1 if part is None else part.count,
        expert_layers=0 if part is None else sum(main.has_experts(n) for n in range(main.layers)),
        expert_features=0 if part is None else part.per_token * main.hidden_size,
        kv_features=2 * max(main.kv_heads_of(n) * main.head_dim_of(n) for n in range(main.layers)),
        activation_bytes=bytes_by_recompute,
        block_activation_bytes=max(
            layer_activation_bytes(main, n, sequence_tokens, value_bytes, "selective") for n in range(main.layers)
        ),
        logit_bytes=logits,
        flops_per_token=flops,
        attention_share=min(1.0, attention / flops),
        tied=main.kind == "decoder" and main.tied_head,
        divisible=len(stacks) == 1,
    )
