"""Fields of config.json that families with experts share."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.fields import Fields
from bedplate.models.specs.transformer import Experts, TransformerSpec

TRAINING = ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise")
"""Of training alone."""


def take_count(fields: Fields, *names: str) -> int:
    """A number that goes by several names. UnsupportedModelError where they do not agree, or there is none."""
    counts = {name: count for name in names if (count := fields.whole(name)) is not None}
    if len(set(counts.values())) > 1:
        listing = ", ".join(f"{name} = {count}" for name, count in counts.items())
        raise UnsupportedModelError(f"{listing}: they mean the same number; correct one of them")
    return next(iter(counts.values())) if counts else fields.size(names[0])


def sparse_layers(origin: str, layers: int, step: int, dense: Collection[int]) -> tuple[int, int]:
    """`first_dense` and `every` of a model whose every `step`th layer has experts, but for those in `dense`."""
    sparse = [layer not in dense and (layer + 1) % step == 0 for layer in range(layers)]
    for first in range(layers):
        for interval in {1, step}:
            experts = Experts(1, 1, 1, first_dense=first, every=interval)
            if [experts.in_layer(layer) for layer in range(layers)] == sparse:
                return first, interval
    raise UnsupportedModelError(
        f"{origin}: mlp_only_layers = {sorted(dense)} with decoder_sparse_step = {step} is not supported "
        "(only layers without experts before those with)"
    )


def dense_layers(spec: TransformerSpec) -> list[int]:
    """The layers without experts."""
    return [layer for layer in range(spec.layers) if not spec.has_experts(layer)]


def sigmoid_experts(
    fields: Fields, size: int, *, first_dense: int, scale: float, groups: int, groups_chosen: int
) -> Experts:
    """DeepSeek-V3's router and experts of `size` features (https://arxiv.org/abs/2412.19437, section 2.1.2). The rest
    is what holds where the config says nothing."""
    fields.only("scoring_func", "sigmoid")
    fields.only("topk_method", "noaux_tc")
    fields.only("moe_layer_freq", 1)
    return Experts(
        count=take_count(fields, "n_routed_experts", "num_local_experts"),
        per_token=fields.size("num_experts_per_tok"),
        feedforward_size=size,
        shared_size=size * fields.whole("n_shared_experts", 1, null=0),
        first_dense=fields.whole("first_k_dense_replace", first_dense, null=0),
        selection_bias=True,
        scoring="sigmoid",
        renormalise=fields.flag("norm_topk_prob", True),
        scale=fields.real("routed_scaling_factor", scale),
        groups=fields.whole("n_group", groups, null=1),
        groups_chosen=fields.whole("topk_group", groups_chosen, null=1),
    )


def sigmoid_fields(spec: TransformerSpec) -> dict[str, Any]:
    """The inverse of `sigmoid_experts`."""
    part = spec.experts
    assert part is not None
    return {
        "n_routed_experts": part.count,
        "num_experts_per_tok": part.per_token,
        "moe_intermediate_size": part.feedforward_size,
        "n_shared_experts": part.shared_size // part.feedforward_size,
        "first_k_dense_replace": part.first_dense,
        "norm_topk_prob": part.renormalise,
        "routed_scaling_factor": part.scale,
        "n_group": part.groups,
        "topk_group": part.groups_chosen,
        "num_nextn_predict_layers": spec.prediction_modules,
    }
