"""GGUF's `gpt2`: learned positions, layer norms, fused projections with biases."""

from __future__ import annotations

from bedplate.models.families.dense import gpt2
from bedplate.models.families.field_map import Field, Values, constant
from bedplate.models.families.gguf.metadata import SIZES, Metadata, decimal
from bedplate.models.families.gguf.tensors import PARTS, PRE_NORMS, decoder_rules
from bedplate.models.families.gguf.writing import gguf_family
from bedplate.models.families.weights import WeightMap, fused, qkv_rows, renamed
from bedplate.models.specs.transformer import TransformerSpec

_PAIRS = (("attention.o", "attn_output"), ("feedforward.up", "ffn_up"), ("feedforward.down", "ffn_down"))

WEIGHTS = WeightMap(
    (
        *decoder_rules(*_PAIRS, *PRE_NORMS),
        renamed("position_embedding.weight", "position_embd.weight"),
        *(
            fused(
                tuple(f"layers.{{i}}.attention.{name}.{part}" for name in "qkv"), f"blk.{{i}}.attn_qkv.{part}", qkv_rows
            )
            for part in PARTS
        ),
    )
)
EXAMPLES = (gpt2.EXAMPLES[0], {**gpt2.EXAMPLES[1], "activation_function": "gelu_new"})


def _read_norms(fields: Metadata, values: Values) -> Values:
    eps = decimal(fields.real("attention.layer_norm_epsilon", 1e-5))
    return {"norm_eps": eps, "position_rows": values["context_length"]}


def _norm_fields(flat: Values, spec: TransformerSpec) -> Values:
    return {"attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": flat["norm_eps"]}


ROWS = (
    SIZES,
    Field(_read_norms, _norm_fields),
    constant(norm="layer", activation="gelu_tanh", gated=False, attention_bias=True, feedforward_bias=True),
)

GGUF = gguf_family("gpt2", ROWS, WEIGHTS, "gpt2", examples=EXAMPLES)
