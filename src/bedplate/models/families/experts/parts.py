"""What families with experts share: fields of config.json, and rules for weights, which checkpoints hold expert by
expert, or of all experts in one tensor.

Ours are `gate_up` [experts, 2 · features, hidden], the gates before the others, and `down` [experts, hidden, features].
Without torch, as all rules are.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.models.families import decoders as hf
from bedplate.models.families import field_map as row
from bedplate.models.families import weights as rules
from bedplate.models.families.field_map import Field, Values
from bedplate.models.families.fields import Fields
from bedplate.models.families.weights import LAYER, Rule, Tensors, WeightMap
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
    for first, every in itertools.product(range(layers), {1, step}):
        experts = Experts(1, 1, 1, first_dense=first, every=every)
        if [experts.in_layer(layer) for layer in range(layers)] == sparse:
            return first, every
    raise UnsupportedModelError(
        f"{origin}: mlp_only_layers = {sorted(dense)} with decoder_sparse_step = {step} is not supported "
        "(only layers without experts before those with)"
    )


def count(*names: str, ours: str = "count") -> Field:
    """The number of experts, or another one, which goes by several names."""
    return row.converted(names[0], ours, lambda fields, *_: take_count(fields, *names))


def chosen(default: int) -> Field:
    """Experts that see a token; default: where none is said."""
    return row.whole("num_experts_per_tok", "per_token", default)


def expert_size(default: int) -> Field:
    """Features of one expert; default: where none is said."""
    return row.whole("moe_intermediate_size", "feedforward_size", default)


AS_DENSE = Field(lambda _, values: {"feedforward_size": values["feedforward_size"]})
"""Experts of the spec's own feed-forward's size."""


def renormalised(default: bool) -> Field:
    """Whether the chosen experts' scores are divided by their sum; default: where it is not said."""
    return row.flag("norm_topk_prob", "renormalise", default)


def _read_sparse(fields: Fields, values: Values) -> Values:
    step, dense = fields.whole("decoder_sparse_step", 1, null=1), fields.sequence("mlp_only_layers") or []
    first, every = sparse_layers(fields.origin, values["layers"], step, dense)
    return {"first_dense": first, "every": every}


def _sparse_fields(flat: Values, spec: TransformerSpec) -> Values:
    dense = [layer for layer in range(spec.layers) if not spec.has_experts(layer)]
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


SPARSE = Field(_read_sparse, _sparse_fields)
"""Which layers have experts."""


