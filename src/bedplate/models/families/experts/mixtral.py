"""The mixtral family (https://arxiv.org/abs/2401.04088): Hugging Face's `MixtralForCausalLM`. Its GGUF files are
llama's."""

from __future__ import annotations

from bedplate.models.families import decoders as hf
from bedplate.models.families.experts.parts import AS_DENSE, ROUTER, TRAINING, chosen, count, expert_rules
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import ignored, part
from bedplate.models.families.rope import rope
from bedplate.models.families.weights import renamed
from bedplate.models.specs.transformer import Experts

_MLP = "model.layers.{i}.block_sparse_moe"
WEIGHTS = hf.decoder_weights(
    *hf.LLAMA_NORMS,
    *hf.ATTENTION,
    more=(
        renamed("layers.{i}.feedforward.router.weight", f"{_MLP}.gate.weight"),
        *expert_rules(_MLP, ("w1", "w3", "w2")),
        ROUTER,
    ),
)
_TINY = hf.tiny(intermediate_size=40, num_local_experts=5)
EXAMPLES = (_TINY, _TINY | {"num_experts_per_tok": 3, "num_local_experts": 4, "sliding_window": 7, "head_dim": 12})
FIELDS = (
    *hf.sizes(context=131_072),
    hf.rms_norm(1e-5),
    rope(theta=1e6, writes_theta=False),
    hf.one_window(),
    hf.SILU,
    part("experts", Experts, count("num_local_experts", "num_experts"), chosen(2), AS_DENSE),
    ignored(*TRAINING),
)

HF = hf_family("mixtral", "MixtralForCausalLM", FIELDS, "llama", weights=WEIGHTS, examples=EXAMPLES)
