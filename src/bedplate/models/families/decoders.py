"""What config.json and the tensors of decoders share: llama's fields and names, which most families keep."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeVar

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families import field_map as row
from bedplate.models.families.field_map import Field, Values
from bedplate.models.families.fields import Fields
from bedplate.models.families.rope import FULL, SLIDING, rope
from bedplate.models.families.weights import LAYER, Rule, Tensors, WeightMap, renamed, renames
from bedplate.models.specs.parts import Activation
from bedplate.models.specs.transformer import TransformerSpec

T = TypeVar("T")

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
        *renames(*pairs, ours=LAYER, theirs=f"{prefix}{LAYER}"),
        *renames(("norm", "norm"), theirs=prefix),
        renamed("lm_head.weight", "lm_head.weight"),
    )


def decoder_weights(*pairs: tuple[str, str], more: Iterable[Rule] = ()) -> WeightMap:
    """The weights of a decoder with llama's tables: of each layer these pairs, and `more` rules."""
    return WeightMap((*decoder_rules(*pairs), *more), IGNORABLE)


LLAMA_WEIGHTS = decoder_weights(*ATTENTION, *QK_NORMS, *GATED, *LLAMA_NORMS)
"""Llama's names, and those of norms of queries and keys where a model has them."""


def sizes(*, head_dim: int | None = None, context: int = 2048, tied: bool = False) -> tuple[Field, ...]:
    """The sizes of a decoder, and whether its head is tied. head_dim, context, tied: where none is said."""
    return (
        row.constant(kind="decoder"),
        row.size("hidden_size"),
        row.size("num_attention_heads", "heads"),
        row.size("vocab_size"),
        row.layers("num_hidden_layers", "layers"),
        row.whole("num_key_value_heads", "kv_heads", itemgetter("heads"), null=...),
        row.whole(
            "head_dim", "head_dim", head_dim or (lambda values: values["hidden_size"] // values["heads"]), null=...
        ),
        row.size("intermediate_size", "feedforward_size"),
        row.whole("max_position_embeddings", "context_length", context),
        row.flag("tie_word_embeddings", "tied_head", tied),
    )


def multi_head_sizes() -> tuple[Field, ...]:
    """The sizes of a stack that has as many heads of keys and values as of queries."""
    return (
        row.size("vocab_size"),
        row.size("hidden_size"),
        row.layers("num_hidden_layers", "layers"),
        row.size("num_attention_heads", "heads"),
        Field(lambda _, values: {"kv_heads": values["heads"], "head_dim": values["hidden_size"] // values["heads"]}),
        row.size("intermediate_size", "feedforward_size"),
    )


def rms_norm(eps: float) -> Field:
    """The epsilon of the norms; eps: where none is said."""
    return row.real("rms_norm_eps", "norm_eps", eps)


def activation(name: str = "hidden_act", default: str = "silu") -> Field:
    return row.named_value(name, "activation", default, ACTIVATIONS)


SILU = row.only("hidden_act", "silu", written=True)
ATTENTION_BIAS = row.flag("attention_bias", "attention_bias", False)
MLP_BIAS = row.flag("mlp_bias", "feedforward_bias", False)
NO_DROPOUT = row.written(attention_dropout=0.0)
"""As no model here has."""


def plain(eps: float, theta: float = 10_000.0) -> tuple[Field, ...]:
    """What llama's descendants name alike: the norms' epsilon, the one rope and the activation. eps, theta: where none
    is said."""
    return rms_norm(eps), rope(theta=theta), activation(), NO_DROPOUT


def windows(*types: str, size: int) -> Field:
    """The window of each layer. types: of the layers, repeated over them, where no `layer_types` are given; size: of
    the window where none is said."""

    def read(fields: Fields, values: Values) -> Values:
        window = fields.optional("sliding_window", size)
        return {"windows": take_windows(fields, values["layers"], window, types)}

    return Field(read, lambda flat, spec: window_fields(spec))


def one_window(default: int | None = None) -> Field:
    """One window for all layers, or none. default: where none is said."""

    def read(fields: Fields, values: Values) -> Values:
        window = fields.optional("sliding_window", default)
        return {"windows": () if window is None else (window,)}

    return Field(read, lambda flat, spec: {"sliding_window": spec.window(0)})


def take_windows(fields: Fields, count: int, window: int | None, default: Sequence[str]) -> tuple[int | None, ...]:
    """The window of each of `count` layers, from `layer_types`, or without them from `default`, repeated over them."""
    types = fields.sequence("layer_types")
    types = [default[layer % len(default)] for layer in range(count)] if types is None else types
    check_types(types, count, (FULL, SLIDING), fields.origin)
    if window is None and SLIDING in types:
        raise UnsupportedModelError(f"{fields.origin}: layer_types has {SLIDING!r}, but sliding_window says no size")
    return shortest([window if attention_type == SLIDING else None for attention_type in types], None)


def check_types(types: Sequence[Any], count: int, supported: Collection[str], origin: str) -> None:
    """Refuses `layer_types` that are not `count` of the supported ones."""
    if len(types) != count:
        raise UnsupportedModelError(f"{origin}: {len(types)} layer_types for {count} layers")
    for layer_type in types:
        Fields({"layer_types": layer_type}, origin).only("layer_types", *supported)


def window_fields(spec: TransformerSpec) -> dict[str, Any]:
    """The inverse: `sliding_window` and `layer_types`. UnsupportedModelError for windows of several sizes."""
    widths = {window for window in spec.attention.windows if window is not None}
    if len(widths) > 1:
        raise UnsupportedModelError(f"windows of {sorted(widths)} tokens: config.json can say only one size")
    types = [FULL if spec.window(layer) is None else SLIDING for layer in range(spec.layers)]
    return {"sliding_window": next(iter(widths), None), "layer_types": types}


def shortest(values: Sequence[T], default: T) -> tuple[T, ...]:
    """The shortest list that makes these values of layers when it is repeated; () where all are the default."""
    if all(value == default for value in values):
        return ()
    repeats = (n for n in range(1, len(values) + 1) if all(value == values[i % n] for i, value in enumerate(values)))
    return tuple(values[: next(repeats)])


DROPOUTS = ("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "residual_dropout", "embedding_dropout")
"""They act in training alone, and Bedplate's models have none."""


def state_layers(
    mixer: Field,
    types: Mapping[str, bool],
    default: Callable[[Fields, Values], Sequence[str]],
    older: str | None = None,
) -> Field:
    """Which layers keep a state, and what mixes their tokens. mixer: reads `state`. types: the types of layers, and
    whether they keep one; the first that does and the first that does not are written. default: the types where the
    config has none, also not under the name `older`."""
    state, attention = (next(name for name, keeps in types.items() if keeps is stateful) for stateful in (True, False))

    def read(fields: Fields, values: Values) -> Values:
        layer_types, older_types = fields.sequence("layer_types"), fields.sequence(older) if older else None
        usual = default(fields, values)
        layer_types = next((listed for listed in (layer_types, older_types) if listed is not None), usual)
        check_types(layer_types, values["layers"], types, fields.origin)
        pattern = shortest([types[layer_type] for layer_type in layer_types], False)
        state_fields = mixer.read(fields, values)
        return {**state_fields, "state_layers": pattern} if pattern else {}

    def write(flat: Values, spec: TransformerSpec) -> Values:
        named = [attention if spec.mixer(layer) == "attention" else state for layer in range(spec.layers)]
        return {**mixer.write(flat, spec), "layer_types": named}

    return Field(read, write)


def convolution(ours: str, theirs: str) -> Rule:
    """Weights [features, width] of a convolution, in theirs [features, 1, width]."""

    def forward(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        return [tensor[:, None] for tensor in tensors]

    def inverse(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        return [tensor[:, 0] for tensor in tensors]

    return Rule((ours,), (theirs,), forward, inverse)


def tiny(**fields: Any) -> dict[str, Any]:
    """An example's config: what most families' have in common, and these fields."""
    return {
        "vocab_size": 97,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 80,
        "max_position_embeddings": 128,
    } | fields
