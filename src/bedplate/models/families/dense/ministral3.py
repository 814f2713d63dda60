"""The ministral3 family (https://arxiv.org/abs/2601.08584): Hugging Face's `Ministral3ForCausalLM`. Mistral with YaRN,
and queries that grow with the position.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import one_window, plain, sizes, tiny
from bedplate.models.families.family import hf_family

_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_DEFAULT = _YARN | {"rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16_384, "beta_fast": 32.0}
"""What transformers takes where a config has no rope."""
EXAMPLES = (
    tiny(head_dim=16, rope_parameters=_YARN),
    tiny(head_dim=8, num_key_value_heads=6, sliding_window=9, rope_parameters=_YARN | {"mscale": 0.5}),
)
FIELDS = (*sizes(head_dim=128, context=131_072), *plain(eps=1e-5), one_window())


def _with_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """With transformers' rope where a config has none, and without the context, which some ropes repeat."""
    has_rope = config.get("rope_parameters") or config.get("rope_scaling")
    parameters: dict[str, Any] = dict(config.get("rope_parameters") or ({} if has_rope else _DEFAULT))
    parameters.pop("max_position_embeddings", None)
    return {**config, "rope_parameters": parameters}


HF = hf_family("ministral3", "Ministral3ForCausalLM", FIELDS, examples=EXAMPLES, prepare=_with_rope)
