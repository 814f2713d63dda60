"""GGUF's `gemma3`: as gemma3_text, with norms stored as 1 + w, and in layers with windows an unscaled rope of base
10,000 where the file says no other."""

from __future__ import annotations

from bedplate.models.families.dense import gemma3_text
from bedplate.models.families.dense.gemma2 import SANDWICH
from bedplate.models.families.field_map import Field, Values, constant
from bedplate.models.families.gguf.gemma2 import scores_factor
from bedplate.models.families.gguf.metadata import SIZES, Metadata, decimal, rope, windows
from bedplate.models.families.gguf.tensors import AFTER_NORMS, ATTENTION, GATED, PRE_NORMS, QK_NORMS, decoder_weights
from bedplate.models.families.gguf.writing import gguf_family
from bedplate.models.specs.transformer import Rope, Scales, TransformerSpec

_LARGEST = 62
"""Layers of the 27B model, whose scores llama.cpp scales by 1/√(hidden/heads)."""

WEIGHTS = decoder_weights(*ATTENTION, *QK_NORMS, *GATED, *PRE_NORMS, *AFTER_NORMS, offset=1.0)
EXAMPLES = ({**gemma3_text.EXAMPLES[0], "query_pre_attn_scalar": 8}, gemma3_text.EXAMPLES[1])


def _read_local_rope(fields: Metadata, values: Values) -> Values:
    local = Rope(decimal(fields.real("rope.freq_base_swa", 10_000.0)))
    return {"local_rope": None if local == values["rope"] or not values["windows"] else local}


def _local_rope_fields(flat: Values, spec: TransformerSpec) -> Values:
    local = flat["local_rope"] or flat["rope"] or Rope()
    return {"rope.freq_base_swa": local.theta if flat["windows"] else None}


def _read_scales(fields: Metadata, values: Values) -> Values:
    cap = fields.pop("final_logit_softcapping")
    factor = scores_factor(values, _LARGEST)
    return {"scales": Scales(values["hidden_size"] ** 0.5, factor, logit_cap=None if not cap else decimal(cap))}


ROWS = (
    SIZES,
    SANDWICH,
    constant(qk_norm="head", activation="gelu_tanh"),
    rope(),
    windows(6),
    Field(_read_local_rope, _local_rope_fields),
    Field(_read_scales, lambda flat, _: {"final_logit_softcapping": (flat["scales"] or Scales()).logit_cap}),
)

GGUF = gguf_family("gemma3", ROWS, WEIGHTS, "gemma3_text", examples=EXAMPLES)
