"""The gpt_neox family (https://arxiv.org/abs/2204.06745; Pythia): Hugging Face's `GPTNeoXForCausalLM`. Attention and
feed-forward side by side, a rope of a part of each head, LayerNorm, biases, projections fused head by head.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from bedplate.models.families.decoders import LLAMA_NORMS, activation, multi_head_sizes, tiny
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, Values, constant, flag, ignored, only, real, whole
from bedplate.models.families.fields import Fields
from bedplate.models.families.rope import rope_parameters, take_rope
from bedplate.models.families.weights import LAYER, PARTS, Rule, WeightMap, fused_heads, renamed, renames
from bedplate.models.specs.transformer import Rope, TransformerSpec

_LAYER = "gpt_neox.layers.{i}."
_PAIRS = (
    ("attention.o", "attention.dense"),
    ("feedforward.up", "mlp.dense_h_to_4h"),
    ("feedforward.down", "mlp.dense_4h_to_h"),
)


def _rules() -> Iterator[Rule]:
    yield renamed("embedding.weight", "gpt_neox.embed_in.weight")
    yield from renames(*_PAIRS, *LLAMA_NORMS, ours=LAYER, theirs=_LAYER)
    yield from renames(("norm", "gpt_neox.final_layer_norm"))
    for part in PARTS:
        ours = tuple(f"layers.{{i}}.attention.{name}.{part}" for name in "qkv")
        yield fused_heads(ours, f"{_LAYER}attention.query_key_value.{part}", attrgetter("attention.heads"))
    yield renamed("lm_head.weight", "embed_out.weight")


WEIGHTS = WeightMap(
    tuple(_rules()),
    # The causal mask and the rotary frequencies, which old files carry.
    ignorable=(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
)
_TINY = tiny()
del _TINY["num_key_value_heads"]
_OTHER = {"num_attention_heads": 3, "attention_bias": False, "hidden_act": "gelu_new", "tie_word_embeddings": True}
EXAMPLES = (_TINY | {"rotary_pct": 0.25}, _TINY | _OTHER | {"rotary_pct": 1.0, "use_parallel_residual": False})


def _read_rope(fields: Fields, values: Values) -> Values:
    fraction = fields.real("rotary_pct", 0.25)
    return {"rope": take_rope(fields, context=values["context_length"], fraction=fraction)}


def _rope_fields(flat: Values, spec: TransformerSpec) -> Values:
    rope = flat["rope"] or Rope()
    parameters = rope_parameters(rope) | {"partial_rotary_factor": rope.fraction}
    return {"rotary_pct": rope.fraction, "rotary_emb_base": rope.theta, "rope_parameters": parameters}


FIELDS = (
    constant(kind="decoder", norm="layer", gated=False, feedforward_bias=True),
    *multi_head_sizes(),
    whole("max_position_embeddings", "context_length", 2048),
    real("layer_norm_eps", "norm_eps", 1e-5),
    Field(_read_rope, _rope_fields),
    activation(default="gelu"),
    flag("attention_bias", "attention_bias", True),
    flag("use_parallel_residual", "parallel", True),
    flag("tie_word_embeddings", "tied_head", False),
    only("is_decoder", False, True),
    ignored("rotary_emb_base", "hidden_dropout", "classifier_dropout"),
)

HF = hf_family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    FIELDS,
    weights=WEIGHTS,
    examples=EXAMPLES,
    prepare=lambda config: {**config, "rope_theta": config.get("rotary_emb_base", config.get("rope_theta"))},
)
