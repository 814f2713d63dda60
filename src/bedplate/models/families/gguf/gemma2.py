"""GGUF's `gemma2`: norms stored as 1 + w; the layers with windows take turns with the others."""

from __future__ import annotations

from bedplate.models.families.dense import gemma2
from bedplate.models.families.field_map import Field, Values, constant
from bedplate.models.families.gguf.metadata import SIZES, Metadata, decimal, rope, windows
from bedplate.models.families.gguf.tensors import AFTER_NORMS, ATTENTION, GATED, PRE_NORMS, decoder_weights
from bedplate.models.families.gguf.writing import gguf_family
from bedplate.models.specs.transformer import Scales, TransformerSpec

_LARGEST = 46
"""Layers of the 27B model, whose scores llama.cpp scales by 1/√(hidden/heads)."""

WEIGHTS = decoder_weights(*ATTENTION, *GATED, *PRE_NORMS, *AFTER_NORMS, offset=1.0)
_FIRST_EXAMPLE, _TWO = (
    {name: value for name, value in example.items() if name != "layer_types"} for example in gemma2.EXAMPLES
)
EXAMPLES = (_FIRST_EXAMPLE | {"query_pre_attn_scalar": 8}, _TWO)


def scores_factor(values: Values, largest: int) -> float | None:
    """What scores are scaled by, where it is not 1/√head_dim; largest: layers of the model with a factor of its own."""
    size = values["hidden_size"] // values["heads"] if values["layers"] == largest else values["head_dim"]
    return None if size == values["head_dim"] else size**-0.5


def _read_scales(fields: Metadata, values: Values) -> Values:
    return {
        "scales": Scales(
            embedding=values["hidden_size"] ** 0.5,
            attention=scores_factor(values, _LARGEST),
            attention_cap=decimal(fields.pop("attn_logit_softcapping") or 50.0),
            logit_cap=decimal(fields.pop("final_logit_softcapping") or 30.0),
        )
    }


def _scale_fields(flat: Values, spec: TransformerSpec) -> Values:
    scales = flat["scales"] or Scales()
    return {"attn_logit_softcapping": scales.attention_cap, "final_logit_softcapping": scales.logit_cap}


ROWS = (
    SIZES,
    gemma2.SANDWICH,
    constant(activation="gelu_tanh"),
    rope(),
    windows(2, size=4096),
    Field(_read_scales, _scale_fields),
)

GGUF = gguf_family("gemma2", ROWS, WEIGHTS, "gemma2", examples=EXAMPLES)
