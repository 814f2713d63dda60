"""The granite family (https://arxiv.org/abs/2508.11085): Hugging Face's `GraniteForCausalLM`. Llama with factors on
embeddings, scores, residuals and logits.
"""

from __future__ import annotations

from bedplate.models.families import gguf_metadata as gguf
from bedplate.models.families.decoders import ATTENTION_BIAS, MLP_BIAS, plain, sizes, tiny
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values, converted, only, part, real
from bedplate.models.families.fields import Fields
from bedplate.models.families.gguf_family import decoder_weights, gguf_family
from bedplate.models.specs.transformer import Scales, TransformerSpec

EXAMPLES = (
    tiny()
    | {"embedding_multiplier": 12.0, "logits_scaling": 6.0, "residual_multiplier": 0.22}
    | {"attention_multiplier": 0.2, "tie_word_embeddings": True},
    tiny(num_key_value_heads=6, attention_bias=True, mlp_bias=True, attention_multiplier=0.125),
)


def _scores_factor(flat: Values, spec: TransformerSpec) -> Values:
    factor = flat["attention"]
    return {"attention_multiplier": flat["head_dim"] ** -0.5 if factor is None else factor}


def multipliers(digits: int | None = 9) -> Field:
    """Granite's factors. digits: to which the divisor of logits is rounded when it is written."""

    def divisor(head: float) -> float:
        return 1.0 / head if digits is None else round(1.0 / head, digits)

    return part(
        "scales",
        Scales,
        real("embedding_multiplier", "embedding", 1.0),
        Field(lambda fields, _: {"attention": fields.real("attention_multiplier", 1.0)}, _scores_factor),
        converted("logits_scaling", "head", lambda fields, name, _: 1.0 / fields.real(name, 1.0), divisor),
        real("residual_multiplier", "residual", 1.0),
    )


FIELDS = (*sizes(), *plain(eps=1e-6), ATTENTION_BIAS, MLP_BIAS, multipliers())
HF = hf_family("granite", "GraniteForCausalLM", FIELDS, "granite", examples=EXAMPLES)


def _scores(fields: Fields, name: str, values: Values) -> float:
    """A factor that a file does not give is none."""
    scores = fields.real(name)
    return gguf.decimal(scores) if scores else values["head_dim"] ** -0.5


_SCALES = part(
    "scales",
    Scales,
    gguf.number("embedding_scale", "embedding", 1.0),
    converted("attention.scale", "attention", _scores),
    converted("logit_scale", "head", lambda fields, name, _: 1.0 / gguf.decimal(fields.need(name)), lambda x: 1.0 / x),
    gguf.number("residual_scale", "residual", 1.0),
)
ROWS = (
    gguf.SIZES,
    gguf.BIASES,
    only("rope.scaling.finetuned", True),  # False: no rotary positions at all
    gguf.rope(),
    _SCALES,
    only("expert_count", 0),
    only("expert_used_count", 0),
)
GGUF = gguf_family("granite", ROWS, "granite", weights=decoder_weights(turned=True), examples=EXAMPLES)
