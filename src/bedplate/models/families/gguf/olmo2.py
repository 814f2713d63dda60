"""GGUF's `olmo2`: norms of what attention and feed-forward give, and of whole queries and keys; a head of its own.
Where there is a window, it is OLMo 3: three layers of four have it, and a rope that is not scaled."""

from __future__ import annotations

from dataclasses import replace

from bedplate.models.families.dense import olmo2, olmo3
from bedplate.models.families.family import Family
from bedplate.models.families.field_map import Field, Values
from bedplate.models.families.gguf.metadata import SIZES, Metadata, rope, take_windows
from bedplate.models.families.gguf.tensors import ATTENTION, GATED, QK_NORMS, decoder_weights
from bedplate.models.families.gguf.writing import gguf_family
from bedplate.models.families.rope import FULL, SLIDING
from bedplate.models.specs.transformer import Rope, TransformerSpec

_NORMS = (("attention_norm", "post_attention_norm"), ("feedforward_norm", "post_ffw_norm"))

WEIGHTS = decoder_weights(*ATTENTION, *QK_NORMS, *GATED, *_NORMS)
EXAMPLES = (olmo2.EXAMPLES[0], {**olmo2.EXAMPLES[1], "attention_bias": False, "tie_word_embeddings": False})
_WINDOWED = (
    olmo3.EXAMPLES[0],
    {
        **olmo3.EXAMPLES[1],
        "num_hidden_layers": 4,
        "layer_types": [SLIDING, SLIDING, SLIDING, FULL],
        "attention_bias": False,
    },
)


def _read_windows(fields: Metadata, values: Values) -> Values:
    windows, theta = take_windows(fields, values["layers"], 4), values["rope"].theta
    return {"windows": windows, "local_rope": Rope(theta) if windows and values["rope"].scaling is not None else None}


def _window_fields(flat: Values, spec: TransformerSpec) -> Values:
    """The window alone: llama.cpp reads no list of the layers that have it."""
    return {"attention.sliding_window": next((size for size in flat["windows"] if size is not None), None)}


def _sibling(spec: TransformerSpec) -> Family | None:
    return OLMO3 if spec.attention.windows else None


ROWS = (SIZES, olmo2.BRANCH, rope(), Field(_read_windows, _window_fields))

GGUF = gguf_family("olmo2", ROWS, WEIGHTS, "olmo2", "olmo3", examples=EXAMPLES, needs_head=True, sibling=_sibling)
OLMO3 = replace(GGUF, partners=(("hf", "olmo3"),), examples=_WINDOWED, sibling=None)
