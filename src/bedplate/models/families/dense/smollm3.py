"""The smollm3 family (https://huggingface.co/blog/smollm3): Hugging Face's `SmolLM3ForCausalLM`. Llama, every fourth
layer without positions (https://arxiv.org/abs/2501.18795).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.decoders import (
    ATTENTION,
    GATED,
    IGNORABLE,
    LLAMA_NORMS,
    TINY,
    decoder_rules,
    plain_fields,
    shortest,
    size_fields,
    take_plain,
    take_sizes,
    take_windows,
    window_fields,
)
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.rope import FULL, SLIDING
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import TransformerSpec

_ORIGIN = "config.json (smollm3)"

HF_WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *GATED, *LLAMA_NORMS), IGNORABLE)
EXAMPLES = (
    {**TINY, "num_hidden_layers": 4, "no_rope_layer_interval": 2, "pad_token_id": 0},
    {
        **TINY,
        "num_key_value_heads": 6,
        "attention_bias": True,
        "mlp_bias": True,
        "no_rope_layers": [0, 1, 1],
        "use_sliding_window": True,
        "sliding_window": 7,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
    },
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a SmolLM3ForCausalLM → spec."""
    fields = Fields(config, _ORIGIN)
    sizes = take_sizes(fields, context=32_768, tied=True)
    layers, interval = sizes["layers"], fields.whole("no_rope_layer_interval", 4, null=4)
    # Its name says the contrary: 1 where a layer has a rope.
    turns = [bool(flag) for flag in fields.sequence("no_rope_layers") or [(n + 1) % interval for n in range(layers)]]
    Fields({"no_rope_layers": len(turns)}, _ORIGIN).only("no_rope_layers", layers)
    window = fields.optional("sliding_window")
    window = window if fields.flag("use_sliding_window", False) else None
    default = [SLIDING if window is not None and not has_rope else FULL for has_rope in turns]
    fields.ignore((*HF_BOOKKEEPING, "attention_dropout", "max_window_layers", "pretraining_tp"))
    spec = TransformerSpec.from_fields(
        **sizes,
        **take_plain(fields, _ORIGIN, sizes["context_length"], eps=1e-6, theta=2_000_000.0),
        rope_layers=shortest(turns, True),
        windows=take_windows(fields, layers, window, default, _ORIGIN),
        attention_bias=fields.flag("attention_bias", False),
        feedforward_bias=fields.flag("mlp_bias", False),
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    return (
        size_fields(spec, "smollm3", "SmolLM3ForCausalLM")
        | {
            **plain_fields(spec),
            "attention_bias": spec.attention.bias,
            "mlp_bias": spec.feedforward.bias,
            # Its default is beyond small vocabularies.
            "pad_token_id": None,
            "no_rope_layers": [int(spec.rope_of(layer) is not None) for layer in range(spec.layers)],
            "use_sliding_window": bool(spec.attention.windows),
        }
        | window_fields(spec)
    )


HF = Family(("hf", "smollm3"), from_hf, to_hf, HF_WEIGHTS, examples=EXAMPLES)
