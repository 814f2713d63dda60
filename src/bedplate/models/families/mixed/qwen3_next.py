"""The qwen3_next family: Hugging Face's `Qwen3NextForCausalLM`.

Qwen3.5's layers with experts, one of them shared behind a gate; the linear layers' projections stand together in two
tensors, key head by key head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.decoders import (
    ATTENTION,
    GATED,
    LLAMA_NORMS,
    QK_NORMS,
    decoder_rules,
    size_fields,
    take_sizes,
)
from bedplate.models.families.experts.expert_weights import expert_rules
from bedplate.models.families.experts.fields import TRAINING, dense_layers, sparse_layers, take_count
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.mixed import qwen3_5_text
from bedplate.models.families.mixed.layers import convolution, state_layers
from bedplate.models.families.mixed.qwen3_5_text import LINEAR, NOISE, delta_rule_fields, take_delta_rule
from bedplate.models.families.rope import FULL, rope_parameters, take_rope
from bedplate.models.families.weights import Rule, Tensors, WeightMap, join, renamed
from bedplate.models.specs.state_mixers import DeltaRule
from bedplate.models.specs.transformer import Experts, Rope, TransformerSpec

_ORIGIN = "config.json (qwen3_next)"
_LINEAR, _MLP = "model.layers.{i}.linear_attn", "model.layers.{i}.mlp"


def _delta(spec: TransformerSpec) -> DeltaRule:
    assert isinstance(spec.state.mixer, DeltaRule)
    return spec.state.mixer


def _queries_to_gates(spec: TransformerSpec) -> list[int]:
    """Rows of one key head's query, key, values and gates."""
    part = _delta(spec)
    shared = part.heads // part.key_heads * part.value_dim
    return [part.key_dim, part.key_dim, shared, shared]


