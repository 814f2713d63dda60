"""The olmo3 family (https://arxiv.org/abs/2512.13961): Hugging Face's `Olmo3ForCausalLM`. Olmo2, three layers of four
with a window; only those that see everything have a scaled rope.
"""

from __future__ import annotations

from bedplate.models.families.decoders import ATTENTION_BIAS, NO_DROPOUT, TINY, activation, rms_norm, sizes, windows
from bedplate.models.families.dense.olmo2 import BRANCH, HF_WEIGHTS
from bedplate.models.families.family import hf_family
from bedplate.models.families.rope import FULL, SLIDING, ropes

_YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 32}
EXAMPLES = (
    {**TINY, "num_hidden_layers": 4, "sliding_window": 7},
    {
        **TINY,
        "num_key_value_heads": 6,
        "attention_bias": True,
        "rms_norm_eps": 0.1,  # else rounding takes transformers' own gradients in float32 8e-6 from those in float64
        "sliding_window": 9,
        "layer_types": [FULL, SLIDING, SLIDING],
        "rope_parameters": {FULL: _YARN, SLIDING: {"rope_type": "default", "rope_theta": 5e5}},
    },
)
FIELDS = (
    *sizes(),
    rms_norm(1e-5),
    BRANCH,
    ropes(theta=500_000.0, local_theta=500_000.0),
    windows(lambda _: (SLIDING, SLIDING, SLIDING, FULL), size=4096),
    activation(),
    ATTENTION_BIAS,
    NO_DROPOUT,
)

HF = hf_family("olmo3", "Olmo3ForCausalLM", FIELDS, HF_WEIGHTS, "olmo2", examples=EXAMPLES)
