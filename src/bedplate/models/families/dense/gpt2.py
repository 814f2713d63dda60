"""The gpt2 family (Radford et al. 2019, Language Models are Unsupervised Multitask Learners): Hugging Face's
`GPT2LMHeadModel`. Learned positions, LayerNorm, biases, fused projections that multiply from the other side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bedplate.models.families.decoders import DROPOUTS, PARTS, activation_name, take_activation
from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.weights import Rule, WeightMap, fused, renamed, transposed, turned
from bedplate.models.specs.transformer import TransformerSpec

_ORIGIN = "config.json (gpt2)"


def _thirds(spec: TransformerSpec) -> tuple[int, int, int]:
    return spec.hidden_size, spec.hidden_size, spec.hidden_size


def _rules(prefix: str) -> Iterator[Rule]:
    yield renamed("embedding.weight", f"{prefix}wte.weight")
    yield renamed("position_embedding.weight", f"{prefix}wpe.weight")
    for part in PARTS:
        qkv = fused(
            tuple(f"layers.{{i}}.attention.{n}.{part}" for n in "qkv"), f"{prefix}h.{{i}}.attn.c_attn.{part}", _thirds
        )
        yield turned(qkv) if part == "weight" else qkv
        for ours, theirs in (
            ("attention.o", "attn.c_proj"),
            ("feedforward.up", "mlp.c_fc"),
            ("feedforward.down", "mlp.c_proj"),
        ):
            change = transposed if part == "weight" else renamed
            yield change(f"layers.{{i}}.{ours}.{part}", f"{prefix}h.{{i}}.{theirs}.{part}")
        for ours, theirs in (("attention_norm", "ln_1"), ("feedforward_norm", "ln_2")):
            yield renamed(f"layers.{{i}}.{ours}.{part}", f"{prefix}h.{{i}}.{theirs}.{part}")
        yield renamed(f"norm.{part}", f"{prefix}ln_f.{part}")


HF_WEIGHTS = WeightMap(
    # The first published files are of the model without its head, whose names have no prefix.
    (*_rules("transformer."), *_rules(""), renamed("lm_head.weight", "lm_head.weight")),
    # The causal mask, which some files carry.
    ignorable=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
)
_TINY: dict[str, Any] = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 64}
_INERT = (
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
    *("n_special", "predict_special_tokens"),  # of the first published files' training
)
EXAMPLES = (_TINY, _TINY | {"n_head": 3, "n_inner": 80, "activation_function": "relu", "n_layer": 2})


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a GPT2LMHeadModel → spec."""
    fields = Fields(config, _ORIGIN)
    hidden, heads, context = (
        fields.size("n_embd"),
        fields.size("n_head"),
        fields.whole("n_positions", 1024),
    )
    fields.only("n_ctx", context, None)
    fields.only("scale_attn_weights", True)
    fields.only("scale_attn_by_inverse_layer_idx", False)
    fields.only("add_cross_attention", False)
    # Scores in float32, which the plain way makes anyway; the head of classifiers; how to generate.
    fields.ignore((*HF_BOOKKEEPING, *DROPOUTS, *_INERT, "reorder_and_upcast_attn", "task_specific_params"))
    spec = TransformerSpec.from_fields(
        kind="decoder",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        layers=fields.layers("n_layer"),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        feedforward_size=fields.whole("n_inner", 4 * hidden, null=4 * hidden),
        context_length=context,
        position_rows=context,
        norm="layer",
        norm_eps=fields.real("layer_norm_epsilon", 1e-5),
        activation=take_activation(fields, "activation_function", "gelu_new", _ORIGIN),
        gated=False,
        attention_bias=True,
        feedforward_bias=True,
        tied_head=fields.flag("tie_word_embeddings", True),
    )
    fields.finish()
    return spec


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": spec.vocab_size,
        "n_embd": spec.hidden_size,
        "n_layer": spec.layers,
        "n_head": spec.attention.heads,
        "n_inner": spec.feedforward.size,
        "n_positions": spec.context_length,
        "layer_norm_epsilon": spec.norm.eps,
        "activation_function": activation_name(spec.feedforward.activation),
        "tie_word_embeddings": spec.tied_head,
    }


HF = Family(("hf", "gpt2"), from_hf, to_hf, HF_WEIGHTS, (("gguf", "gpt2"),), examples=EXAMPLES)
