"""A transformer as data: everything a builder or a cost model needs to know, nothing about any library's names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.specs.checks import BEYOND, at_least
from bedplate.models.specs.flat import flat_fields, grouped_fields, hashed_fields
from bedplate.models.specs.parts import (
    AttentionSpec,
    Classifier,
    DeltaRule,
    Experts,
    FeedForwardSpec,
    FullAttention,
    Mamba2,
    MaskedHead,
    NormSpec,
    Scales,
    ShortConvolution,
    StateSpec,
)
from bedplate.models.specs.position import LongRopeScaling, PositionSpec, Rope

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
        sizes = ("hidden_size", "layers", "heads", "kv_heads", "head_dim", "feedforward_size", "context_length")
        fields = self.flat()
        at_least(fields, 1, *sizes, *(() if self.kind == "tower" else ("vocab_size",)))
        at_least(fields, 0, "norm_eps", "token_types", "value_tables", "prediction_modules", "position_offset")
        at_least(fields, 0, "layer_input_size", *(() if self.position.rows is None else ("position_rows",)))
        at_least(fields, 1, *(() if self.attention.cross_size is None else ("cross_size",)))
        for name, value in fields.items():
            if isinstance(value, int | float) and not abs(value) < BEYOND:
                raise UnsupportedModelError(f"{name} is {value}: it must be a finite number under {BEYOND:g}")
        problem = next((problem for check in (self._impossible, self._exclusive) for problem in check()), None)
        if problem is not None:
            raise UnsupportedModelError(problem)

    def _impossible(self) -> Iterator[str]:
        """What no layer or table can be."""
        attention, position = self.attention, self.position
        if self.kind == "tower" and (self.vocab_size or self.token_types or attention.value_tables):
            yield "a tower takes features, not tokens: vocab_size and its tables must be 0"
        for kv_heads in (attention.kv_heads, (attention.full and attention.full.kv_heads) or attention.kv_heads):
            if attention.heads % kv_heads:
                yield f"{attention.heads} attention heads cannot share {kv_heads} key-value heads: no multiple"
        for window in attention.windows:
            if window is not None and not 1 <= window < BEYOND:
                yield f"a window of {window} tokens: it must be at least 1 and under {BEYOND:g}, or None for all"
        if attention.value_tables > self.layers:
            yield f"{attention.value_tables} value tables, but only {self.layers} layers"
        if position.rope is not None and self.rotary_dim % 2:
            yield f"rotary positions need an even head size, not {self.rotary_dim}"
        scaling, pairs = None if position.rope is None else position.rope.scaling, self.rotary_dim // 2
        if isinstance(scaling, LongRopeScaling) and len(scaling.short) != pairs:
            yield f"longrope has {len(scaling.short)} factors, but {pairs} pairs of a head's features turn"
        if position.sinusoids and self.hidden_size % 2:
            yield f"sinusoids need an even hidden_size, not {self.hidden_size}"
        if position.offset and 0 < self.positions < self.context_length + position.offset:
            yield (
                f"{self.positions} learned positions, {position.offset} of them an offset, are fewer than the "
                f"context_length of {self.context_length}"
            )
        latent = attention.latent
        if latent is not None and (attention.kv_heads, attention.head_dim) != (attention.heads, latent.key_dim):
            yield (
                f"latent attention has as many key-value heads as heads ({attention.heads}) and a head_dim of "
                f"nope_dim + rope_dim ({latent.key_dim}), not {attention.kv_heads} and {attention.head_dim}"
            )
        if self.state.layers and self.state.mixer is None:
            yield "state_layers say where the layers of `state` are, and it is None"
        if self.classifier is not None and self.classifier.on_pooler and not self.pooler:
            yield "a classifier on the pooler needs one: pooler must be true"
        if attention.shared_keys is not None:
            first = max(self.layers - attention.shared_keys.layers, 0)
            for layer in range(first, self.layers):
                if self._key_source(layer, first) is None:
                    yield (
                        f"layer {layer} shares keys and values, and none of the {first} layers that have their own has "
                        f"a window of {self.window(layer)}"
                    )

    def _exclusive(self) -> Iterator[str]:
        """Parts that a stack of its kind, or beside others, cannot have."""
        attention, crosses = self.attention, self.attention.cross_size is not None
        for_decoders = {
            "cross_size": crosses,
            "state": self.state.mixer is not None,
            "prediction_modules": self.prediction_modules > 0,
            "layer_input_size": self.layer_input_size > 0,
            "output_scales": self.output_scales,
        }
        yield from (
            f"{name} is for decoders, not for an {self.kind}"
            for name, is_set in for_decoders.items()
            if is_set and self.kind != "decoder"
        )
        if attention.latent is not None and (attention.qk_norm is not None or attention.sinks or crosses):
            yield "latent attention has no qk_norm, attention_sinks or cross_size"
        if attention.gate and (attention.latent is not None or crosses):
            yield "attention_gate is for self-attention with keys and values only"
        optional = {"full": attention.full, "shared_keys": attention.shared_keys, "value_norm": attention.value_norm}
        others = {
            "latent": attention.latent is not None,
            "cross_size": crosses,
            "state": self.state.mixer is not None,
            "gates and tables": attention.gate or attention.value_tables > 0,
        }
        yield from (
            f"{name} is for self-attention with keys and values, not beside {other}"
            for name, part in optional.items()
            for other, is_set in others.items()
            if part and is_set
        )
        if (self.layer_input_size or attention.shared_keys) and self.prediction_modules:
            yield "prediction_modules have no place beside layer_input_size and shared_keys"

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
