"""The qwen3_moe family (https://arxiv.org/abs/2505.09388): Hugging Face's `Qwen3MoeForCausalLM`."""

from __future__ import annotations

from bedplate.models.families.decoders import (
    ATTENTION,
    ATTENTION_BIAS,
    GATED,
    LLAMA_NORMS,
    QK_NORMS,
    SILU,
    TINY,
    decoder_weights,
    rms_norm,
    sizes,
)
from bedplate.models.families.experts.expert_weights import expert_rules
from bedplate.models.families.experts.fields import SPARSE, TRAINING, chosen, count, expert_size, renormalised
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values, constant, ignored, part
from bedplate.models.families.fields import Fields
from bedplate.models.families.rope import rope
from bedplate.models.families.weights import renamed
from bedplate.models.specs.transformer import Experts, TransformerSpec

_MLP = "model.layers.{i}.mlp"

WEIGHTS = decoder_weights(
    *LLAMA_NORMS,
    *ATTENTION,
    *QK_NORMS,
    *GATED,
    more=(renamed("layers.{i}.feedforward.router.weight", f"{_MLP}.gate.weight"), *expert_rules(_MLP)),
)
_TINY = {**TINY, "head_dim": 16, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
EXAMPLES = (
    _TINY | {"norm_topk_prob": True},
    _TINY | {"mlp_only_layers": [0], "attention_bias": True, "use_sliding_window": True, "sliding_window": 6},
)


def _read_window(fields: Fields, values: Values) -> Values:
    """The window is every layer's or none's, whatever max_window_layers says."""
    window, is_used = fields.optional("sliding_window"), fields.flag("use_sliding_window", False)
    return {"windows": (window,) if is_used and window is not None else ()}


def _window_fields(flat: Values, spec: TransformerSpec) -> Values:
    return {"use_sliding_window": spec.window(0) is not None, "sliding_window": spec.window(0)}


FIELDS = (
    *sizes(context=32_768),
    rms_norm(1e-6),
    constant(qk_norm="head"),
    rope(writes_theta=False),
    ATTENTION_BIAS,
    Field(_read_window, _window_fields),
    SILU,
    part(
        "experts",
        Experts,
        count("num_experts", "num_local_experts"),
        chosen(8),
        expert_size(768),
        renormalised(False),
        SPARSE,
    ),
    ignored(*TRAINING, "max_window_layers"),
)

HF = hf_family("qwen3_moe", "Qwen3MoeForCausalLM", FIELDS, WEIGHTS, "qwen3moe", examples=EXAMPLES)
