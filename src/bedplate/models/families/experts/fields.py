"""Fields of config.json that families with experts share."""

from __future__ import annotations

from collections.abc import Collection

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.field_map import (
    Field,
    Values,
    constant,
    converted,
    flag,
    ignored,
    only,
    part,
    real,
    whole,
)
from bedplate.models.families.fields import Fields
from bedplate.models.specs.transformer import Experts, TransformerSpec

TRAINING = ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise")
"""Fields that act in training alone."""


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


def count(*names: str) -> Field:
    """The number of experts, which goes by several names."""
    return converted(names[0], "count", lambda fields, *_: take_count(fields, *names))


def chosen(default: int) -> Field:
    """Experts that see a token; default: where none is said."""
    return whole("num_experts_per_tok", "per_token", default)


def expert_size(default: int) -> Field:
    """Features of one expert; default: where none is said."""
    return whole("moe_intermediate_size", "feedforward_size", default)


AS_DENSE = Field(lambda _, values: {"feedforward_size": values["feedforward_size"]})
"""Experts of the spec's own feed-forward's size."""


def renormalised(default: bool) -> Field:
    """Whether the chosen experts' scores are divided by their sum; default: where it is not said."""
    return flag("norm_topk_prob", "renormalise", default)


def _read_sparse(fields: Fields, values: Values) -> Values:
    step, dense = fields.whole("decoder_sparse_step", 1, null=1), fields.sequence("mlp_only_layers") or []
    first, every = sparse_layers(fields.origin, values["layers"], step, dense)
    return {"first_dense": first, "every": every}


def _sparse_fields(flat: Values, spec: TransformerSpec) -> Values:
    dense = [layer for layer in range(spec.layers) if not spec.has_experts(layer)]
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


SPARSE = Field(_read_sparse, _sparse_fields)
"""Which layers have experts."""


def _read_shared(fields: Fields, values: Values) -> Values:
    return {"shared_size": values["feedforward_size"] * fields.whole("n_shared_experts", 1, null=0)}


def _shared_fields(flat: Values, spec: TransformerSpec) -> Values:
    return {"n_shared_experts": flat["shared_size"] // flat["feedforward_size"]}


def _read_modules(fields: Fields, values: Values) -> Values:
    return {"prediction_modules": fields.layers("num_nextn_predict_layers", fields.layers("num_mtp_layers", 0))}


def sigmoid_experts(*, size: int, first_dense: int, scale: float, groups: int, groups_chosen: int) -> tuple[Field, ...]:
    """DeepSeek-V3's router and experts (https://arxiv.org/abs/2412.19437, section 2.1.2), and its modules that predict
    further tokens. The arguments are what holds where the config says nothing."""
    return (
        only("scoring_func", "sigmoid"),
        only("topk_method", "noaux_tc"),
        only("moe_layer_freq", 1),
        part(
            "experts",
            Experts,
            constant(selection_bias=True, scoring="sigmoid"),
            count("n_routed_experts", "num_local_experts"),
            converted("num_experts_per_tok", "per_token", lambda fields, name, _: fields.size(name)),
            expert_size(size),
            Field(_read_shared, _shared_fields),
            whole("first_k_dense_replace", "first_dense", first_dense, null=0),
            renormalised(True),
            real("routed_scaling_factor", "scale", scale),
            whole("n_group", "groups", groups, null=1),
            whole("topk_group", "groups_chosen", groups_chosen, null=1),
        ),
        Field(_read_modules, lambda flat, _: {"num_nextn_predict_layers": flat["prediction_modules"]}),
        ignored(*TRAINING),
    )
