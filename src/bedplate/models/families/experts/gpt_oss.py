"""The gpt_oss family (https://arxiv.org/abs/2508.10925): Hugging Face's `GptOssForCausalLM`.

Its published files hold the experts' matrices in MXFP4 blocks, which are read as the numbers they stand for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import (
    ATTENTION,
    IGNORABLE,
    LLAMA_NORMS,
    TINY,
    decoder_rules,
    size_fields,
    take_sizes,
    take_windows,
    window_fields,
)
from bedplate.models.families.experts.expert_weights import interleaved_rules
from bedplate.models.families.experts.fields import TRAINING, take_count
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.rope import FULL, SLIDING, rope_parameters, take_rope
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.transformer import Experts, Rope, TransformerSpec

_ORIGIN = "config.json (gpt_oss)"
_MLP = "model.layers.{i}.mlp"
# What transformers takes where a config has no rope.
_YARN = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}

WEIGHTS = WeightMap(
    rules=(
        *decoder_rules(*LLAMA_NORMS, *ATTENTION),
        renamed("layers.{i}.attention.sinks", "model.layers.{i}.self_attn.sinks"),
        *(renamed(f"layers.{{i}}.feedforward.router.{part}", f"{_MLP}.router.{part}") for part in ("weight", "bias")),
        *interleaved_rules(_MLP),
    ),
    ignorable=IGNORABLE,
)
_TINY = {
    **TINY,
    "head_dim": 16,
    "intermediate_size": 32,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "sliding_window": 6,
    "rope_parameters": _YARN | {"rope_theta": 150_000.0, "factor": 8.0, "original_max_position_embeddings": 16},
}
EXAMPLES = (_TINY, _TINY | {"num_hidden_layers": 2, "layer_types": [FULL, SLIDING], "attention_bias": False})


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a GptOssForCausalLM → spec."""
    has_rope = config.get("rope_parameters") or config.get("rope_scaling")
    fields = Fields(config if has_rope else {**config, "rope_parameters": _YARN}, _ORIGIN)
    sizes = take_sizes(fields, head_dim=64, context=131_072)
    _check(fields)
    part = Experts(
        take_count(fields, "num_local_experts", "num_experts"),
        take_count(fields, "num_experts_per_tok", "experts_per_token"),
        sizes["feedforward_size"],
        router_bias=True,
        bias=True,
        scoring="softmax_chosen",
    )
    spec = TransformerSpec.from_fields(
        **sizes,
        activation="clamped_silu",
        norm_eps=fields.real("rms_norm_eps", 1e-5),
        rope=take_rope(fields, _ORIGIN, context=sizes["context_length"], theta=150_000.0),
        attention_bias=fields.flag("attention_bias", True),
        attention_sinks=True,
        windows=take_windows(fields, sizes["layers"], fields.optional("sliding_window", 128), (SLIDING, FULL), _ORIGIN),
        experts=part,
    )
    fields.finish()
    return spec


def _check(fields: Fields) -> None:
    fields.only("hidden_act", "silu")
    fields.only("swiglu_alpha", 1.702)
    fields.only("swiglu_limit", 7.0)
    blocks = fields.pop("quantization_config") or {"quant_method": "mxfp4"}
    Fields({"quant_method": blocks.get("quant_method")}, f"{_ORIGIN} quantization_config").only("quant_method", "mxfp4")
    # The context before it was extended, which the rope says as well.
    fields.ignore((*HF_BOOKKEEPING, *TRAINING, "attention_dropout", "initial_context_length"))


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    part = spec.experts
    assert part is not None
    return size_fields(spec, "gpt_oss", "GptOssForCausalLM") | {
        "rms_norm_eps": spec.norm.eps,
        "hidden_act": "silu",
        "rope_parameters": rope_parameters(spec.position.rope or Rope()),
        "attention_bias": spec.attention.bias,
        **window_fields(spec),
        "num_local_experts": part.count,
        "num_experts_per_tok": part.per_token,
    }


HF = Family(("hf", "gpt_oss"), from_hf, to_hf, WEIGHTS, (("gguf", "gpt-oss"),), examples=EXAMPLES)
