"""What config.json and the tensors of decoders share: llama's fields and names, which most families keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.fields import Fields
from bedplate.models.families.rope import FULL, SLIDING, rope_parameters, take_rope
from bedplate.models.families.weights import Rule, renamed
from bedplate.models.specs.transformer import Activation, Rope, TransformerSpec

T = TypeVar("T")

PARTS = ("weight", "bias")
LLAMA_NORMS = (("attention_norm", "input_layernorm"), ("feedforward_norm", "post_attention_layernorm"))
SANDWICH_NORMS = (
    ("attention_norm", "input_layernorm"),
    ("attention_after_norm", "post_attention_layernorm"),
    ("feedforward_norm", "pre_feedforward_layernorm"),
    ("feedforward_after_norm", "post_feedforward_layernorm"),
)
QK_NORMS = (("attention.q_norm", "self_attn.q_norm"), ("attention.k_norm", "self_attn.k_norm"))
ATTENTION = tuple((f"attention.{name}", f"self_attn.{name}_proj") for name in "qkvo")
GATED = tuple((f"feedforward.{name}", f"mlp.{name}_proj") for name in ("gate", "up", "down"))
IGNORABLE = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq")
"""Old checkpoints carry the rotary frequencies, which follow from the config."""

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "quick_gelu": "quick_gelu",
}


def decoder_rules(*pairs: tuple[str, str], prefix: str = "model.") -> tuple[Rule, ...]:
    """The tables and the head as llama's, and of each layer these pairs of our names and theirs."""
    return (
        renamed("embedding.weight", f"{prefix}embed_tokens.weight"),
        *layer_rules(*pairs, prefix=f"{prefix}layers.{{i}}."),
        *(renamed(f"norm.{part}", f"{prefix}norm.{part}") for part in PARTS),
        renamed("lm_head.weight", "lm_head.weight"),
    )


def layer_rules(*pairs: tuple[str, str], prefix: str) -> Iterable[Rule]:
    """Weights and biases of each layer under other names; parameters that a model does not have are passed over."""
    return (
        renamed(f"layers.{{i}}.{ours}.{part}", f"{prefix}{theirs}.{part}") for ours, theirs in pairs for part in PARTS
    )


def take_sizes(
    fields: Fields, *, head_dim: int | None = None, context: int = 2048, tied: bool = False
) -> dict[str, Any]:
    """The fields of a spec that are sizes, and its tied head. head_dim, context, tied: where none is said."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    usual = head_dim or hidden // heads
    return {
        "kind": "decoder",
        "vocab_size": fields.size("vocab_size"),
        "hidden_size": hidden,
        "layers": fields.layers("num_hidden_layers"),
        "heads": heads,
        "kv_heads": fields.whole("num_key_value_heads", heads, null=heads),
        "head_dim": fields.whole("head_dim", usual, null=usual),
        "feedforward_size": fields.size("intermediate_size"),
        "context_length": fields.whole("max_position_embeddings", context),
        "tied_head": fields.flag("tie_word_embeddings", tied),
    }


def size_fields(spec: TransformerSpec, model_type: str, architecture: str) -> dict[str, Any]:
    """The inverse of `take_sizes`, and what says which model it is."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.attention.heads,
        "num_key_value_heads": spec.attention.kv_heads,
        "head_dim": spec.attention.head_dim,
        "intermediate_size": spec.feedforward.size,
        "max_position_embeddings": spec.context_length,
        "tie_word_embeddings": spec.tied_head,
    }


def take_activation(fields: Fields, name: str, default: str, origin: str) -> Activation:
    """An activation by its name in transformers."""
    hf_name = fields.text(name, default)
    activation = ACTIVATIONS.get(hf_name)
    if activation is None:
        supported = ", ".join(repr(key) for key in ACTIVATIONS)
        raise UnsupportedModelError(f"{origin}: {name} = {hf_name!r} is not supported (only {supported})")
    return activation


def activation_name(activation: Activation) -> str:
    """The inverse: the first name of several."""
    return next(name for name, ours in ACTIVATIONS.items() if ours == activation)


def take_plain(fields: Fields, origin: str, context: int, *, eps: float, theta: float = 10_000.0) -> dict[str, Any]:
    """The fields of a spec that llama's descendants name alike: the norms' epsilon, the one rope and the activation.
    eps, theta: where none is said."""
    return {
        "norm_eps": fields.real("rms_norm_eps", eps),
        "rope": take_rope(fields, origin, context=context, theta=theta),
        "activation": take_activation(fields, "hidden_act", "silu", origin),
    }


def plain_fields(spec: TransformerSpec) -> dict[str, Any]:
    """The inverse, with the dropout that no model here has."""
    rope = spec.position.rope or Rope()
    return {
        "rms_norm_eps": spec.norm.eps,
        "hidden_act": activation_name(spec.feedforward.activation),
        "attention_dropout": 0.0,
        "rope_theta": rope.theta,
        "rope_parameters": rope_parameters(rope),
    }


def take_windows(
    fields: Fields, layers: int, window: int | None, default: Sequence[str], origin: str
) -> tuple[int | None, ...]:
    """The window of each layer, from `layer_types`, or without them from `default`, repeated over the layers."""
    types = fields.sequence("layer_types")
    types = [default[layer % len(default)] for layer in range(layers)] if types is None else types
    if len(types) != layers:
        raise UnsupportedModelError(f"{origin}: {len(types)} layer_types for {layers} layers")
    for layer_type in types:
        Fields({"layer_types": layer_type}, origin).only("layer_types", FULL, SLIDING)
    if window is None and SLIDING in types:
        raise UnsupportedModelError(f"{origin}: layer_types has {SLIDING!r}, but sliding_window says no size")
    return shortest([window if attention_type == SLIDING else None for attention_type in types], None)


def window_fields(spec: TransformerSpec) -> dict[str, Any]:
    """The inverse: `sliding_window` and `layer_types`. UnsupportedModelError for windows of several sizes."""
    sizes = {window for window in spec.attention.windows if window is not None}
    if len(sizes) > 1:
        raise UnsupportedModelError(f"windows of {sorted(sizes)} tokens: config.json can say only one size")
    types = [FULL if spec.window(layer) is None else SLIDING for layer in range(spec.layers)]
    return {"sliding_window": next(iter(sizes), None), "layer_types": types}


def shortest(values: Sequence[T], default: T) -> tuple[T, ...]:
    """The shortest list that makes these values of layers when it is repeated; () where all are the default."""
    if all(value == default for value in values):
        return ()
    size = next(
        n
        for n in range(1, len(values) + 1)
        if all(layer_value == values[i % n] for i, layer_value in enumerate(values))
    )
    return tuple(values[:size])


def one_window(window: int | None) -> tuple[int | None, ...]:
    """The windows of a model whose layers all have this one, or none."""
    return () if window is None else (window,)


DROPOUTS = ("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "residual_dropout", "embedding_dropout")
"""They act in training alone, and Bedplate's models have none."""


TINY: Mapping[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 128,
}
"""What most families' examples have in common."""