def _rates_and_steps(spec: TransformerSpec) -> list[int]:
    part = _delta(spec)
    return [part.heads // part.key_heads] * 2


def _by_key_heads(parts: Tensors, spec: TransformerSpec) -> Any:
    """Tensors of all heads as one, each key head's rows of all of them together."""
    heads, trailing = _delta(spec).key_heads, parts[0].shape[1:]
    cut = [tensor.reshape(heads, -1, *trailing) for tensor in parts]
    whole = parts[0].new_empty((heads, sum(piece.shape[1] for piece in cut), *trailing))
    begin = 0
    for block in cut:
        whole[:, begin : begin + block.shape[1]] = block
        begin += block.shape[1]
    return whole.reshape(-1, *trailing)


def _of_all_heads(whole: Any, sizes: list[int], spec: TransformerSpec) -> list[Any]:
    """The inverse."""
    parts = whole.reshape(_delta(spec).key_heads, -1, *whole.shape[1:]).split(sizes, dim=1)
    return [part.reshape(-1, *whole.shape[1:]).clone() for part in parts]


def _fuse(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    qkv, gate = tensors
    part = _delta(spec)
    keys = part.key_heads * part.key_dim
    return [_by_key_heads([*qkv.split((keys, keys, part.heads * part.value_dim)), gate], spec)]


def _split(tensors: Tensors, spec: TransformerSpec) -> Tensors:
    *qkv, gate = _of_all_heads(tensors[0], _queries_to_gates(spec), spec)
    return [*join(qkv, spec), gate]


HF_WEIGHTS = WeightMap(
    (
        *decoder_rules(
            *ATTENTION,
            *QK_NORMS,
            *GATED,
            *LLAMA_NORMS,
            ("attention.norm", "linear_attn.norm"),
            ("attention.output", "linear_attn.out_proj"),
            *((f"feedforward.shared.{name}", f"mlp.shared_expert.{name}_proj") for name in ("gate", "up", "down")),
            ("feedforward.shared_gate", "mlp.shared_expert_gate"),
        ),
        Rule(
            ("layers.{i}.attention.qkv.weight", "layers.{i}.attention.gate.weight"),
            (f"{_LINEAR}.in_proj_qkvz.weight",),
            _fuse,
            _split,
        ),
        Rule(
            ("layers.{i}.attention.rate.weight", "layers.{i}.attention.step.weight"),
            (f"{_LINEAR}.in_proj_ba.weight",),
            lambda tensors, spec: [_by_key_heads(tensors, spec)],
            lambda tensors, spec: _of_all_heads(tensors[0], _rates_and_steps(spec), spec),
        ),
        convolution("layers.{i}.attention.convolution.weight", f"{_LINEAR}.conv1d.weight"),
        renamed("layers.{i}.attention.step_bias", f"{_LINEAR}.dt_bias"),
        renamed("layers.{i}.attention.log_decay", f"{_LINEAR}.A_log"),
        renamed("layers.{i}.feedforward.router.weight", f"{_MLP}.gate.weight"),
        *expert_rules(_MLP),
    ),
    ignorable=(r"mtp\..*",),
)
_EXPERTS: dict[str, Any] = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 20,
}
EXAMPLES = (
    {**qwen3_5_text.EXAMPLES[0], **_EXPERTS},
    {**qwen3_5_text.EXAMPLES[1], **_EXPERTS, "mlp_only_layers": [0], "norm_topk_prob": False},
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a Qwen3NextForCausalLM → spec."""
    fields = Fields(config, _ORIGIN)
    sizes = take_sizes(fields, head_dim=256, context=32_768)
    layers, interval = sizes["layers"], fields.whole("full_attention_interval", 4, null=4)
    types = fields.sequence("layer_types")
    types = [LINEAR if (layer + 1) % interval else FULL for layer in range(layers)] if types is None else types
    pattern = state_layers(types, layers, {LINEAR: True, FULL: False}, _ORIGIN)
    step, dense = fields.whole("decoder_sparse_step", 1, null=1), fields.sequence("mlp_only_layers") or []
    first, expert_interval = sparse_layers(_ORIGIN, layers, step, dense)
    experts = Experts(
        take_count(fields, "num_experts", "num_local_experts"),
        fields.whole("num_experts_per_tok", 10),
        fields.whole("moe_intermediate_size", 512),
        shared_size=fields.whole("shared_expert_intermediate_size", 512),
        shared_gate=True,
        renormalise=fields.flag("norm_topk_prob", True),
        first_dense=first,
        every=expert_interval,
    )
    fields.only("hidden_act", "silu")
    fields.only("use_sliding_window", False)
    fields.ignore((*HF_BOOKKEEPING, "attention_dropout", *TRAINING))
    part = take_delta_rule(fields)
    spec = TransformerSpec.from_fields(
        **sizes,
        norm_eps=fields.real("rms_norm_eps", 1e-6),
        norm_offset=1.0,
        qk_norm="head",
        rope=take_rope(fields, _ORIGIN, context=sizes["context_length"], fraction=0.25),
        attention_bias=fields.flag("attention_bias", False),
        attention_gate=True,
        experts=experts,
        state=part if any(pattern) else None,
        state_layers=pattern if any(pattern) else (),
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    rope, part = spec.position.rope or Rope(), spec.experts
    if part is None:
        raise UnsupportedModelError(f"{_ORIGIN}: a model without experts is written as qwen3_5_text")
    return (
        size_fields(spec, "qwen3_next", "Qwen3NextForCausalLM")
        | {
            "hidden_act": "silu",
            "rms_norm_eps": spec.norm.eps,
            "attention_bias": spec.attention.bias,
            "rope_parameters": {"partial_rotary_factor": rope.fraction, **rope_parameters(rope)},
            "num_experts": part.count,
            "num_experts_per_tok": part.per_token,
            "moe_intermediate_size": part.feedforward_size,
            "shared_expert_intermediate_size": part.shared_size,
            "norm_topk_prob": part.renormalise,
            "decoder_sparse_step": 1,
            "mlp_only_layers": dense_layers(spec),
        }
        | delta_rule_fields(spec)
    )


HF = Family(("hf", "qwen3_next"), from_hf, to_hf, HF_WEIGHTS, examples=EXAMPLES, noise=NOISE)
