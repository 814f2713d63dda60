"""The qwen2 family (https://arxiv.org/abs/2407.10671; Qwen 2.5 as well): Hugging Face's `Qwen2ForCausalLM`. Llama with
biases on queries, keys and values; in some checkpoints the last layers have a window.
"""

from __future__ import annotations

from bedplate.models.families import gguf_metadata as gguf
from bedplate.models.families.decoders import plain, sizes, take_windows, tiny, window_fields
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values, constant, only
from bedplate.models.families.fields import Fields
from bedplate.models.families.gguf_family import gguf_family
from bedplate.models.families.rope import FULL, SLIDING
from bedplate.models.specs.transformer import TransformerSpec

EXAMPLES = (
    tiny(tie_word_embeddings=True),
    tiny(num_key_value_heads=6, use_sliding_window=True, sliding_window=7, max_window_layers=1),
)


def _read_windows(fields: Fields, values: Values) -> Values:
    count, first = values["layers"], fields.whole("max_window_layers", 28)
    window = fields.optional("sliding_window", 4096)
    window = window if fields.flag("use_sliding_window", False) else None
    default = [FULL if window is None or layer < first else SLIDING for layer in range(count)]
    return {"windows": take_windows(fields, count, window, default)}


def _window_fields(flat: Values, spec: TransformerSpec) -> Values:
    first = next((layer for layer in range(spec.layers) if spec.window(layer)), spec.layers)
    return {"use_sliding_window": bool(flat["windows"]), "max_window_layers": first} | window_fields(spec)


def qwen_fields(head_dim: int | None = None) -> tuple[Field, ...]:
    """What Qwen's dense families have in common. head_dim: where none is said."""
    return (
        *sizes(context=32_768, head_dim=head_dim),
        *plain(eps=1e-6),
        Field(_read_windows, _window_fields),
        only("use_mrope", False),  # that of images
    )


FIELDS = (*qwen_fields(), constant(attention_bias=True, output_bias=False))
HF = hf_family("qwen2", "Qwen2ForCausalLM", FIELDS, "qwen2", examples=EXAMPLES)
GGUF = gguf_family(
    "qwen2",
    (gguf.SIZES, gguf.BIASES, gguf.rope()),
    "qwen2",
    examples=(EXAMPLES[0] | {"num_key_value_heads": 3}, EXAMPLES[1] | {"use_sliding_window": False}),
)
