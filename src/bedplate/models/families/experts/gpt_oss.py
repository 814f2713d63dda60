"""The gpt_oss family (https://arxiv.org/abs/2508.10925): Hugging Face's `GptOssForCausalLM`.

Its published files hold the experts' matrices in MXFP4 blocks, which are read as the numbers they stand for. GGUF's
`gpt-oss` says neither that YaRN's bounds are not whole numbers, nor that there are biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bedplate.models.families import decoders as hf
from bedplate.models.families import gguf_metadata as gguf
from bedplate.models.families.experts.parts import AS_DENSE, MLP, TRAINING, count, interleaved_rules
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values, constant, flag, ignored, only, part
from bedplate.models.families.fields import Fields
from bedplate.models.families.gguf_family import decoder_weights as gguf_weights
from bedplate.models.families.gguf_family import experts, gguf_family
from bedplate.models.families.rope import FULL, SLIDING, rope
from bedplate.models.families.weights import renamed
from bedplate.models.specs.position import YarnScaling
from bedplate.models.specs.transformer import Experts

# What transformers takes where a config has no rope.
_YARN = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}

WEIGHTS = hf.decoder_weights(
    *hf.LLAMA_NORMS,
    *hf.ATTENTION,
    more=(
        renamed("layers.{i}.attention.sinks", "model.layers.{i}.self_attn.sinks"),
        *(renamed(f"layers.{{i}}.feedforward.router.{part}", f"{MLP}.router.{part}") for part in ("weight", "bias")),
        *interleaved_rules(MLP),
    ),
)
_TINY = (
    hf.tiny()
    | {"head_dim": 16, "intermediate_size": 32, "num_local_experts": 5, "num_experts_per_tok": 2}
    | {"sliding_window": 6}
    | {"rope_parameters": _YARN | {"rope_theta": 150_000.0, "factor": 8.0, "original_max_position_embeddings": 16}}
)
EXAMPLES = (_TINY, _TINY | {"num_hidden_layers": 2, "layer_types": [FULL, SLIDING], "attention_bias": False})


def _check_blocks(fields: Fields, values: Values) -> Values:
    blocks = fields.pop("quantization_config") or {"quant_method": "mxfp4"}
    method = Fields({"quant_method": blocks.get("quant_method")}, f"{fields.origin} quantization_config")
    method.only("quant_method", "mxfp4")
    return {}


FIELDS = (
    *hf.sizes(head_dim=64, context=131_072),
    constant(activation="clamped_silu", attention_sinks=True),
    hf.rms_norm(1e-5),
    rope(theta=150_000.0, writes_theta=False),
    flag("attention_bias", "attention_bias", True),
    hf.windows(SLIDING, FULL, size=128),
    hf.SILU,
    part(
        "experts",
        Experts,
        count("num_local_experts", "num_experts"),
        count("num_experts_per_tok", "experts_per_token", ours="per_token"),
        AS_DENSE,
        constant(router_bias=True, bias=True, scoring="softmax_chosen"),
    ),
    only("swiglu_alpha", 1.702),
    only("swiglu_limit", 7.0),
    Field(_check_blocks),
    # The context before it was extended, which the rope says as well.
    ignored(*TRAINING, "initial_context_length"),
)


def _with_rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    has_rope = config.get("rope_parameters") or config.get("rope_scaling")
    return config if has_rope else {**config, "rope_parameters": _YARN}


HF = hf_family(
    "gpt_oss", "GptOssForCausalLM", FIELDS, "gpt-oss", weights=WEIGHTS, examples=EXAMPLES, prepare=_with_rope
)


def _fractional_bounds(fields: gguf.Metadata, values: Values) -> Values:
    """YaRN's bounds are not whole numbers: no key says it, and the model's own configuration does."""
    rope = values["rope"]
    if not isinstance(rope.scaling, YarnScaling):
        return {}
    return {"rope": replace(rope, scaling=replace(rope.scaling, truncate=False))}


ROWS = (
    gguf.SIZES,
    gguf.rope(),
    Field(_fractional_bounds),
    gguf.windows(2),
    constant(activation="clamped_silu", attention_bias=True, attention_sinks=True),
    experts(as_dense=True, router_bias=True, bias=True, scoring="softmax_chosen"),
)
GGUF = gguf_family(
    "gpt-oss",
    ROWS,
    "gpt_oss",
    weights=gguf_weights(
        norms=(("attention_norm", "attn_norm"), ("feedforward_norm", "post_attention_norm")),
        more=(renamed("layers.{i}.attention.sinks", "blk.{i}.attn_sinks.weight"),),
    ),
    examples=(EXAMPLES[0], EXAMPLES[0] | {"num_key_value_heads": 6, "num_hidden_layers": 2}),
    needs_head=True,
)
