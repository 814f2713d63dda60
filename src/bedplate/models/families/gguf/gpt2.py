"""GGUF's `gpt2`: learned positions, layer norms, fused projections with biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.models.families.dense import gpt2
from bedplate.models.families.family import Family
from bedplate.models.families.gguf.metadata import decimal, read, size_fields, take_sizes
from bedplate.models.families.gguf.tensors import PARTS, PRE_NORMS, decoder_rules, qkv_rows
from bedplate.models.families.gguf.writing import writer
from bedplate.models.families.weights import WeightMap, fused, renamed
from bedplate.models.specs.transformer import TransformerSpec

_NAME = "gpt2"
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


def from_gguf(config: Mapping[str, Any]) -> TransformerSpec:
    """Metadata → spec."""
    fields = read(config, _NAME)
    sizes = take_sizes(fields, config)
    sizes["norm_eps"] = decimal(fields.real("attention.layer_norm_epsilon", 1e-5))
    spec = TransformerSpec.from_fields(
        **sizes,
        position_rows=sizes["context_length"],
        norm="layer",
        activation="gelu_tanh",
        gated=False,
        attention_bias=True,
        feedforward_bias=True,
    )
    fields.finish()
    return spec


def _keys(spec: TransformerSpec) -> dict[str, Any]:
    norms = {"attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": spec.norm.eps}
    return size_fields(spec) | norms


GGUF = Family(
    ("gguf", _NAME), from_gguf, writer(_NAME, from_gguf, _keys), WEIGHTS, (("hf", "gpt2"),), examples=EXAMPLES
)
