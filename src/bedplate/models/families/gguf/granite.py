"""GGUF's `granite`: as llama, with factors on embeddings, scores, residuals and logits."""

from __future__ import annotations

from bedplate.models.families.dense import granite
from bedplate.models.families.field_map import Field, Values, only
from bedplate.models.families.gguf.metadata import BIASES, SIZES, Metadata, decimal, rope
from bedplate.models.families.gguf.tensors import ATTENTION, GATED, PRE_NORMS, decoder_weights
from bedplate.models.families.gguf.writing import gguf_family
from bedplate.models.specs.transformer import Scales, TransformerSpec

WEIGHTS = decoder_weights(*ATTENTION, *GATED, *PRE_NORMS, turned=True)


def _read_scales(fields: Metadata, values: Values) -> Values:
    """A factor that a file does not give is none."""
    scores = fields.pop("attention.scale")
    return {
        "scales": Scales(
            embedding=decimal(fields.pop("embedding_scale") or 1.0),
            attention=decimal(scores) if scores else values["head_dim"] ** -0.5,
            head=1.0 / decimal(fields.need("logit_scale")),
            residual=decimal(fields.pop("residual_scale") or 1.0),
        )
    }


def _scale_fields(flat: Values, spec: TransformerSpec) -> Values:
    scales = flat["scales"] or Scales()
    return {
        "embedding_scale": scales.embedding,
        "attention.scale": scales.attention,
        "logit_scale": 1.0 / scales.head,
        "residual_scale": scales.residual,
    }


ROWS = (
    SIZES,
    BIASES,
    only("rope.scaling.finetuned", True),  # False: no rotary positions at all
    rope(),
    Field(_read_scales, _scale_fields),
    only("expert_count", 0),
    only("expert_used_count", 0),
)

GGUF = gguf_family("granite", ROWS, WEIGHTS, "granite", examples=granite.EXAMPLES)
