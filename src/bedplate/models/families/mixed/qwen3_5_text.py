"""The text model of Qwen3.5: Hugging Face's `Qwen3_5ForCausalLM`.

Three layers of four are gated delta networks (https://arxiv.org/abs/2412.06464), the fourth is attention with a gate,
normalised queries and keys, and rotary positions on a quarter of a head. Norms are of 1 + w.
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
    TINY,
    decoder_rules,
    size_fields,
    take_sizes,
)
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.mixed.layers import convolution, layer_types, state_layers
from bedplate.models.families.rope import FULL, rope_parameters, take_rope
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.state_mixers import DeltaRule
from bedplate.models.specs.transformer import Rope, TransformerSpec

_ORIGIN = "config.json (qwen3_5_text)"
LINEAR = "linear_attention"
DELTA = (
    ("attention.qkv", "linear_attn.in_proj_qkv"),
    ("attention.gate", "linear_attn.in_proj_z"),
    ("attention.rate", "linear_attn.in_proj_b"),
    ("attention.step", "linear_attn.in_proj_a"),
    ("attention.norm", "linear_attn.norm"),
    ("attention.output", "linear_attn.out_proj"),
)

HF_WEIGHTS = WeightMap(
    (
        *decoder_rules(*ATTENTION, *QK_NORMS, *DELTA, *GATED, *LLAMA_NORMS),
        convolution("layers.{i}.attention.convolution.weight", "model.layers.{i}.linear_attn.conv1d.weight"),
        renamed("layers.{i}.attention.step_bias", "model.layers.{i}.linear_attn.dt_bias"),
        renamed("layers.{i}.attention.log_decay", "model.layers.{i}.linear_attn.A_log"),
    ),
    # Modules that predict further tokens, which nothing here runs.
    ignorable=(r"mtp\..*",),
)
_TINY: dict[str, Any] = {
    **TINY,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "rms_norm_eps": 0.1,  # what a random state gives is small, and would be noise when it is normalised
}
EXAMPLES = (
    {**_TINY, "layer_types": [LINEAR, FULL, LINEAR]},
    {
        **_TINY,
        "num_hidden_layers": 4,
        "linear_num_value_heads": 2,
        "linear_conv_kernel_dim": 3,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "default", "partial_rotary_factor": 0.5},
    },
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a Qwen3_5ForCausalLM → spec."""
    fields = Fields(of_text(config), _ORIGIN)
    sizes = take_sizes(fields, head_dim=256, context=32_768)
    layers, interval = sizes["layers"], fields.whole("full_attention_interval", 4, null=4)
    types = fields.sequence("layer_types")
    types = [LINEAR if (layer + 1) % interval else FULL for layer in range(layers)] if types is None else types
    fields.only("hidden_act", "silu")
    # Published files say so, and the class knows nothing else; states are of float32 here as there.
    fields.only("attn_output_gate", True)
    fields.only("mamba_ssm_dtype", "float32")
    fields.ignore((*HF_BOOKKEEPING, "attention_dropout", "mlp_only_layers"))
    fields.ignore(("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"))
    pattern = state_layers(types, layers, {LINEAR: True, FULL: False}, _ORIGIN)
    part = take_delta_rule(fields)
    spec = TransformerSpec.from_fields(
        **sizes,
        norm_eps=fields.real("rms_norm_eps", 1e-6),
        norm_offset=1.0,
        qk_norm="head",
        rope=take_rope(fields, _ORIGIN, context=sizes["context_length"], fraction=0.25),
        attention_bias=fields.flag("attention_bias", False),
        attention_gate=True,
        state=part if any(pattern) else None,
        state_layers=pattern if any(pattern) else (),
    )
    fields.finish()
    return spec


def take_delta_rule(fields: Fields) -> DeltaRule:
    """The linear layers' sizes."""
    return DeltaRule(
        heads=fields.whole("linear_num_value_heads", 32),
        key_heads=fields.whole("linear_num_key_heads", 16),
        key_dim=fields.whole("linear_key_head_dim", 128),
        value_dim=fields.whole("linear_value_head_dim", 128),
        width=fields.whole("linear_conv_kernel_dim", 4),
    )


def delta_rule_fields(spec: TransformerSpec) -> dict[str, Any]:
    """The inverse. UnsupportedModelError for a spec whose state is another."""
    part = spec.state.mixer
    if not isinstance(part, DeltaRule):
        raise UnsupportedModelError(f"{_ORIGIN}: a model without a gated delta network cannot be written as one")
    return {
        "linear_num_value_heads": part.heads,
        "linear_num_key_heads": part.key_heads,
        "linear_key_head_dim": part.key_dim,
        "linear_value_head_dim": part.value_dim,
        "linear_conv_kernel_dim": part.width,
        "layer_types": layer_types(spec, LINEAR, FULL),
    }


def of_text(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what says how positions in time, height and width are mixed: of text all three are the same."""
    mixed = ("mrope_section", "mrope_interleaved")
    rope = Fields(config, _ORIGIN).part("rope_parameters")
    return {**config, "rope_parameters": {name: value for name, value in rope.items() if name not in mixed}}


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    rope = spec.position.rope or Rope()
    return (
        size_fields(spec, "qwen3_5_text", "Qwen3_5ForCausalLM")
        | {
            "hidden_act": "silu",
            "rms_norm_eps": spec.norm.eps,
            "attention_bias": spec.attention.bias,
            "rope_parameters": {"partial_rotary_factor": rope.fraction, **rope_parameters(rope)},
        }
        | delta_rule_fields(spec)
    )


# transformers computes the delta rule in float32 in a model of any dtype; in float64 ours is exact to 1e-9, by
# the formula written out (tests/models/test_recurrence.py).
NOISE = 3e-5
HF = Family(("hf", "qwen3_5_text"), from_hf, to_hf, HF_WEIGHTS, examples=EXAMPLES, noise=NOISE)
