"""A transformer as data: everything a builder or a cost model needs to know, nothing about any library's names."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.specs.hashed import hashed_fields
from bedplate.models.specs.parts import (
    BEYOND,
    Activation,
    Classifier,
    Experts,
    FullAttention,
    LatentAttention,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MaskedHead,
    Problem,
    RelativeBias,
    Rope,
    Scales,
    Scoring,
    SharedKeys,
    YarnScaling,
    at_least,
)
from bedplate.models.specs.state_mixers import DeltaRule, Mamba2, ShortConvolution, StateMixer

__all__ = [
    "Activation",
    "Classifier",
    "Experts",
    "FeedForwardKind",
    "FullAttention",
    "LatentAttention",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "MaskedHead",
    "Mixer",
    "NormPlacement",
    "Problem",
    "RelativeBias",
    "Rope",
    "Scales",
    "Scoring",
    "SharedKeys",
    "TransformerSpec",
    "YarnScaling",
]

NormPlacement = Literal["pre", "post", "sandwich", "branch"]
Mixer = Literal["attention", "latent", "convolution", "delta_rule", "mamba2"]
FeedForwardKind = Literal["dense", "experts"]
_STATES: dict[type, Mixer] = {ShortConvolution: "convolution", DeltaRule: "delta_rule", Mamba2: "mamba2"}


@dataclass(frozen=True)
class TransformerSpec:
    """One stack of transformer blocks.

    Sizes are counts of features, heads or tokens. A "tower" is an encoder over features that a stem makes (of an image,
    of sound): it has no vocabulary (`vocab_size` 0). `feedforward_size` is that of the dense layers, where some have
    experts. `pooling` is how hidden states become one vector where nothing else is asked for.
    `norm_placement`: "pre" normalises each block's input, "post" its residual sum, "branch" what attention and
    feed-forward give before it is added (OLMo-2), "sandwich" both input and what they give (Gemma-2).

    What the later fields say:
    position_rows: of the learned table; None: `context_length` rows in an encoder without rope, otherwise no table.
    relative_projection: keys of relative positions are made by one more product in every layer, and queries have two
        more biases (Transformer-XL, https://arxiv.org/abs/1901.02860; Gopher, Chinchilla).
    windows: how many tokens a layer's queries see, repeated over the layers; None: all. In a decoder the last ones with
        the query itself, in an encoder half of them on each side of it. () is (None,).
    local_rope: of the layers with a window, where it is another one (Gemma-3).
    key_bias, output_bias: where those projections differ from `attention_bias` (Whisper has no key bias, Qwen2 no
        output bias); None: they do not.
    qk_norm: queries and keys are normalised, over each head's features or over the whole projection.
    norm_weight, norm_bias: whether the norms have them (an RMS norm never has a bias).
    embedding_norm, final_norm: None: an encoder has the first, a decoder the second.
    first_norm: False: the first block's attention takes its input as it is (ModernBERT).
    parallel: attention and feed-forward both read the block's input (GPT-NeoX).
    attention_sinks: one learned score a head that no value belongs to (gpt-oss).
    cross_size: features of the encoder's states that every layer also attends to; None: no cross-attention.
    value_tables: layers that add a looked-up value [vocab_size, kv_heads · head_dim] to a token's own (nanochat).
    norm_offset: added to the norms' weights (Gemma: 1, which its weights are the distance from).
    rope_layers: which layers have rotary positions, repeated over the layers (SmolLM3); () is (True,).
    attention_gate: what attention gives is gated by one more projection of the block's input (Qwen3-Next).
    state, state_layers: what some layers have in the place of attention, and which, repeated over the layers; () is
        (True,) where there is such a thing.
    position_offset: rows of the learned table before that of the first token (RoBERTa: its padding's and those before).
    classifier: of an encoder, the head that its checkpoint comes with.
    sinusoids: fixed sines and cosines of the position are added to embeddings, sines first (Marian).
    head_bias: one number a token that is added to the logits and not trained: a buffer, no parameter (BART, Marian).
    prediction_modules: blocks after the last that predict further tokens (DeepSeek-V3, https://arxiv.org/abs/2412.19437).
    full: the shape of attention in layers without a window, where it is another one. shared_keys: layers that use an
        earlier one's keys and values. value_norm: values are normalised over each head's features, without a weight.
    layer_input_size: features of what every block is given of the token beside its input: a row of one more table and a
        projection of its embedding, added up, which the block's state gates (Gemma 3n, Gemma-4); 0: nothing.
    output_scales: what a block gives is multiplied by one number that is not trained: a buffer, no parameter (Gemma-4).
    masked_head: of an encoder, the head that it was pretrained with.
    """

    kind: Literal["decoder", "encoder", "tower"]
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feedforward_size: int
    context_length: int
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    norm_placement: NormPlacement = "pre"
    rope: Rope | None = None
    activation: Activation = "silu"
    gated: bool = True
    attention_bias: bool = False
    feedforward_bias: bool = False
    tied_head: bool = True
    token_types: int = 0
    pooler: bool = False
    pooling: Literal["mean", "first", "last"] = "mean"
    position_rows: int | None = None
    relative_bias: RelativeBias | None = None
    relative_projection: bool = False
    windows: tuple[int | None, ...] = ()
    local_rope: Rope | None = None
    latent: LatentAttention | None = None
    experts: Experts | None = None
    key_bias: bool | None = None
    output_bias: bool | None = None
    qk_norm: Literal["head", "projection"] | None = None
    norm_weight: bool = True
    norm_bias: bool = True
    embedding_norm: bool | None = None
    final_norm: bool | None = None
    first_norm: bool = True
    parallel: bool = False
    attention_sinks: bool = False
    cross_size: int | None = None
    scales: Scales | None = None
    value_tables: int = 0
    prediction_modules: int = 0
    norm_offset: float = 0.0
    rope_layers: tuple[bool, ...] = ()
    attention_gate: bool = False
    state_layers: tuple[bool, ...] = ()
    state: StateMixer | None = None
    position_offset: int = 0
    classifier: Classifier | None = None
    sinusoids: bool = False
    head_bias: bool = False
    full: FullAttention | None = None
    shared_keys: SharedKeys | None = None
    value_norm: bool = False
    layer_input_size: int = 0
    output_scales: bool = False
    masked_head: MaskedHead | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "hidden_size", "layers", "heads", "kv_heads", "head_dim", "feedforward_size")
        at_least(self, 1, "context_length")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not abs(value) < BEYOND:
                raise UnsupportedModelError(f"{field.name} is {value}: it must be a finite number under {BEYOND:g}")
        at_least(self, 0, "norm_eps")
        if self.kind != "tower":
            at_least(self, 1, "vocab_size")
        elif self.vocab_size or self.token_types or self.value_tables:
            raise UnsupportedModelError("a tower takes features, not tokens: vocab_size and its tables must be 0")
        at_least(self, 0, "token_types", "value_tables", "prediction_modules", "position_offset", "layer_input_size")
        for kv_heads in (self.kv_heads, self.kv_heads if self.full is None else self.full.kv_heads or self.kv_heads):
            if self.heads % kv_heads:
                raise UnsupportedModelError(
                    f"{self.heads} attention heads cannot share {kv_heads} key-value heads: heads must be a multiple"
                )
        if self.rope is not None and self.rotary_dim % 2:
            raise UnsupportedModelError(f"rotary positions need an even head size, not {self.rotary_dim}")
        scaling = None if self.rope is None else self.rope.scaling
        if isinstance(scaling, LongRopeScaling) and len(scaling.short) != self.rotary_dim // 2:
            raise UnsupportedModelError(
                f"longrope has {len(scaling.short)} factors, but {self.rotary_dim // 2} pairs of a head's features turn"
            )
        if self.value_tables > self.layers:
            raise UnsupportedModelError(f"{self.value_tables} value tables, but only {self.layers} layers")
        self._check_attention()
        self._check_state()
        self._check_shared()
        self._check_ends()

    def _check_ends(self) -> None:
        if self.position_offset and 0 < self.positions < self.context_length + self.position_offset:
            raise UnsupportedModelError(
                f"{self.positions} learned positions, {self.position_offset} of them an offset, are fewer than the "
                f"context_length of {self.context_length}"
            )
        if self.classifier is not None and self.classifier.on_pooler and not self.pooler:
            raise UnsupportedModelError("a classifier on the pooler needs one: pooler must be true")

    def _check_attention(self) -> None:
        for window in self.windows:
            if window is not None and not 1 <= window < BEYOND:
                raise UnsupportedModelError(
                    f"a window of {window} tokens: it must be at least 1 and under {BEYOND:g}, or None for all"
                )
        if self.position_rows is not None:
            at_least(self, 0, "position_rows")
        if self.cross_size is not None:
            at_least(self, 1, "cross_size")
            if self.kind != "decoder":
                raise UnsupportedModelError(f"cross_size is for decoders, not for an {self.kind}")
        if self.sinusoids and self.hidden_size % 2:
            raise UnsupportedModelError(f"sinusoids need an even hidden_size, not {self.hidden_size}")
        if self.prediction_modules and self.kind != "decoder":
            raise UnsupportedModelError(f"prediction_modules are for decoders, not for an {self.kind}")
        if self.latent is not None:
            if (self.kv_heads, self.head_dim) != (self.heads, self.latent.key_dim):
                raise UnsupportedModelError(
                    f"latent attention has as many key-value heads as heads ({self.heads}) and a head_dim of nope_dim "
                    f"+ rope_dim ({self.latent.key_dim}), not {self.kv_heads} and {self.head_dim}"
                )
            if self.qk_norm is not None or self.attention_sinks or self.cross_size is not None:
                raise UnsupportedModelError("latent attention has no qk_norm, attention_sinks or cross_size")

    def _check_state(self) -> None:
        if self.state_layers and self.state is None:
            raise UnsupportedModelError("state_layers say where the layers of `state` are, and it is None")
        if self.state is not None and self.kind != "decoder":
            raise UnsupportedModelError(f"state is for decoders, not for an {self.kind}")
        if self.attention_gate and (self.latent is not None or self.cross_size is not None):
            raise UnsupportedModelError("attention_gate is for self-attention with keys and values only")

    def _check_shared(self) -> None:
        """What layers may have of their own, and of others."""
        optional_parts = {"full": self.full, "shared_keys": self.shared_keys, "value_norm": self.value_norm or None}
        named = next((name for name, part in optional_parts.items() if part is not None), None)
        incompatible = {"latent": self.latent, "cross_size": self.cross_size, "state": self.state}
        conflict = next((name for name, part in incompatible.items() if part is not None), None)
        if named is not None and (conflict is not None or self.attention_gate or self.value_tables):
            conflict = conflict or "gates and tables"
            raise UnsupportedModelError(f"{named} is for self-attention with keys and values, not beside {conflict}")
        if (self.layer_input_size or self.output_scales) and self.kind != "decoder":
            raise UnsupportedModelError(f"layer_input_size and output_scales are for decoders, not for an {self.kind}")
        if (self.layer_input_size or self.shared_keys) and self.prediction_modules:
            raise UnsupportedModelError("prediction_modules have no place beside layer_input_size and shared_keys")
        if self.shared_keys is None:
            return
        first = self.layers - self.shared_keys.layers
        missing = next((n for n in range(max(first, 0), self.layers) if self._last_alike(n, first) is None), None)
        if missing is not None:
            raise UnsupportedModelError(
                f"layer {missing} shares keys and values, and none of the {max(first, 0)} layers that have their own "
                f"has a window of {self.window(missing)}"
            )

    def _last_alike(self, layer: int, before: int) -> int | None:
        """The last layer before that one with this layer's window."""
        return next((n for n in range(before - 1, -1, -1) if self.window(n) == self.window(layer)), None)

    @property
    def source_vocab_size(self) -> int:
        """Tokens that it reads: those that it writes."""
        return self.vocab_size

    @property
    def rotary_dim(self) -> int:
        """Features of a head that turn with the position; 0 without rotary positions."""
        if self.rope is None:
            return 0
        return int((self.head_dim if self.latent is None else self.latent.rope_dim) * self.rope.fraction)

    @property
    def positions(self) -> int:
        """Rows of the learned position table."""
        if self.position_rows is not None:
            return self.position_rows
        return self.context_length if self.kind == "encoder" and self.rope is None else 0

    @property
    def norms_embedding(self) -> bool:
        """Whether embeddings are normalised before the first block."""
        return self.kind == "encoder" if self.embedding_norm is None else self.embedding_norm

    @property
    def norms_output(self) -> bool:
        """Whether the last block's states are normalised."""
        return self.kind == "decoder" if self.final_norm is None else self.final_norm

    @property
    def has_key_bias(self) -> bool:
        return self.attention_bias if self.key_bias is None else self.key_bias

    @property
    def has_output_bias(self) -> bool:
        return self.attention_bias if self.output_bias is None else self.output_bias

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

    def window(self, layer: int) -> int | None:
        """How many tokens this layer's queries see; None: all."""
        return self.windows[layer % len(self.windows)] if self.windows else None

    def rope_of(self, layer: int) -> Rope | None:
        """This layer's rotary positions."""
        if self.rope_layers and not self.rope_layers[layer % len(self.rope_layers)]:
            return None
        return self.rope if self.local_rope is None or self.window(layer) is None else self.local_rope

    def head_dim_of(self, layer: int) -> int:
        """Features of one of this layer's heads."""
        return self._full(layer).head_dim or self.head_dim

    def kv_heads_of(self, layer: int) -> int:
        """How many heads of keys and values this layer has, or uses."""
        return self._full(layer).kv_heads or self.kv_heads

    def keys_are_values(self, layer: int) -> bool:
        """Whether this layer has no product for values."""
        return self._full(layer).keys_are_values

    def _full(self, layer: int) -> FullAttention:
        return FullAttention() if self.full is None or self.window(layer) is not None else self.full

    def keys_of(self, layer: int) -> int:
        """The layer whose keys and values this one uses: itself, where it does not share them."""
        first = self.layers - (0 if self.shared_keys is None else self.shared_keys.layers)
        source = self._last_alike(layer, first) if first <= layer < self.layers else layer
        return layer if source is None else source

    def feedforward_size_of(self, layer: int) -> int:
        """Features within this layer's dense feed-forward."""
        shares = self.shared_keys is not None and layer >= self.layers - self.shared_keys.layers
        return (self.shared_keys.feedforward_size if shares and self.shared_keys else None) or self.feedforward_size

    def mixer(self, layer: int) -> Mixer:
        """What mixes the tokens of this layer."""
        if self.state is not None and (not self.state_layers or self.state_layers[layer % len(self.state_layers)]):
            return _STATES[type(self.state)]
        return "attention" if self.latent is None else "latent"

    def feedforward(self, layer: int) -> FeedForwardKind:
        """What this layer does to each token by itself."""
        return "experts" if self.has_experts(layer) and not self.has_beside(layer) else "dense"

    def has_beside(self, layer: int) -> bool:
        """Whether this layer has experts beside the feed-forward."""
        return self.experts is not None and self.experts.beside and self.has_experts(layer)

    def has_experts(self, layer: int) -> bool:
        """Whether this layer has experts in place of the feed-forward, or beside it."""
        return self.experts is not None and self.experts.in_layer(layer)

    def key(self) -> dict[str, Any]:
        """The fields as plain data, for hashes that must not change when a spec learns to say more: fields that came
        after `pooling`, and parts' fields that came later, are left out where they say nothing new."""
        return hashed_fields(self, "position_rows")

    def with_(self, **changes: Any) -> TransformerSpec:
        """A copy with some fields changed."""
        return replace(self, **changes)
