"""The gemma2 family (https://arxiv.org/abs/2408.00118): Hugging Face's `Gemma2ForCausalLM`.

Every other layer sees a window; scores and logits are capped; norms before and after each part, of 1 + w, which is
what GGUF files store.
"""

from __future__ import annotations

from bedplate.models.families import decoders as hf
from bedplate.models.families import gguf_metadata as gguf
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values, constant, ignored, only
from bedplate.models.families.fields import Fields
from bedplate.models.families.gguf_family import SANDWICH_NORMS as GGUF_NORMS
from bedplate.models.families.gguf_family import decoder_weights as gguf_weights
from bedplate.models.families.gguf_family import gguf_family
from bedplate.models.families.rope import FULL, SLIDING, rope
from bedplate.models.specs.transformer import Scales, TransformerSpec

WEIGHTS = hf.decoder_weights(*hf.ATTENTION, *hf.QK_NORMS, *hf.GATED, *hf.SANDWICH_NORMS)
GGUF_WEIGHTS = gguf_weights(norms=GGUF_NORMS, offset=1.0)
EXAMPLES = (
    hf.tiny(head_dim=8, sliding_window=7, query_pre_attn_scalar=12, attn_logit_softcapping=2.0),
    hf.tiny(
        head_dim=16,
        num_key_value_heads=6,
        sliding_window=5,
        query_pre_attn_scalar=16,
        final_logit_softcapping=3.0,
        layer_types=[FULL, FULL, SLIDING],
    ),
)


def _cap(fields: Fields, name: str, default: float | None) -> float | None:
    """A cap that an explicit null turns off."""
    cap = fields.pop(name, default)
    return Fields({name: cap}, fields.origin).real(name)


def gemma_scales(logit_cap: float | None, attention_cap: float | None = None) -> Field:
    """Embeddings times √hidden, scores over √query_pre_attn_scalar, and caps; those given: where none is said."""

    def read(fields: Fields, values: Values) -> Values:
        queries = fields.real("query_pre_attn_scalar", 256)
        scores_cap = _cap(fields, "attn_logit_softcapping", attention_cap)
        final_cap = _cap(fields, "final_logit_softcapping", logit_cap)
        if attention_cap is None:
            # Only Gemma 2 caps attention scores: the others' code reads the field and does nothing.
            Fields({"attn_logit_softcapping": scores_cap}, fields.origin).only("attn_logit_softcapping", None)
        attention = None if queries == values["head_dim"] else queries**-0.5
        return {"scales": Scales(values["hidden_size"] ** 0.5, attention, scores_cap, final_cap)}

    def write(flat: Values, spec: TransformerSpec) -> Values:
        scales = flat["scales"] or Scales()
        return {
            "query_pre_attn_scalar": flat["head_dim"] if scales.attention is None else round(scales.attention**-2),
            "attn_logit_softcapping": scales.attention_cap,
            "final_logit_softcapping": scales.logit_cap,
        }

    return Field(read, write)


SANDWICH = constant(norm_placement="sandwich", norm_offset=1.0)
GEMMA_ACTIVATION = hf.activation("hidden_activation", "gelu_pytorch_tanh")
FIELDS = (
    *hf.sizes(head_dim=256, context=8192, tied=True),
    hf.rms_norm(1e-6),
    SANDWICH,
    rope(),
    hf.windows(SLIDING, FULL, size=4096),
    GEMMA_ACTIVATION,
    hf.ATTENTION_BIAS,
    gemma_scales(logit_cap=30.0, attention_cap=50.0),
    only("use_bidirectional_attention", None, False),
    ignored("cache_implementation", "hidden_act"),  # old files repeat the activation, as what it was not
)
HF = hf_family("gemma2", "Gemma2ForCausalLM", FIELDS, "gemma2", weights=WEIGHTS, examples=EXAMPLES)


def scores_factor(values: Values, largest: int) -> float | None:
    """What llama.cpp scales scores by, where it is not 1/√head_dim: 1/√(hidden/heads) in the 27B model. largest: the
    number of its layers."""
    size = values["hidden_size"] // values["heads"] if values["layers"] == largest else values["head_dim"]
    return None if size == values["head_dim"] else size**-0.5


def _read_scales(fields: gguf.Metadata, values: Values) -> Values:
    return {
        "scales": Scales(
            embedding=values["hidden_size"] ** 0.5,
            attention=scores_factor(values, largest=46),
            attention_cap=gguf.decimal(fields.pop("attn_logit_softcapping") or 50.0),
            logit_cap=gguf.decimal(fields.pop("final_logit_softcapping") or 30.0),
        )
    }


def _scale_fields(flat: Values, spec: TransformerSpec) -> Values:
    scales = flat["scales"] or Scales()
    return {"attn_logit_softcapping": scales.attention_cap, "final_logit_softcapping": scales.logit_cap}


ROWS = (
    gguf.SIZES,
    SANDWICH,
    constant(activation="gelu_tanh"),
    gguf.rope(),
    gguf.windows(2, size=4096),
    Field(_read_scales, _scale_fields),
)
_FIRST, _SECOND = ({k: v for k, v in example.items() if k != "layer_types"} for example in EXAMPLES)
_GGUF_EXAMPLES = (_FIRST | {"query_pre_attn_scalar": 8}, _SECOND)
GGUF = gguf_family("gemma2", ROWS, "gemma2", weights=GGUF_WEIGHTS, examples=_GGUF_EXAMPLES)
