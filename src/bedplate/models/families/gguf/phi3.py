"""GGUF's `phi3`: fused projections; LongRoPE's divisors as two tensors. (llama.cpp itself sees no window.)"""

from __future__ import annotations

from bedplate.models.families.dense import phi3
from bedplate.models.families.field_map import Field, Values
from bedplate.models.families.gguf.metadata import SIZES, Metadata, longest_context, rope
from bedplate.models.families.gguf.tensors import IGNORABLE, PRE_NORMS, decoder_rules
from bedplate.models.families.gguf.writing import gguf_family
from bedplate.models.families.weights import WeightMap, fused, halves, qkv_rows
from bedplate.models.specs.transformer import TransformerSpec

_GATE_UP = ("layers.{i}.feedforward.gate.weight", "layers.{i}.feedforward.up.weight")
_QKV = tuple(f"layers.{{i}}.attention.{name}.weight" for name in "qkv")

WEIGHTS = WeightMap(
    (
        *decoder_rules(("attention.o", "attn_output"), ("feedforward.down", "ffn_down"), *PRE_NORMS),
        fused(_QKV, "blk.{i}.attn_qkv.weight", qkv_rows),
        fused(_GATE_UP, "blk.{i}.ffn_up.weight", halves),
    ),
    IGNORABLE,
)
# A context longer than any test's: llama.cpp chooses the divisors by what it has room for.
EXAMPLES = (
    {**phi3.EXAMPLES[0], "sliding_window": 64},
    {**phi3.EXAMPLES[1], "original_max_position_embeddings": 512, "max_position_embeddings": 2048},
)


def _read_context(fields: Metadata, values: Values) -> Values:
    # A file without the key may still name the context that it began with.
    fields.ignore(("rope.scaling.original_context_length", "rope.scaling.attn_factor"))
    window = fields.optional("attention.sliding_window") or None
    return {
        "context_length": phi3.even_context(values["rope"], values["context_length"]),
        "windows": () if window is None else (window,),
    }


def _context_fields(flat: Values, spec: TransformerSpec) -> Values:
    return {"context_length": longest_context(spec), "attention.sliding_window": spec.window(0)}


ROWS = (SIZES, rope(is_extended=True), Field(_read_context, _context_fields))

GGUF = gguf_family("phi3", ROWS, WEIGHTS, "phi3", examples=EXAMPLES)
