"""The gemma2 family (https://arxiv.org/abs/2408.00118): Hugging Face's `Gemma2ForCausalLM`.

Every other layer sees a window; scores and logits are capped; norms before and after each part, of 1 + w, which is
what GGUF files store.
"""

from __future__ import annotations

from bedplate.models.families import decoders as hf
from bedplate.models.families import gguf_metadata as gguf
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values, constant, ignored, only, part
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
    hf.tiny()
    | {"head_dim": 16, "num_key_value_heads": 6, "sliding_window": 5, "query_pre_attn_scalar": 16}
    | {"final_logit_softcapping": 3.0, "layer_types": [FULL, FULL, SLIDING]},
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


def gguf_scales(largest: int, *caps: Field) -> Field:
    """Factors and caps, as llama.cpp has them: scores over √head_dim, but √(hidden/heads) in the 27B model. largest:
    the number of its layers."""

    def read(fields: gguf.Metadata, values: Values) -> Values:
        hidden, size = values["hidden_size"], values["head_dim"]
        width = hidden // values["heads"] if values["layers"] == largest else size
        return {"embedding": hidden**0.5, "attention": None if width == size else width**-0.5}

    return part("scales", Scales, Field(read), *caps)


LOGIT_CAP, SCORE_CAP = "final_logit_softcapping", "attn_logit_softcapping"
ROWS = (
    gguf.SIZES,
    SANDWICH,
    constant(activation="gelu_tanh"),
    gguf.rope(),
    gguf.windows(2, size=4096),
    gguf_scales(46, gguf.number(SCORE_CAP, "attention_cap", 50.0), gguf.number(LOGIT_CAP, "logit_cap", 30.0)),
)
_FIRST, _SECOND = ({k: v for k, v in example.items() if k != "layer_types"} for example in EXAMPLES)
_GGUF_EXAMPLES = (_FIRST | {"query_pre_attn_scalar": 8}, _SECOND)
GGUF = gguf_family("gemma2", ROWS, "gemma2", weights=GGUF_WEIGHTS, examples=_GGUF_EXAMPLES)
