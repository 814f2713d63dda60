"""The granitemoehybrid family (Granite 4.0): Hugging Face's `GraniteMoeHybridForCausalLM`.

Most layers are Mamba-2 (https://arxiv.org/abs/2405.21060), some attention, mostly without positions; the feed-forward
is dense, or experts beside a shared one. Embeddings, scores, residuals and logits have factors of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families import decoders as hf
from bedplate.models.families.dense.granite import multipliers
from bedplate.models.families.experts.parts import DOWN, GATE_UP, TRAINING
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values, flag, ignored, only, part, whole
from bedplate.models.families.fields import Fields
from bedplate.models.families.rope import FULL, rope_parameters, take_rope
from bedplate.models.families.weights import WeightMap, fused, halves, renamed
from bedplate.models.specs.parts import Mamba2
from bedplate.models.specs.transformer import Experts, TransformerSpec

_LINEAR = "linear_attention"
_STATEFUL = {_LINEAR: True, "mamba": True, FULL: False, "attention": False}
_MAMBA, _EXPERTS = "model.layers.{i}.mamba", "model.layers.{i}.block_sparse_moe"

WEIGHTS = WeightMap(
    (
        *hf.decoder_rules(
            *hf.ATTENTION,
            *hf.LLAMA_NORMS,
            ("attention.input", "mamba.in_proj"),
            ("attention.norm", "mamba.norm"),
            ("attention.output", "mamba.out_proj"),
            ("feedforward.down", "shared_mlp.output_linear"),
            ("feedforward.shared.down", "shared_mlp.output_linear"),
        ),
        # The shared expert, or all of the feed-forward where there are no others.
        *(
            fused(
                (f"layers.{{i}}.{ours}.gate.weight", f"layers.{{i}}.{ours}.up.weight"),
                "model.layers.{i}.shared_mlp.input_linear.weight",
                halves,
            )
            for ours in ("feedforward", "feedforward.shared")
        ),
        *(
            renamed(ours, f"{_EXPERTS}.{theirs}")
            for ours, *names in (
                (f"{GATE_UP}.weight", "input_linear.weight", "experts.gate_up_proj"),
                (f"{DOWN}.weight", "output_linear.weight", "experts.down_proj"),
                ("layers.{i}.feedforward.router.weight", "router.layer.weight", "router.weight"),
            )
            for theirs in names
        ),
        hf.convolution("layers.{i}.attention.convolution.weight", f"{_MAMBA}.conv1d.weight"),
        renamed("layers.{i}.attention.convolution.bias", f"{_MAMBA}.conv1d.bias"),
        renamed("layers.{i}.attention.step_bias", f"{_MAMBA}.dt_bias"),
        renamed("layers.{i}.attention.log_decay", f"{_MAMBA}.A_log"),
        renamed("layers.{i}.attention.skip", f"{_MAMBA}.D"),
    )
)
_TINY: dict[str, Any] = (
    hf.tiny()
    | {"shared_intermediate_size": 80, "num_local_experts": 0, "num_experts_per_tok": 0}
    | {"mamba_n_heads": 12, "mamba_d_state": 10, "mamba_n_groups": 2}
)
EXAMPLES = (
    _TINY
    | {"layer_types": [_LINEAR, FULL, _LINEAR], "embedding_multiplier": 3.0}
    | {"attention_multiplier": 0.2, "residual_multiplier": 0.4, "logits_scaling": 2.0}
    | {"tie_word_embeddings": True, "num_local_experts": 6, "num_experts_per_tok": 2}
    | {"intermediate_size": 24},
    _TINY
    | {"num_hidden_layers": 2, "layer_types": [FULL, _LINEAR], "position_embedding_type": "rope"}
    | {"attention_multiplier": 0.3, "attention_bias": True, "mamba_proj_bias": True}
    | {"mamba_conv_bias": False, "mamba_d_conv": 3, "mamba_n_groups": 1, "mamba_n_heads": 8}
    | {"mamba_chunk_size": 8},
)


def _read_experts(fields: Fields, values: Values) -> Values:
    shared = fields.whole("shared_intermediate_size", 1024)
    count, chosen = (fields.whole(name, 0, null=0) for name in ("num_local_experts", "num_experts_per_tok"))
    size = values["feedforward_size"]
    experts = Experts(count, chosen, size, shared_size=shared, scoring="softmax_chosen") if count else None
    return {"feedforward_size": shared, "experts": experts}


def _expert_fields(flat: Values, spec: TransformerSpec) -> Values:
    experts, shared = flat["experts"], flat["feedforward_size"]
    return {
        "shared_intermediate_size": shared,
        "num_local_experts": 0 if experts is None else experts.count,
        "num_experts_per_tok": 0 if experts is None else experts.per_token,
        "intermediate_size": shared if experts is None else experts.feedforward_size,
    }


def _read_rope(fields: Fields, values: Values) -> Values:
    rope = take_rope(fields, context=values["context_length"])
    has_rope = fields.choice("position_embedding_type", None, "rope", "nope") == "rope"
    return {"rope": rope if has_rope else None}


def _rope_fields(flat: Values, spec: TransformerSpec) -> Values:
    if flat["rope"] is None:
        return {"position_embedding_type": None}
    return {"position_embedding_type": "rope", "rope_parameters": rope_parameters(flat["rope"])}


def _read_inner(fields: Fields, values: Values) -> Values:
    heads, size = values["heads"], fields.pop("mamba_d_head", "auto")
    inner = int(fields.pop("mamba_expand", 2) * values["hidden_size"])
    head_dim = inner // heads if size == "auto" else int(size)
    if heads * head_dim != inner:
        raise UnsupportedModelError(f"{fields.origin}: {heads} heads of {head_dim} are not the {inner} of mamba_expand")
    low, high = (_number(limit) for limit in fields.pop("time_step_limit") or (0.0, float("inf")))
    return {"head_dim": head_dim, "step_limits": (low, high)}


def _inner_fields(flat: Values, spec: TransformerSpec) -> Values:
    inner, limits = flat["heads"] * flat["head_dim"], flat["step_limits"]
    sizes = {"mamba_d_head": flat["head_dim"], "mamba_expand": inner // spec.hidden_size}
    return sizes if limits == Mamba2.step_limits else sizes | {"time_step_limit": list(limits)}


def _number(value: Any) -> float:
    """A number, also where transformers wrote it as {"__float__": "Infinity"}."""
    return float(value["__float__"] if isinstance(value, Mapping) else value)


_MAMBA_PART = part(
    "state",
    Mamba2,
    whole("mamba_n_heads", "heads", 128),
    Field(_read_inner, _inner_fields),
    whole("mamba_n_groups", "groups", 1),
    whole("mamba_d_state", "state_dim", 256),
    whole("mamba_d_conv", "width", 4),
    flag("mamba_conv_bias", "convolution_bias", True),
    flag("mamba_proj_bias", "bias", False),
)


def _write_mamba(flat: Values, spec: TransformerSpec) -> Values:
    # Of a model without such layers transformers wants sizes that fit all the same.
    mixer = Mamba2(1, 2 * spec.hidden_size, groups=1, state_dim=1) if flat["state"] is None else flat["state"]
    if not isinstance(mixer, Mamba2) or mixer.inner % spec.hidden_size:
        raise UnsupportedModelError(
            "granitemoehybrid: only a model with Mamba-2 layers, a multiple of its features wide"
        )
    return _MAMBA_PART.write({**flat, "state": mixer}, spec)


FIELDS = (
    *hf.sizes(),
    hf.rms_norm(1e-6),
    Field(_read_experts, _expert_fields),
    Field(_read_rope, _rope_fields),
    hf.ATTENTION_BIAS,
    multipliers(digits=None),
    hf.SILU,
    hf.state_layers(
        Field(_MAMBA_PART.read, _write_mamba),
        _STATEFUL,
        lambda _, values: [_LINEAR] * values["layers"],
        older="layers_block_type",
    ),
    only("normalization_function", "rmsnorm"),
    ignored(*TRAINING, "mamba_chunk_size", "init_method"),
)

HF = hf_family("granitemoehybrid", "GraniteMoeHybridForCausalLM", FIELDS, weights=WEIGHTS, examples=EXAMPLES)
