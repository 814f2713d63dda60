"""The gpt2 family (Radford et al. 2019, Language Models are Unsupervised Multitask Learners): Hugging Face's
`GPT2LMHeadModel`. Learned positions, LayerNorm, biases, fused projections that multiply from the other side (in
GGUF files from ours).
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from typing import Any

from bedplate.models.families import gguf_metadata as gguf
from bedplate.models.families.decoders import DROPOUTS, activation
from bedplate.models.families.family import hf_family
from bedplate.models.families.field_map import Field, constant, flag, ignored, layers, only, real, size, whole, written
from bedplate.models.families.gguf_family import decoder_weights, gguf_family
from bedplate.models.families.weights import PARTS, Rule, WeightMap, fused, qkv_rows, renamed, transposed, turned


def _qkv(part: str) -> tuple[str, ...]:
    return tuple(f"layers.{{i}}.attention.{name}.{part}" for name in "qkv")


def _rules(prefix: str) -> Iterator[Rule]:
    yield renamed("embedding.weight", f"{prefix}wte.weight")
    yield renamed("position_embedding.weight", f"{prefix}wpe.weight")
    for part in PARTS:
        qkv = fused(_qkv(part), f"{prefix}h.{{i}}.attn.c_attn.{part}", qkv_rows)
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


WEIGHTS = WeightMap(
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
FIELDS = (
    constant(kind="decoder", norm="layer", gated=False, attention_bias=True, feedforward_bias=True),
    size("vocab_size"),
    size("n_embd", "hidden_size"),
    layers("n_layer", "layers"),
    size("n_head", "heads"),
    Field(lambda _, values: {"kv_heads": values["heads"], "head_dim": values["hidden_size"] // values["heads"]}),
    whole("n_inner", "feedforward_size", lambda values: 4 * values["hidden_size"], null=...),
    whole("n_positions", "context_length", 1024),
    Field(lambda _, values: {"position_rows": values["context_length"]}),
    real("layer_norm_epsilon", "norm_eps", 1e-5),
    activation("activation_function", "gelu_new"),
    flag("tie_word_embeddings", "tied_head", True),
    only("n_ctx", itemgetter("context_length"), None),
    only("scale_attn_weights", True),
    only("scale_attn_by_inverse_layer_idx", False),
    only("add_cross_attention", False),
    # Scores in float32, which the plain way makes anyway; the head of classifiers; how to generate.
    ignored(*DROPOUTS, *_INERT, "reorder_and_upcast_attn", "task_specific_params"),
)
HF = hf_family("gpt2", "GPT2LMHeadModel", FIELDS, "gpt2", weights=WEIGHTS, examples=EXAMPLES)


ROWS = (
    gguf.SIZES,
    gguf.number("attention.layer_norm_epsilon", "norm_eps", 1e-5),
    written(**{"attention.layer_norm_rms_epsilon": None}),
    Field(lambda _, values: {"position_rows": values["context_length"]}),
    constant(norm="layer", activation="gelu_tanh", gated=False, attention_bias=True, feedforward_bias=True),
)
GGUF = gguf_family(
    "gpt2",
    ROWS,
    "gpt2",
    weights=decoder_weights(
        *(("attention.o", "attn_output"), ("feedforward.up", "ffn_up"), ("feedforward.down", "ffn_down")),
        more=(
            renamed("position_embedding.weight", "position_embd.weight"),
            *(fused(_qkv(part), f"blk.{{i}}.attn_qkv.{part}", qkv_rows) for part in PARTS),
        ),
    ),
    examples=(EXAMPLES[0], EXAMPLES[1] | {"activation_function": "gelu_new"}),
)