def sigmoid_experts(*, size: int, first_dense: int, scale: float, groups: int, groups_chosen: int) -> tuple[Field, ...]:
    """DeepSeek-V3's router and experts (https://arxiv.org/abs/2412.19437, section 2.1.2), and its modules that predict
    further tokens. The arguments are what holds where the config says nothing."""
    return (
        row.only("scoring_func", "sigmoid"),
        row.only("topk_method", "noaux_tc"),
        row.only("moe_layer_freq", 1),
        row.part(
            "experts",
            Experts,
            row.constant(selection_bias=True, scoring="sigmoid"),
            count("n_routed_experts", "num_local_experts"),
            row.converted("num_experts_per_tok", "per_token", lambda fields, name, _: fields.size(name)),
            expert_size(size),
            Field(
                lambda fields, values: {
                    "shared_size": values["feedforward_size"] * fields.whole("n_shared_experts", 1, null=0)
                },
                lambda flat, _: {"n_shared_experts": flat["shared_size"] // flat["feedforward_size"]},
            ),
            row.whole("first_k_dense_replace", "first_dense", first_dense, null=0),
            renormalised(True),
            row.real("routed_scaling_factor", "scale", scale),
            row.whole("n_group", "groups", groups, null=1),
            row.whole("topk_group", "groups_chosen", groups_chosen, null=1),
        ),
        row.converted(
            "num_nextn_predict_layers",
            "prediction_modules",
            lambda fields, name, _: fields.layers(name, fields.layers("num_mtp_layers", 0)),
        ),
        row.ignored(*TRAINING),
    )


# --- the experts' weights

GATE_UP, DOWN = "layers.{i}.feedforward.experts.gate_up", "layers.{i}.feedforward.experts.down"

# The sixteen values of MXFP4's four bits: two of exponent, one of mantissa, the highest the sign (OCP Microscaling
# Formats 1.0, section 5.3.3), and the 256 powers of two that one byte scales 32 of them by (section 5.4.1).
_HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = (*_HALF, *(-value for value in _HALF))
_POWERS = (*(2.0 ** (number - 127) for number in range(255)), float("nan"))


def expert_rules(mlp: str, parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> tuple[Rule, ...]:
    """Experts under `mlp` (with {i}): one tensor for each part of each (what transformers writes), or all experts in
    one (how it holds them)."""
    gate, up, down = (f"{mlp}.experts.{{e}}.{part}.weight" for part in parts)
    return (
        Rule((f"{GATE_UP}.weight",), (gate, up), gate_and_up, gate_up),
        Rule((f"{DOWN}.weight",), (down,), rules.unstack, rules.stack),
        *stacked_rules(),
    )


def stacked_rules(
    prefix: str = "model.layers.{i}.mlp.experts", ours: str = "layers.{i}.feedforward.experts"
) -> tuple[Rule, ...]:
    """Rules for all experts in one tensor, laid out as ours."""
    pairs = (("gate_up", "gate_up_proj"), ("down", "down_proj"))
    return tuple(rules.renamed(f"{ours}.{projection}.weight", f"{prefix}.{theirs}") for projection, theirs in pairs)


def gate_up(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    """Every expert's gate, and then every expert's other product, as one tensor with each expert's gate on top."""
    rules.need_alike(tensors)
    count = len(tensors) // 2
    rows = len(tensors[0])
    whole = tensors[0].new_empty((count, 2 * rows, *tensors[0].shape[1:]))
    for number, (gate, up) in enumerate(zip(tensors[:count], tensors[count:], strict=True)):
        whole[number, :rows] = gate
        whole[number, rows:] = up
    return [whole]


def gate_and_up(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    """The inverse of `gate_up`."""
    (whole,) = tensors
    rows = whole.shape[1] // 2
    return [part.clone() for half in (whole[:, :rows], whole[:, rows:]) for part in half]


def interleaved_rules(mlp: str) -> tuple[Rule, ...]:
    """gpt-oss: all experts in one tensor, inputs before outputs, gates and others by turns; or its matrices in MXFP4
    blocks, outputs before inputs."""
    gate_up_proj, down_proj = f"{mlp}.experts.gate_up_proj", f"{mlp}.experts.down_proj"
    return (
        rules.turned(Rule((f"{GATE_UP}.weight",), (gate_up_proj,), _to_turns, _from_turns)),
        rules.transposed(f"{DOWN}.weight", down_proj),
        Rule((f"{GATE_UP}.bias",), (f"{gate_up_proj}_bias",), _to_turns, _from_turns),
        rules.renamed(f"{DOWN}.bias", f"{down_proj}_bias"),
        Rule(
            (f"{GATE_UP}.weight",), (f"{gate_up_proj}_blocks", f"{gate_up_proj}_scales"), _unwritten, _turns_of_blocks
        ),
        Rule((f"{DOWN}.weight",), (f"{down_proj}_blocks", f"{down_proj}_scales"), _unwritten, _of_blocks),
    )


def mxfp4(blocks: Any, scales: Any) -> Any:
    """The numbers [..., 32 · groups], bfloat16, none of them rounded: bytes [..., groups, 16], the lower half of each
    before the upper, and a byte for each group [..., groups]."""
    if blocks.shape[:-1] != scales.shape or blocks.shape[-1] != 16:
        raise CheckpointError(
            f"MXFP4 blocks of shape {list(blocks.shape)} do not fit scales of shape {list(scales.shape)}: "
            "they must be [..., groups, 16] and [..., groups]"
        )
    reference = scales.bfloat16()
    values, powers = reference.new_tensor(_VALUES), reference.new_tensor(_POWERS)
    whole = reference.new_empty((*blocks.shape, 2))
    whole[..., 0] = values[(blocks & 15).int()]
    whole[..., 1] = values[(blocks >> 4).int()]
    whole *= powers[scales.int()][..., None, None]
    return whole.flatten(-3)


def _of_blocks(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    blocks, scales = tensors
    return [mxfp4(blocks, scales)]


def _turns_of_blocks(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    return _from_turns(_of_blocks(tensors, spec), spec)


def _unwritten(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    raise CheckpointError("experts are not written in MXFP4")


def _from_turns(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    """Rows of gates and others by turns → the gates' before the others'."""
    return [_turned(tensor, (-1, 2)) for tensor in tensors]


def _to_turns(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    return [_turned(tensor, (2, -1)) for tensor in tensors]


def _turned(tensor: Any, pairs: tuple[int, int]) -> Any:
    return tensor.unflatten(1, pairs).transpose(1, 2).flatten(1, 2).contiguous()


# --- modules that predict further tokens, which DeepSeek-V3's files number like layers after the last

_COPIES = (r"model\.layers\.\d+\.(embed_tokens|shared_head\.head)\.weight",)
"""Each module's files hold the token table and the head once more."""


def _prediction_rules(layer_rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules of the modules, whose blocks are stored as those of the layers."""
    ours, theirs = "layers.{i}.", "model.layers.{m}."
    return (
        rules.renamed("predictions.{m}.token_norm.weight", f"{theirs}enorm.weight"),
        rules.renamed("predictions.{m}.state_norm.weight", f"{theirs}hnorm.weight"),
        rules.renamed("predictions.{m}.join.weight", f"{theirs}eh_proj.weight"),
        rules.renamed("predictions.{m}.norm.weight", f"{theirs}shared_head.norm.weight"),
        *(
            replace(
                rule,
                ours=tuple(f"predictions.{{m}}.block.{name.removeprefix(ours)}" for name in rule.ours),
                theirs=tuple(name.replace("{i}", "{m}") for name in rule.theirs),
            )
            for rule in layer_rules
        ),
    )


def held_modules(spec: TransformerSpec, names: Collection[str]) -> TransformerSpec:
    """With as many modules as the files hold: a config speaks of them also where they were left out."""
    module_layers = {
        match[1] for name in names if (match := re.fullmatch(r"model\.layers\.(\d+)\.eh_proj\.weight", name))
    }
    return spec.with_(prediction_modules=len(module_layers))


MLP = "model.layers.{i}.mlp"
ROUTER = rules.renamed("layers.{i}.feedforward.router.weight", f"{MLP}.gate.weight")
EXPERT_WEIGHTS = hf.decoder_weights(
    *hf.LLAMA_NORMS, *hf.ATTENTION, *hf.QK_NORMS, *hf.GATED, more=(ROUTER, *expert_rules(MLP))
)
"""Those of most decoders with experts."""


def predicting_weights(*attention: tuple[str, str]) -> WeightMap:
    """DeepSeek-V3's names: experts beside a shared one, and modules that predict further tokens. attention: the pairs
    of names of its parts."""
    shared = ((f"feedforward.shared.{name}", f"mlp.shared_experts.{name}_proj") for name in ("gate", "up", "down"))
    layer = (
        *rules.renames(*hf.LLAMA_NORMS, *attention, *hf.GATED, *shared, ours=LAYER, theirs="model.layers.{i}."),
        ROUTER,
        rules.renamed("layers.{i}.feedforward.router.selection_bias", f"{MLP}.gate.e_score_correction_bias"),
        *expert_rules(MLP),
    )
    return WeightMap((*hf.decoder_rules(), *layer, *_prediction_rules(layer)), (*hf.IGNORABLE, *_COPIES))
