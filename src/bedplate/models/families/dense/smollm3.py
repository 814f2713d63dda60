"""The smollm3 family (https://huggingface.co/blog/smollm3): Hugging Face's `SmolLM3ForCausalLM`. Llama, every fourth
layer without positions (https://arxiv.org/abs/2501.18795).
"""

from __future__ import annotations

from bedplate.models.families import decoders as hf
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values, ignored, written
from bedplate.models.families.fields import Fields
from bedplate.models.families.rope import FULL, SLIDING
from bedplate.models.specs.transformer import TransformerSpec

EXAMPLES = (
    hf.tiny(num_hidden_layers=4, no_rope_layer_interval=2, pad_token_id=0),
    hf.tiny()
    | {"num_key_value_heads": 6, "attention_bias": True, "mlp_bias": True}
    | {"no_rope_layers": [0, 1, 1], "use_sliding_window": True, "sliding_window": 7}
    | {"tie_word_embeddings": False, "pad_token_id": 0},
)


def _read_layers(fields: Fields, values: Values) -> Values:
    count, interval = values["layers"], fields.whole("no_rope_layer_interval", 4, null=4)
    # Its name says the contrary: 1 where a layer has a rope.
    flags = fields.sequence("no_rope_layers") or [(layer + 1) % interval for layer in range(count)]
    Fields({"no_rope_layers": len(flags)}, fields.origin).only("no_rope_layers", count)
    window = fields.optional("sliding_window")
    window = window if fields.flag("use_sliding_window", False) else None
    default = [SLIDING if window is not None and not has_rope else FULL for has_rope in flags]
    return {
        "rope_layers": hf.shortest([bool(has_rope) for has_rope in flags], True),
        "windows": hf.take_windows(fields, count, window, default),
    }


def _layer_fields(flat: Values, spec: TransformerSpec) -> Values:
    return {
        "no_rope_layers": [int(spec.rope_of(layer) is not None) for layer in range(spec.layers)],
        "use_sliding_window": bool(flat["windows"]),
    } | hf.window_fields(spec)


FIELDS = (
    *hf.sizes(context=32_768, tied=True),
    *hf.plain(eps=1e-6, theta=2_000_000.0),
    Field(_read_layers, _layer_fields),
    hf.ATTENTION_BIAS,
    hf.MLP_BIAS,
    written(pad_token_id=None),  # its default is beyond small vocabularies
    ignored("max_window_layers", "pretraining_tp"),
)

HF = hf_family("smollm3", "SmolLM3ForCausalLM", FIELDS, examples=EXAMPLES)
