"""The gemma3_text family (https://arxiv.org/abs/2503.19786): Hugging Face's `Gemma3ForCausalLM`, text alone.

Five layers of six see a window, and have a rope of their own; norms before and after each part, of 1 + w; queries and
keys normalised; embeddings times √hidden. In GGUF's `gemma3` the rope of layers with windows has base 10,000 where the
file says no other.
"""

from __future__ import annotations

from bedplate.models.families import decoders as hf
from bedplate.models.families import gguf_metadata as gguf
from bedplate.models.families.dense import gemma2
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values, constant, ignored, only
from bedplate.models.families.fields import Fields
from bedplate.models.families.gguf_family import gguf_family
from bedplate.models.families.rope import FULL, SLIDING, ropes
from bedplate.models.specs.transformer import Rope, TransformerSpec

EXAMPLES = (
    hf.tiny(head_dim=8, sliding_window=7, sliding_window_pattern=2, query_pre_attn_scalar=12),
    hf.tiny(
        head_dim=16,
        num_key_value_heads=6,
        sliding_window=5,
        query_pre_attn_scalar=16,
        final_logit_softcapping=3.0,
        layer_types=[SLIDING, FULL, SLIDING],
        rope_parameters={
            FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
            SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
        },
    ),
)


def _read_windows(fields: Fields, values: Values) -> Values:
    """Every sixth layer sees everything, where the config does not say which."""
    older = fields.whole("_sliding_window_pattern", 6, null=6)
    pattern, count = fields.whole("sliding_window_pattern", older, null=6), values["layers"]
    default = [FULL if (layer + 1) % pattern == 0 else SLIDING for layer in range(count)]
    return {"windows": hf.take_windows(fields, count, fields.optional("sliding_window", 4096), default)}


def _older_thetas(flat: Values, spec: TransformerSpec) -> Values:
    """The ropes' bases in the older spelling."""
    rope = flat["rope"] or Rope()
    return {"rope_theta": rope.theta, "rope_local_base_freq": (flat["local_rope"] or rope).theta}


FIELDS = (
    *hf.sizes(head_dim=256, context=131_072, tied=True),
    hf.rms_norm(1e-6),
    gemma2.SANDWICH,
    constant(qk_norm="head"),
    ropes(theta=1_000_000.0, local_theta=10_000.0),
    Field(write=_older_thetas),
    Field(_read_windows, lambda flat, spec: hf.window_fields(spec)),
    gemma2.GEMMA_ACTIVATION,
    hf.ATTENTION_BIAS,
    gemma2.gemma_scales(logit_cap=None),
    hf.NO_DROPOUT,
    only("use_bidirectional_attention", False, None),
    ignored("cache_implementation"),
)
HF = hf_family("gemma3_text", "Gemma3ForCausalLM", FIELDS, "gemma3", weights=gemma2.WEIGHTS, examples=EXAMPLES)


def _read_local_rope(fields: gguf.Metadata, values: Values) -> Values:
    local = Rope(gguf.decimal(fields.real("rope.freq_base_swa", 10_000.0)))
    return {"local_rope": None if local == values["rope"] or not values["windows"] else local}


def _local_rope_fields(flat: Values, spec: TransformerSpec) -> Values:
    local = flat["local_rope"] or flat["rope"] or Rope()
    return {"rope.freq_base_swa": local.theta if flat["windows"] else None}


ROWS = (
    gguf.SIZES,
    gemma2.SANDWICH,
    constant(qk_norm="head", activation="gelu_tanh"),
    gguf.rope(),
    gguf.windows(6),
    Field(_read_local_rope, _local_rope_fields),
    gemma2.gguf_scales(62, gguf.number(gemma2.LOGIT_CAP, "logit_cap")),
)
_GGUF_EXAMPLES = (EXAMPLES[0] | {"query_pre_attn_scalar": 8}, EXAMPLES[1])
GGUF = gguf_family("gemma3", ROWS, "gemma3_text", weights=gemma2.GGUF_WEIGHTS, examples=_GGUF_EXAMPLES)
