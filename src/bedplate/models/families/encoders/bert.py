"""The bert family (BERT, MiniLM sentence encoders): Hugging Face's `BertModel`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bedplate.models.families.family import Family
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.weights import WeightMap, renamed
from bedplate.models.specs.transformer import Activation, TransformerSpec

_LAYER = (
    ("attention.q", "attention.self.query"),
    ("attention.k", "attention.self.key"),
    ("attention.v", "attention.self.value"),
    ("attention.o", "attention.output.dense"),
    ("attention_norm", "attention.output.LayerNorm"),
    ("feedforward.up", "intermediate.dense"),
    ("feedforward.down", "output.dense"),
    ("feedforward_norm", "output.LayerNorm"),
)
_PARTS = ("weight", "bias")

HF_WEIGHTS = WeightMap(
    rules=(
        renamed("embedding.weight", "embeddings.word_embeddings.weight"),
        renamed("position_embedding.weight", "embeddings.position_embeddings.weight"),
        renamed("token_type_embedding.weight", "embeddings.token_type_embeddings.weight"),
        *(renamed(f"embedding_norm.{part}", f"embeddings.LayerNorm.{part}") for part in _PARTS),
        *(
            renamed(f"layers.{{i}}.{ours}.{part}", f"encoder.layer.{{i}}.{theirs}.{part}")
            for ours, theirs in _LAYER
            for part in _PARTS
        ),
        *(renamed(f"pooler.{part}", f"pooler.dense.{part}") for part in _PARTS),
    ),
    # The position numbers 0 … n−1 as a buffer, and the pretraining heads, which an encoder's outputs do not use.
    ignorable=(r"(bert\.)?embeddings\.position_ids", r"cls\..*"),
    prefixes=("bert.",),
)

_ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu"}


_TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
EXAMPLES = (_TINY, _TINY | {"num_hidden_layers": 2, "hidden_act": "gelu_new", "type_vocab_size": 1})


def from_hf(config: Mapping[str, Any]) -> TransformerSpec:
    """`config.json` of a BertModel → spec, without a pooler: see `by_names`."""
    fields = Fields(config, "config.json (bert)")
    hidden, heads = int(fields.need("hidden_size")), int(fields.need("num_attention_heads"))
    fields.only("position_embedding_type", "absolute")
    fields.only("is_decoder", False)
    fields.only("add_cross_attention", False)
    activation = fields.take("hidden_act", "gelu")
    fields.take("hidden_act")
    checked = Fields({"hidden_act": activation}, "config.json (bert)")
    checked.only("hidden_act", *_ACTIVATIONS)
    # Dropout acts in pretraining only; Bedplate's encoders have none.
    fields.ignore((*HF_BOOKKEEPING, "attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout"))
    fields.ignore(("tie_word_embeddings",))
    spec = TransformerSpec(
        kind="encoder",
        vocab_size=int(fields.need("vocab_size")),
        hidden_size=hidden,
        layers=int(fields.need("num_hidden_layers")),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        feedforward_size=int(fields.need("intermediate_size")),
        context_length=int(fields.need("max_position_embeddings")),
        norm="layer",
        norm_eps=float(fields.take("layer_norm_eps", 1e-12)),
        norm_placement="post",
        activation=_ACTIVATIONS[activation],
        gated=False,
        attention_bias=True,
        feedforward_bias=True,
        tied_head=True,
        token_types=int(fields.take("type_vocab_size", 2)),
    )
    fields.finish()
    return spec


def by_names(spec: TransformerSpec, names: Collection[str]) -> TransformerSpec:
    """With a pooler where the files hold one: the config says nothing of it."""
    return spec.with_(pooler=any(HF_WEIGHTS.bare(name) == "pooler.dense.weight" for name in names))


def to_hf(spec: TransformerSpec) -> dict[str, Any]:
    """Spec → the `config.json` that transformers loads."""
    activation = next(name for name, ours in _ACTIVATIONS.items() if ours == spec.activation)
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.feedforward_size,
        "max_position_embeddings": spec.context_length,
        "layer_norm_eps": spec.norm_eps,
        "hidden_act": activation,
        "type_vocab_size": spec.token_types,
    }


HF = Family(("hf", "bert"), from_hf, to_hf, HF_WEIGHTS, by_names=by_names, examples=EXAMPLES)
