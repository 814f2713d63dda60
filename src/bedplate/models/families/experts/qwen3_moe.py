"""The qwen3_moe family (https://arxiv.org/abs/2505.09388): Hugging Face's `Qwen3MoeForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import (
    ATTENTION,
    GATED,
    IGNORABLE,
    LLAMA_NORMS,
    QK_NORMS,
    TINY,
    decoder_rules,
    one_window,
    size_fields,
    take_sizes,
)
from bedplate.models.families.experts.expert_weights import expert_rules
from bedplate.models.families.experts.fields import TRAINING, dense_layers, sparse_layers, take_count
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.rope import rope_parameters, take_rope
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.transformer import Experts, Rope, TransformerSpec

_ORIGIN = "config.json (qwen3_moe)"
_MLP = "model.layers.{i}.mlp"

WEIGHTS = WeightMap(
    rules=(
        *decoder_rules(*LLAMA_NORMS, *ATTENTION, *QK_NORMS, *GATED),
        renamed("layers.{i}.feedforward.router.weight", f"{_MLP}.gate.weight"),
        *expert_rules(_MLP),
    ),
    ignorable=IGNORABLE,
)
_TINY = {**TINY, "head_dim": 16, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
EXAMPLES = (
    _TINY | {"norm_topk_prob": True},
    _TINY | {"mlp_only_layers": [0], "attention_bias": True, "use_sliding_window": True, "sliding_window": 6},
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a Qwen3MoeForCausalLM → spec."""
    fields = Fields(config, _ORIGIN)
    sizes = take_sizes(fields, context=32_768)
    step, dense = fields.whole("decoder_sparse_step", 1, null=1), fields.sequence("mlp_only_layers") or []
    window, windowed = fields.optional("sliding_window"), fields.flag("use_sliding_window", False)
    fields.only("hidden_act", "silu")
    first, interval = sparse_layers(_ORIGIN, sizes["layers"], step, dense)
    part = Experts(
        take_count(fields, "num_experts", "num_local_experts"),
        fields.whole("num_experts_per_tok", 8),
        fields.whole("moe_intermediate_size", 768),
        renormalise=fields.flag("norm_topk_prob", False),
        first_dense=first,
        every=interval,
    )
    # The window is every layer's or none's, whatever max_window_layers says.
    fields.ignore((*HF_BOOKKEEPING, *TRAINING, "attention_dropout", "max_window_layers"))
    spec = TransformerSpec.from_fields(
        **sizes,
        norm_eps=fields.real("rms_norm_eps", 1e-6),
        rope=take_rope(fields, _ORIGIN, context=sizes["context_length"]),
        attention_bias=fields.flag("attention_bias", False),
        qk_norm="head",
        windows=one_window(window if windowed else None),
        experts=part,
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    part = spec.experts
    assert part is not None
    return size_fields(spec, "qwen3_moe", "Qwen3MoeForCausalLM") | {
        "rms_norm_eps": spec.norm.eps,
        "hidden_act": "silu",
        "rope_parameters": rope_parameters(spec.position.rope or Rope()),
        "attention_bias": spec.attention.bias,
        "use_sliding_window": spec.window(0) is not None,
        "sliding_window": spec.window(0),
        "num_experts": part.count,
        "num_experts_per_tok": part.per_token,
        "moe_intermediate_size": part.feedforward_size,
        "norm_topk_prob": part.renormalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense_layers(spec),
    }


HF = Family(("hf", "qwen3_moe"), from_hf, to_hf, WEIGHTS, (("gguf", "qwen3moe"),), examples=EXAMPLES)
