"""The qwen2 family (https://arxiv.org/abs/2407.10671; Qwen 2.5 as well): Hugging Face's `Qwen2ForCausalLM`. Llama with
biases on queries, keys and values; in some checkpoints the last layers have a window.
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

_ORIGIN = "config.json (qwen2)"

HF_WEIGHTS = WeightMap(decoder_rules(*ATTENTION, *GATED, *LLAMA_NORMS), IGNORABLE)
EXAMPLES = (
    {**TINY, "tie_word_embeddings": True},
    {**TINY, "num_key_value_heads": 6, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a Qwen2ForCausalLM → spec."""
    return read_qwen(Fields(config, _ORIGIN), _ORIGIN, attention_bias=True, output_bias=False)


def read_qwen(fields: Fields, origin: str, head_dim: int | None = None, **features: Any) -> TransformerSpec:
    """The fields that Qwen's dense families have in common; features: of the spec."""
    sizes = take_sizes(fields, context=32_768, head_dim=head_dim)
    layers, window = sizes["layers"], fields.optional("sliding_window", 4096)
    first = fields.whole("max_window_layers", 28)
    window = window if fields.flag("use_sliding_window", False) else None
    default = [FULL if window is None or layer < first else SLIDING for layer in range(layers)]
    fields.only("use_mrope", False)  # that of images
    fields.ignore((*HF_BOOKKEEPING, "attention_dropout"))
    spec = TransformerSpec.from_fields(
        **sizes,
        **take_plain(fields, origin, sizes["context_length"], eps=1e-6),
        windows=take_windows(fields, layers, window, default, origin),
        **features,
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    return size_fields(spec, "qwen2", "Qwen2ForCausalLM") | qwen_fields(spec)


def qwen_fields(spec: TransformerSpec) -> dict[str, Any]:
    """The inverse of `read_qwen`, without the sizes."""
    return {
        **plain_fields(spec),
        "use_sliding_window": bool(spec.attention.windows),
        "max_window_layers": next((layer for layer in range(spec.layers) if spec.window(layer)), spec.layers),
    } | window_fields(spec)


HF = Family(("hf", "qwen2"), from_hf, to_hf, HF_WEIGHTS, (("gguf", "qwen2"),), examples=EXAMPLES)
