"""The olmo3 family (https://arxiv.org/abs/2512.13961): Hugging Face's `Olmo3ForCausalLM`. Olmo2, three layers of four
with a window; only those that see everything have a scaled rope.

GGUF's `olmo2` is both; it has a head of its own, and where there is a window, it is OLMo 3.
"""

from __future__ import annotations

from dataclasses import replace

from bedplate.models.families import gguf_metadata as gguf
from bedplate.models.families.decoders import ATTENTION_BIAS, NO_DROPOUT, activation, rms_norm, sizes, tiny, windows
from bedplate.models.families.dense import olmo2
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values
from bedplate.models.families.gguf_family import decoder_weights, gguf_family
from bedplate.models.families.rope import FULL, SLIDING, ropes
from bedplate.models.specs.transformer import Rope, TransformerSpec

_YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 32}
EXAMPLES = (
    tiny(num_hidden_layers=4, sliding_window=7),
    tiny(
        num_key_value_heads=6,
        attention_bias=True,
        rms_norm_eps=0.1,  # else rounding takes transformers' own gradients in float32 8e-6 from those in float64
        sliding_window=9,
        layer_types=[FULL, SLIDING, SLIDING],
        rope_parameters={FULL: _YARN, SLIDING: {"rope_type": "default", "rope_theta": 5e5}},
    ),
)
FIELDS = (
    *sizes(),
    rms_norm(1e-5),
    olmo2.BRANCH,
    ropes(theta=500_000.0, local_theta=500_000.0),
    windows(SLIDING, SLIDING, SLIDING, FULL, size=4096),
    activation(),
    ATTENTION_BIAS,
    NO_DROPOUT,
)
HF = hf_family("olmo3", "Olmo3ForCausalLM", FIELDS, "olmo2", weights=olmo2.WEIGHTS, examples=EXAMPLES)


def _read_windows(fields: gguf.Metadata, values: Values) -> Values:
    windows, theta = gguf.take_windows(fields, values["layers"], 4), values["rope"].theta
    return {"windows": windows, "local_rope": Rope(theta) if windows and values["rope"].scaling is not None else None}


def _window_fields(flat: Values, spec: TransformerSpec) -> Values:
    """The window alone: llama.cpp reads no list of the layers that have it."""
    return {"attention.sliding_window": next((size for size in flat["windows"] if size is not None), None)}


_GGUF_NORMS = (("attention_norm", "post_attention_norm"), ("feedforward_norm", "post_ffw_norm"))
GGUF = gguf_family(
    "olmo2",
    (gguf.SIZES, olmo2.BRANCH, gguf.rope(), Field(_read_windows, _window_fields)),
    *("olmo2", "olmo3"),
    weights=decoder_weights(norms=_GGUF_NORMS),
    examples=(olmo2.EXAMPLES[0], olmo2.EXAMPLES[1] | {"attention_bias": False, "tie_word_embeddings": False}),
    needs_head=True,
    sibling=lambda spec: OLMO3 if spec.attention.windows else None,
)
_WHOLE_PERIOD = {"num_hidden_layers": 4, "layer_types": [SLIDING, SLIDING, SLIDING, FULL], "attention_bias": False}
OLMO3 = replace(GGUF, partners=(("hf", "olmo3"),), examples=(EXAMPLES[0], EXAMPLES[1] | _WHOLE_PERIOD), sibling=None)
