"""The gpt_neox family (https://arxiv.org/abs/2204.06745; Pythia): Hugging Face's `GPTNeoXForCausalLM`. Attention and
feed-forward side by side, a rope of a part of each head, LayerNorm, biases, projections fused head by head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

from bedplate.models.families.decoders import LLAMA_NORMS, PARTS, activation_name, layer_rules, take_activation
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.rope import rope_parameters, take_rope
from bedplate.models.families.weights import Rule, WeightMap, fused_heads, renamed
from bedplate.models.specs.transformer import Rope, TransformerSpec

_ORIGIN = "config.json (gpt_neox)"
_LAYER = "gpt_neox.layers.{i}."
_PAIRS = (
    ("attention.o", "attention.dense"),
    ("feedforward.up", "mlp.dense_h_to_4h"),
    ("feedforward.down", "mlp.dense_4h_to_h"),
)


def _rules() -> Iterator[Rule]:
    yield renamed("embedding.weight", "gpt_neox.embed_in.weight")
    yield from layer_rules(*_PAIRS, *LLAMA_NORMS, prefix=_LAYER)
    for part in PARTS:
        ours = tuple(f"layers.{{i}}.attention.{name}.{part}" for name in "qkv")
        yield fused_heads(ours, f"{_LAYER}attention.query_key_value.{part}", attrgetter("attention.heads"))
        yield renamed(f"norm.{part}", f"gpt_neox.final_layer_norm.{part}")
    yield renamed("lm_head.weight", "embed_out.weight")


HF_WEIGHTS = WeightMap(
    tuple(_rules()),
    # The causal mask and the rotary frequencies, which old files carry.
    ignorable=(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
)
_TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 128,
    "rotary_pct": 0.25,
}
EXAMPLES = (
    _TINY,
    _TINY
    | {
        "num_attention_heads": 3,
        "rotary_pct": 1.0,
        "use_parallel_residual": False,
        "attention_bias": False,
        "hidden_act": "gelu_new",
        "tie_word_embeddings": True,
    },
)


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a GPTNeoXForCausalLM → spec."""
    fields = Fields({**config, "rope_theta": config.get("rotary_emb_base", config.get("rope_theta"))}, _ORIGIN)
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    context, fraction = fields.whole("max_position_embeddings", 2048), fields.real("rotary_pct", 0.25)
    fields.only("is_decoder", False, True)
    fields.ignore((*HF_BOOKKEEPING, "rotary_emb_base", "attention_dropout", "hidden_dropout", "classifier_dropout"))
    spec = TransformerSpec.from_fields(
        kind="decoder",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        layers=fields.layers("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        feedforward_size=fields.size("intermediate_size"),
        context_length=context,
        norm="layer",
        norm_eps=fields.real("layer_norm_eps", 1e-5),
        rope=take_rope(fields, _ORIGIN, context=context, fraction=fraction),
        activation=take_activation(fields, "hidden_act", "gelu", _ORIGIN),
        gated=False,
        attention_bias=fields.flag("attention_bias", True),
        feedforward_bias=True,
        parallel=fields.flag("use_parallel_residual", True),
        tied_head=fields.flag("tie_word_embeddings", False),
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    rope = spec.position.rope or Rope()
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.attention.heads,
        "intermediate_size": spec.feedforward.size,
        "max_position_embeddings": spec.context_length,
        "layer_norm_eps": spec.norm.eps,
        "hidden_act": activation_name(spec.feedforward.activation),
        "attention_bias": spec.attention.bias,
        "use_parallel_residual": spec.parallel,
        "tie_word_embeddings": spec.tied_head,
        "rotary_pct": rope.fraction,
        "rotary_emb_base": rope.theta,
        "rope_parameters": rope_parameters(rope) | {"partial_rotary_factor": rope.fraction},
    }


HF = Family(("hf", "gpt_neox"), from_hf, to_hf, HF_WEIGHTS, examples=EXAMPLES)
