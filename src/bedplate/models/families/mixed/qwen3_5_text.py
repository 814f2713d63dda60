"""The text model of Qwen3.5: Hugging Face's `Qwen3_5ForCausalLM`.

Three layers of four are gated delta networks (https://arxiv.org/abs/2412.06464), the fourth is attention with a gate,
normalised queries and keys, and rotary positions on a quarter of a head. Norms are of 1 + w.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families import decoders as hf
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Values, constant, ignored, only, part, whole
from bedplate.models.families.fields import Fields
from bedplate.models.families.rope import FULL, rope
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.parts import DeltaRule

LINEAR = "linear_attention"
DELTA = (
    ("attention.qkv", "linear_attn.in_proj_qkv"),
    ("attention.gate", "linear_attn.in_proj_z"),
    ("attention.rate", "linear_attn.in_proj_b"),
    ("attention.step", "linear_attn.in_proj_a"),
    ("attention.norm", "linear_attn.norm"),
    ("attention.output", "linear_attn.out_proj"),
)

WEIGHTS = WeightMap(
    (
        *hf.decoder_rules(*hf.ATTENTION, *hf.QK_NORMS, *DELTA, *hf.GATED, *hf.LLAMA_NORMS),
        hf.convolution("layers.{i}.attention.convolution.weight", "model.layers.{i}.linear_attn.conv1d.weight"),
        renamed("layers.{i}.attention.step_bias", "model.layers.{i}.linear_attn.dt_bias"),
        renamed("layers.{i}.attention.log_decay", "model.layers.{i}.linear_attn.A_log"),
    ),
    # Modules that predict further tokens, which nothing here runs.
    ignorable=(r"mtp\..*",),
)
_TINY: dict[str, Any] = (
    hf.tiny()
    | {"head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
    | {"linear_key_head_dim": 8, "linear_value_head_dim": 6, "rms_norm_eps": 0.1}
)  # what a random state gives is small, and would be noise when it is normalised
EXAMPLES = (
    {**_TINY, "layer_types": [LINEAR, FULL, LINEAR]},
    _TINY
    | {"num_hidden_layers": 4, "linear_num_value_heads": 2, "linear_conv_kernel_dim": 3}
    | {"attention_bias": True, "tie_word_embeddings": True}
    | {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default", "partial_rotary_factor": 0.5}},
)


def _default_types(fields: Fields, values: Values) -> list[str]:
    interval = fields.whole("full_attention_interval", 4, null=4)
    return [LINEAR if (layer + 1) % interval else FULL for layer in range(values["layers"])]


_RULE = part(
    "state",
    DeltaRule,
    whole("linear_num_value_heads", "heads", 32),
    whole("linear_num_key_heads", "key_heads", 16),
    whole("linear_key_head_dim", "key_dim", 128),
    whole("linear_value_head_dim", "value_dim", 128),
    whole("linear_conv_kernel_dim", "width", 4),
)


QWEN_FIELDS = (
    *hf.sizes(head_dim=256, context=32_768),
    hf.rms_norm(1e-6),
    constant(norm_offset=1.0, qk_norm="head", attention_gate=True),
    rope(fraction=0.25, writes_theta=False, writes_fraction=True),
    hf.ATTENTION_BIAS,
    hf.SILU,
    hf.state_layers(_RULE, {LINEAR: True, FULL: False}, _default_types),
)
FIELDS = (
    *QWEN_FIELDS,
    # Published files say so, and the class knows nothing else; states are of float32 here as there.
    only("attn_output_gate", True),
    only("mamba_ssm_dtype", "float32"),
    ignored("mlp_only_layers", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"),
)


def _of_text(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what says how positions in time, height and width are mixed: of text all three are the same."""
    mixed = ("mrope_section", "mrope_interleaved")
    parameters = Fields(config, "config.json (qwen3_5_text)").part("rope_parameters")
    return {**config, "rope_parameters": {name: value for name, value in parameters.items() if name not in mixed}}


# transformers computes the delta rule in float32 in a model of any dtype; in float64 ours is exact to 1e-9, by
# the formula written out (tests/models/test_recurrence.py).
NOISE = 3e-5
HF = hf_family(
    "qwen3_5_text", "Qwen3_5ForCausalLM", FIELDS, weights=WEIGHTS, examples=EXAMPLES, prepare=_of_text, noise=NOISE
)
