"""The qwen3_moe family (https://arxiv.org/abs/2505.09388): Hugging Face's `Qwen3MoeForCausalLM`."""

from __future__ import annotations

from bedplate.models.families import gguf_metadata as gguf
from bedplate.models.families.decoders import ATTENTION_BIAS, SILU, rms_norm, sizes, tiny
from bedplate.models.families.experts import parts as moe
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values, constant, ignored, part
from bedplate.models.families.fields import Fields
from bedplate.models.families.gguf_family import experts, gguf_family
from bedplate.models.families.rope import rope
from bedplate.models.specs.transformer import Experts

_TINY = tiny(head_dim=16, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24)
EXAMPLES = (
    _TINY | {"norm_topk_prob": True},
    _TINY | {"mlp_only_layers": [0], "attention_bias": True, "use_sliding_window": True, "sliding_window": 6},
)


def _read_window(fields: Fields, values: Values) -> Values:
    """The window is every layer's or none's, whatever max_window_layers says."""
    window, is_used = fields.optional("sliding_window"), fields.flag("use_sliding_window", False)
    return {"windows": (window,) if is_used and window is not None else ()}


_COUNT = moe.count("num_experts", "num_local_experts")
FIELDS = (
    *sizes(context=32_768),
    rms_norm(1e-6),
    constant(qk_norm="head"),
    rope(writes_theta=False),
    ATTENTION_BIAS,
    Field(
        _read_window,
        lambda _, spec: {"use_sliding_window": spec.window(0) is not None, "sliding_window": spec.window(0)},
    ),
    SILU,
    part("experts", Experts, _COUNT, moe.chosen(8), moe.expert_size(768), moe.renormalised(False), moe.SPARSE),
    ignored(*moe.TRAINING, "max_window_layers"),
)
HF = hf_family("qwen3_moe", "Qwen3MoeForCausalLM", FIELDS, "qwen3moe", weights=moe.EXPERT_WEIGHTS, examples=EXAMPLES)

GGUF = gguf_family(
    "qwen3moe",
    (gguf.SIZES, experts(renormalise=True), gguf.rope(), constant(qk_norm="head")),
    "qwen3_moe",
    examples=(EXAMPLES[0], EXAMPLES[0] | {"num_key_value_heads": 6, "head_dim": 8, "num_experts": 4}),
)
