"""The gemma2 family (https://arxiv.org/abs/2408.00118): Hugging Face's `Gemma2ForCausalLM`.

Every other layer sees a window; scores and logits are capped; norms before and after each part, of 1 + w.
"""

from __future__ import annotations

from bedplate.models.families.decoders import (
    ATTENTION,
    ATTENTION_BIAS,
    GATED,
    SANDWICH_NORMS,
    TINY,
    activation,
    decoder_weights,
    rms_norm,
    sizes,
    windows,
)
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values, constant, ignored, only
from bedplate.models.families.fields import Fields
from bedplate.models.families.rope import FULL, SLIDING, rope
from bedplate.models.specs.transformer import Scales, TransformerSpec

HF_WEIGHTS = decoder_weights(*ATTENTION, *GATED, *SANDWICH_NORMS)
EXAMPLES = (
    {**TINY, "head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 12, "attn_logit_softcapping": 2.0},
    {
        **TINY,
        "head_dim": 16,
        "num_key_value_heads": 6,
        "sliding_window": 5,
        "query_pre_attn_scalar": 16,
        "final_logit_softcapping": 3.0,
        "layer_types": [FULL, FULL, SLIDING],
    },
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
GEMMA_ACTIVATION = activation("hidden_activation", "gelu_pytorch_tanh")
FIELDS = (
    *sizes(head_dim=256, context=8192, tied=True),
    rms_norm(1e-6),
    SANDWICH,
    rope(),
    windows(lambda _: (SLIDING, FULL), size=4096),
    GEMMA_ACTIVATION,
    ATTENTION_BIAS,
    gemma_scales(logit_cap=30.0, attention_cap=50.0),
    only("use_bidirectional_attention", None, False),
    ignored("cache_implementation", "hidden_act"),  # old files repeat the activation, as what it was not
)

HF = hf_family("gemma2", "Gemma2ForCausalLM", FIELDS, HF_WEIGHTS, "gemma2", examples=EXAMPLES)
