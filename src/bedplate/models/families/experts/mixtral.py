"""The mixtral family (https://arxiv.org/abs/2401.04088): Hugging Face's `MixtralForCausalLM`."""

from __future__ import annotations

from bedplate.models.families.decoders import (
    ATTENTION,
    LLAMA_NORMS,
    SILU,
    TINY,
    decoder_weights,
    one_window,
    rms_norm,
    sizes,
)
from bedplate.models.families.experts.expert_weights import expert_rules
from bedplate.models.families.experts.fields import AS_DENSE, TRAINING, chosen, count
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import ignored, part
from bedplate.models.families.rope import rope
from bedplate.models.families.weights import renamed
from bedplate.models.specs.transformer import Experts

_MLP = "model.layers.{i}.block_sparse_moe"

WEIGHTS = decoder_weights(
    *LLAMA_NORMS,
    *ATTENTION,
    more=(
        renamed("layers.{i}.feedforward.router.weight", f"{_MLP}.gate.weight"),
        *expert_rules(_MLP, ("w1", "w3", "w2")),
        renamed("layers.{i}.feedforward.router.weight", "model.layers.{i}.mlp.gate.weight"),
    ),
)
_TINY = {**TINY, "intermediate_size": 40, "num_local_experts": 5}
EXAMPLES = (_TINY, _TINY | {"num_experts_per_tok": 3, "num_local_experts": 4, "sliding_window": 7, "head_dim": 12})
FIELDS = (
    *sizes(context=131_072),
    rms_norm(1e-5),
    rope(theta=1e6, writes_theta=False),
    one_window(),
    SILU,
    part("experts", Experts, count("num_local_experts", "num_experts"), chosen(2), AS_DENSE),
    ignored(*TRAINING),
)

HF = hf_family("mixtral", "MixtralForCausalLM", FIELDS, WEIGHTS, "llama", examples=EXAMPLES)
