"""A transformer as data: everything a builder or a cost model needs to know, nothing about any library's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.specs.attention import AttentionSpec, FullAttention, LatentAttention, SharedKeys
from bedplate.models.specs.checks import BEYOND, at_least
from bedplate.models.specs.feedforward import Activation, Experts, FeedForwardSpec, Scoring
from bedplate.models.specs.flat import flat_fields, grouped_fields, hashed_fields
from bedplate.models.specs.heads import Classifier, MaskedHead, Problem
from bedplate.models.specs.norm import NormPlacement, NormSpec, Scales
from bedplate.models.specs.position import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    PositionSpec,
    RelativeBias,
    Rope,
    YarnScaling,
)
from bedplate.models.specs.state_mixers import DeltaRule, Mamba2, ShortConvolution, StateSpec

__all__ = [
    "Activation",
    "AttentionSpec",
    "Classifier",
    "Experts",
    "FeedForwardKind",
    "FeedForwardSpec",
    "FullAttention",
    "LatentAttention",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "MaskedHead",
    "Mixer",
    "NormPlacement",
    "NormSpec",
    "PositionSpec",
    "Problem",
    "RelativeBias",
    "Rope",
    "Scales",
    "Scoring",
    "SharedKeys",
    "StateSpec",
    "TransformerSpec",
    "YarnScaling",
]

Mixer = Literal["attention", "latent", "convolution", "delta_rule", "mamba2"]
FeedForwardKind = Literal["dense", "experts"]
_STATES: dict[type, Mixer] = {ShortConvolution: "convolution", DeltaRule: "delta_rule", Mamba2: "mamba2"}


@dataclass(frozen=True)
class TransformerSpec:
    """One stack of transformer blocks, grouped by part.

    Sizes are counts of features, heads or tokens. A "tower" is an encoder over features that a stem makes (of an image,
    of sound): it has no vocabulary (`vocab_size` 0). `pooling` is how hidden states become one vector where nothing
    else is asked for. Files, hashes and messages name the fields of parts flat (specs/flat.py): `heads` for
    `attention.heads`; `from_fields` and `with_` take those names.

    feedforward: of the dense layers, where some have experts.
    state: a mixer that some layers have in the place of attention.
    parallel: attention and feed-forward both read the block's input (GPT-NeoX).
    head_bias: one number a token that is added to the logits and not trained: a buffer, no parameter (BART, Marian).
    prediction_modules: blocks after the last that predict further tokens (DeepSeek-V3, https://arxiv.org/abs/2412.19437).
    layer_input_size: features of what every block is given of the token beside its input: a row of one more table and a
        projection of its embedding, added up, which the block's state gates (Gemma 3n, Gemma-4); 0: nothing.
    output_scales: what a block gives is multiplied by one number that is not trained: a buffer, no parameter (Gemma-4).
    classifier, masked_head: of an encoder, the head that its checkpoint comes with, or was pretrained with.
    """

    kind: Literal["decoder", "encoder", "tower"]
    vocab_size: int
    hidden_size: int
    layers: int
    context_length: int
    attention: AttentionSpec
    feedforward: FeedForwardSpec
    norm: NormSpec = field(default_factory=NormSpec)
    position: PositionSpec = field(default_factory=PositionSpec)
    experts: Experts | None = None
    state: StateSpec = field(default_factory=StateSpec)
    scales: Scales | None = None
    parallel: bool = False
    tied_head: bool = True
    head_bias: bool = False
    prediction_modules: int = 0
    layer_input_size: int = 0
    output_scales: bool = False
    token_types: int = 0
    pooler: bool = False
    pooling: Literal["mean", "first", "last"] = "mean"
    classifier: Classifier | None = None
    masked_head: MaskedHead | None = None

    @classmethod
    def from_fields(cls, **fields: Any) -> TransformerSpec:
        """A spec of flat fields, as `flat` gives them; those left out have their defaults."""
        return cls(**grouped_fields(cls, fields))

    def flat(self) -> dict[str, Any]:
        """Every field of the spec and of its parts, by its flat name."""
        return flat_fields(self)

    def with_(self, **changes: Any) -> TransformerSpec:
        """A copy with some fields changed, given by their flat names."""
        return self.from_fields(**{**self.flat(), **changes})

    def key(self) -> dict[str, Any]:
        """The fields as plain data, for hashes that must not change when a spec learns to say more: fields that came
        after `pooling`, and parts' fields that came later, are left out where they say nothing new."""
        return hashed_fields(self)

    def __post_init__(self) -> None:
        attention, position = self.attention, self.position
        sizes = ("hidden_size", "layers", "heads", "kv_heads", "head_dim", "feedforward_size", "context_length")
        fields = self.flat()
        at_least(fields, 1, *sizes)
        for name, value in fields.items():
            if isinstance(value, int | float) and not abs(value) < BEYOND:
                raise UnsupportedModelError(f"{name} is {value}: it must be a finite number under {BEYOND:g}")
        at_least(fields, 0, "norm_eps")
        if self.kind != "tower":
            at_least(fields, 1, "vocab_size")
        elif self.vocab_size or self.token_types or attention.value_tables:
            raise UnsupportedModelError("a tower takes features, not tokens: vocab_size and its tables must be 0")
        at_least(fields, 0, "token_types", "value_tables", "prediction_modules", "position_offset", "layer_input_size")
        for kv_heads in (attention.kv_heads, (attention.full and attention.full.kv_heads) or attention.kv_heads):
            if attention.heads % kv_heads:
                raise UnsupportedModelError(
                    f"{attention.heads} attention heads cannot share {kv_heads} key-value heads: heads must be a "
                    "multiple"
                )
        if position.rope is not None and self.rotary_dim % 2:
            raise UnsupportedModelError(f"rotary positions need an even head size, not {self.rotary_dim}")
        scaling = None if position.rope is None else position.rope.scaling
        if isinstance(scaling, LongRopeScaling) and len(scaling.short) != self.rotary_dim // 2:
            raise UnsupportedModelError(
                f"longrope has {len(scaling.short)} factors, but {self.rotary_dim // 2} pairs of a head's features turn"
            )
        if attention.value_tables > self.layers:
            raise UnsupportedModelError(f"{attention.value_tables} value tables, but only {self.layers} layers")
        self._check_attention(fields)
        self._check_state()
        self._check_optional_parts()
        self._check_shared_keys()
        if position.offset and 0 < self.positions < self.context_length + position.offset:
            raise UnsupportedModelError(
                f"{self.positions} learned positions, {position.offset} of them an offset, are fewer than the "
                f"context_length of {self.context_length}"
            )
        if self.classifier is not None and self.classifier.on_pooler and not self.pooler:
            raise UnsupportedModelError("a classifier on the pooler needs one: pooler must be true")

    def _check_attention(self, fields: dict[str, Any]) -> None:
        attention = self.attention
        for window in attention.windows:
            if window is not None and not 1 <= window < BEYOND:
                raise UnsupportedModelError(
                    f"a window of {window} tokens: it must be at least 1 and under {BEYOND:g}, or None for all"
                )
        if self.position.rows is not None:
            at_least(fields, 0, "position_rows")
        if attention.cross_size is not None:
            at_least(fields, 1, "cross_size")
            if self.kind != "decoder":
                raise UnsupportedModelError(f"cross_size is for decoders, not for an {self.kind}")
        if self.position.sinusoids and self.hidden_size % 2:
            raise UnsupportedModelError(f"sinusoids need an even hidden_size, not {self.hidden_size}")
        if self.prediction_modules and self.kind != "decoder":
            raise UnsupportedModelError(f"prediction_modules are for decoders, not for an {self.kind}")
        latent = attention.latent
        if latent is not None:
            if (attention.kv_heads, attention.head_dim) != (attention.heads, latent.key_dim):
                raise UnsupportedModelError(
                    f"latent attention has as many key-value heads as heads ({attention.heads}) and a head_dim of "
                    f"nope_dim + rope_dim ({latent.key_dim}), not {attention.kv_heads} and {attention.head_dim}"
                )
            if attention.qk_norm is not None or attention.sinks or attention.cross_size is not None:
                raise UnsupportedModelError("latent attention has no qk_norm, attention_sinks or cross_size")

    def _check_state(self) -> None:
        attention = self.attention
        if self.state.layers and self.state.mixer is None:
            raise UnsupportedModelError("state_layers say where the layers of `state` are, and it is None")
        if self.state.mixer is not None and self.kind != "decoder":
            raise UnsupportedModelError(f"state is for decoders, not for an {self.kind}")
        if attention.gate and (attention.latent is not None or attention.cross_size is not None):
            raise UnsupportedModelError("attention_gate is for self-attention with keys and values only")

    def _check_optional_parts(self) -> None:
        """Refuses parts that no layer can have together."""
        attention = self.attention
        optional = {
            "full": attention.full,
            "shared_keys": attention.shared_keys,
            "value_norm": attention.value_norm or None,
        }
        named = next((name for name, part in optional.items() if part is not None), None)
        exclusive = {"latent": attention.latent, "cross_size": attention.cross_size, "state": self.state.mixer}
        conflict = next((name for name, part in exclusive.items() if part is not None), None)
        if named is not None and (conflict is not None or attention.gate or attention.value_tables):
            conflict = conflict or "gates and tables"
            raise UnsupportedModelError(f"{named} is for self-attention with keys and values, not beside {conflict}")
        if (self.layer_input_size or self.output_scales) and self.kind != "decoder":
            raise UnsupportedModelError(f"layer_input_size and output_scales are for decoders, not for an {self.kind}")
        if (self.layer_input_size or attention.shared_keys) and self.prediction_modules:
            raise UnsupportedModelError("prediction_modules have no place beside layer_input_size and shared_keys")

    def _check_shared_keys(self) -> None:
        """Refuses shared keys and values where no earlier layer has the sharing layer's window."""
        if self.attention.shared_keys is None:
            return
        first = self.layers - self.attention.shared_keys.layers
        missing = next((n for n in range(max(first, 0), self.layers) if self._key_source(n, first) is None), None)
        if missing is not None:
            raise UnsupportedModelError(
                f"layer {missing} shares keys and values, and none of the {max(first, 0)} layers that have their own "
                f"has a window of {self.window(missing)}"
            )

    def _key_source(self, layer: int, before: int) -> int | None:
        """The last layer before `before` with this layer's window."""
        return next((n for n in range(before - 1, -1, -1) if self.window(n) == self.window(layer)), None)

    @property
    def source_vocab_size(self) -> int:
        """Tokens that it reads: those that it writes."""
        return self.vocab_size

    @property
    def rotary_dim(self) -> int:
        """Features of a head that turn with the position; 0 without rotary positions."""
        rope, latent = self.position.rope, self.attention.latent
        if rope is None:
            return 0
        return int((self.attention.head_dim if latent is None else latent.rope_dim) * rope.fraction)

    @property
    def positions(self) -> int:
        """Rows of the learned position table."""
        if self.position.rows is not None:
            return self.position.rows
        return self.context_length if self.kind == "encoder" and self.position.rope is None else 0

    @property
    def norms_embedding(self) -> bool:
        """Whether embeddings are normalised before the first block."""
        return self.kind == "encoder" if self.norm.embedding is None else self.norm.embedding

    @property
    def norms_output(self) -> bool:
        """Whether the last block's states are normalised."""
        return self.kind == "decoder" if self.norm.final is None else self.norm.final

    @property
    def has_key_bias(self) -> bool:
        return self.attention.bias if self.attention.key_bias is None else self.attention.key_bias

    @property
    def has_output_bias(self) -> bool:
        return self.attention.bias if self.attention.output_bias is None else self.attention.output_bias

    # A spec of one stack, as what reads and writes with several speaks of itself.

    @property
    def main(self) -> TransformerSpec:
        """The stack that writes, where there are several."""
        return self

    @property
    def deepest(self) -> int:
        """Blocks of the deepest stack."""
        return self.layers

    @property
    def sequence_length(self) -> int:
        """Tokens of one sequence in a cache at most: what is read and what is written."""
        return self.context_length

    # What one layer has.

    def window(self, layer: int) -> int | None:
        """How many tokens this layer's queries see; None: all."""
        windows = self.attention.windows
        return windows[layer % len(windows)] if windows else None

    def rope_of(self, layer: int) -> Rope | None:
        """This layer's rotary positions."""
        position = self.position
        if position.rope_layers and not position.rope_layers[layer % len(position.rope_layers)]:
            return None
        return position.rope if position.local_rope is None or self.window(layer) is None else position.local_rope

    def head_dim_of(self, layer: int) -> int:
        """Features of one of this layer's heads."""
        return self._full(layer).head_dim or self.attention.head_dim

    def kv_heads_of(self, layer: int) -> int:
        """How many heads of keys and values this layer has, or uses."""
        return self._full(layer).kv_heads or self.attention.kv_heads

    def keys_are_values(self, layer: int) -> bool:
        """Whether this layer has no product for values."""
        return self._full(layer).keys_are_values

    def _full(self, layer: int) -> FullAttention:
        full = self.attention.full
        return FullAttention() if full is None or self.window(layer) is not None else full

    def keys_of(self, layer: int) -> int:
        """The layer whose keys and values this one uses: itself, where it does not share them."""
        shared = self.attention.shared_keys
        first = self.layers - (0 if shared is None else shared.layers)
        source = self._key_source(layer, first) if first <= layer < self.layers else layer
        return layer if source is None else source

    def feedforward_size_of(self, layer: int) -> int:
        """Features within this layer's dense feed-forward."""
        shared = self.attention.shared_keys
        if shared is not None and layer >= self.layers - shared.layers and shared.feedforward_size:
            return shared.feedforward_size
        return self.feedforward.size

    def mixer(self, layer: int) -> Mixer:
        """What mixes the tokens of this layer."""
        state = self.state
        if state.mixer is not None and (not state.layers or state.layers[layer % len(state.layers)]):
            return _STATES[type(state.mixer)]
        return "attention" if self.attention.latent is None else "latent"

    def feedforward_kind(self, layer: int) -> FeedForwardKind:
        """What this layer does to each token by itself."""
        return "experts" if self.has_experts(layer) and not self.has_beside(layer) else "dense"

    def has_beside(self, layer: int) -> bool:
        """Whether this layer has experts beside the feed-forward."""
        return self.experts is not None and self.experts.beside and self.has_experts(layer)

    def has_experts(self, layer: int) -> bool:
        """Whether this layer has experts in place of the feed-forward, or beside it."""
        return self.experts is not None and self.experts.in_layer(layer)
