"""The mixtral family (https://arxiv.org/abs/2401.04088): Hugging Face's `MixtralForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import (
    ATTENTION,
    IGNORABLE,
    LLAMA_NORMS,
    TINY,
    decoder_rules,
    one_window,
    size_fields,
    take_sizes,
)
from bedplate.models.families.experts.expert_weights import expert_rules
from bedplate.models.families.experts.fields import TRAINING, take_count
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.rope import rope_parameters, take_rope
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.transformer import Experts, Rope, TransformerSpec

_ORIGIN = "config.json (mixtral)"
_MLP = "model.layers.{i}.block_sparse_moe"

WEIGHTS = WeightMap(
    rules=(
        *decoder_rules(*LLAMA_NORMS, *ATTENTION),
        renamed("layers.{i}.feedforward.router.weight", f"{_MLP}.gate.weight"),
        *expert_rules(_MLP, ("w1", "w3", "w2")),
        renamed("layers.{i}.feedforward.router.weight", "model.layers.{i}.mlp.gate.weight"),
    ),
    ignorable=IGNORABLE,
)
_TINY = {**TINY, "intermediate_size": 40, "num_local_experts": 5}
EXAMPLES = (_TINY, _TINY | {"num_experts_per_tok": 3, "num_local_experts": 4, "sliding_window": 7, "head_dim": 12})


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a MixtralForCausalLM → spec."""
    fields = Fields(config, _ORIGIN)
    sizes = take_sizes(fields, context=131_072)
    count = take_count(fields, "num_local_experts", "num_experts")
    fields.only("hidden_act", "silu")
    fields.ignore((*HF_BOOKKEEPING, *TRAINING, "attention_dropout"))
    window = fields.optional("sliding_window")
    spec = TransformerSpec.from_fields(
        **sizes,
        norm_eps=fields.real("rms_norm_eps", 1e-5),
        rope=take_rope(fields, _ORIGIN, context=sizes["context_length"], theta=1e6),
        windows=one_window(window),
        experts=Experts(count, fields.whole("num_experts_per_tok", 2), sizes["feedforward_size"]),
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    assert spec.experts is not None
    return size_fields(spec, "mixtral", "MixtralForCausalLM") | {
        "rms_norm_eps": spec.norm.eps,
        "hidden_act": "silu",
        "sliding_window": spec.window(0),
        "rope_parameters": rope_parameters(spec.position.rope or Rope()),
        "num_local_experts": spec.experts.count,
        "num_experts_per_tok": spec.experts.per_token,
    }


HF = Family(("hf", "mixtral"), from_hf, to_hf, WEIGHTS, (("gguf", "llama"),), examples=EXAMPLES)
