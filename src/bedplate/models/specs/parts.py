"""The parts of a stack's layers as data: attention, what may stand in its place, feed-forwards and experts, norms, and
the heads of encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.specs.checks import at_least, finite, positive, refuse

# --- attention


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, https://arxiv.org/abs/2405.04434).

    Keys and values are made from one latent of `kv_rank` features a token; beside it one rotated key of `rope_dim`
    features is shared by all heads. Those two are what is cached. `nope_dim`: features of a head's query and key that
    do not turn; `value_dim`: of its value. `q_rank`: of the latent that queries are made from, or None.
    """

    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    q_rank: int | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "kv_rank", "nope_dim", "rope_dim", "value_dim", "q_rank")

    @property
    def key_dim(self) -> int:
        """Features of one head's query and key."""
        return self.nope_dim + self.rope_dim


@dataclass(frozen=True)
class FullAttention:
    """Attention of the layers without a window, where it is of another shape than the others'
    (https://huggingface.co/docs/transformers/model_doc/gemma4).

    head_dim, kv_heads: None: as the others have them. keys_are_values: values are what the product for keys gives, and
    there is none for values.
    """

    head_dim: int | None = None
    kv_heads: int | None = None
    keys_are_values: bool = False

    def __post_init__(self) -> None:
        at_least(self, 1, "head_dim", "kv_heads")


@dataclass(frozen=True)
class SharedKeys:
    """The last `layers` layers have no keys and values of their own: each uses those of the last layer before them with
    the same window, or with none where it has none (https://arxiv.org/abs/2405.12981; Gemma 3n, Gemma-4).

    feedforward_size: of these layers, where it is another one; None: the spec's.
    """

    layers: int
    feedforward_size: int | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "layers", "feedforward_size")


@dataclass(frozen=True)
class AttentionSpec:
    """The attention of a stack's layers; sizes count heads, features and tokens.

    bias: of queries, keys, values and outputs; key_bias, output_bias: where those differ (Whisper has no key bias,
        Qwen2 no output bias); None: they do not.
    qk_norm: queries and keys are normalised, over each head's features or over the whole projection.
    value_norm: values are normalised over each head's features, without a weight.
    windows: how many tokens a layer's queries see, repeated over the layers; None: all. In a decoder the last ones with
        the query itself, in an encoder half of them on each side of it. () is (None,).
    gate: the output is gated by one more projection of the block's input (Qwen3-Next).
    sinks: one learned score a head that no value belongs to (gpt-oss).
    full: the shape of attention in layers without a window, where it differs.
    shared_keys: layers that use an earlier layer's keys and values.
    value_tables: layers that add a looked-up value [vocab_size, kv_heads · head_dim] to a token's own (nanochat).
    cross_size: features of the encoder's states that every layer also attends to; None: no cross-attention.
    """

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False
    key_bias: bool | None = None
    output_bias: bool | None = None
    qk_norm: Literal["head", "projection"] | None = None
    value_norm: bool = False
    windows: tuple[int | None, ...] = ()
    gate: bool = False
    sinks: bool = False
    latent: LatentAttention | None = None
    full: FullAttention | None = None
    shared_keys: SharedKeys | None = None
    value_tables: int = 0
    cross_size: int | None = None


# --- what some layers have in the place of attention, and keeps a state


@dataclass(frozen=True)
class ShortConvolution:
    """A causal convolution between two gates in the place of attention (LFM2, https://arxiv.org/abs/2511.23404).

    width: tokens that it sees, the last of them its own. bias: of the convolution and of both projections.
    """

    width: int = 3
    bias: bool = False

    def __post_init__(self) -> None:
        at_least(self, 2, "width")


@dataclass(frozen=True)
class DeltaRule:
    """A gated delta network in the place of attention (https://arxiv.org/abs/2412.06464).

    heads: of values, each with a state [key_dim, value_dim]; consecutive ones share one of `key_heads` queries and
    keys. width: of the convolution before it, in tokens.
    """

    heads: int
    key_heads: int
    key_dim: int
    value_dim: int
    width: int = 4

    def __post_init__(self) -> None:
        at_least(self, 1, "heads", "key_heads", "key_dim", "value_dim")
        at_least(self, 2, "width")
        if self.heads % self.key_heads:
            raise UnsupportedModelError(
                f"{self.heads} value heads cannot share {self.key_heads} key heads: no multiple"
            )

    @property
    def channels(self) -> int:
        """Features that pass the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.heads * self.value_dim

    @property
    def state_shape(self) -> tuple[int, int, int]:
        return self.heads, self.key_dim, self.value_dim


@dataclass(frozen=True)
class Mamba2:
    """A selective state space in the place of attention (https://arxiv.org/abs/2405.21060).

    heads of `head_dim` features, each with a state [state_dim, head_dim]; `groups` of consecutive heads share what is
    written with and read by. width: of the convolution before it, in tokens. bias: of the projections. step_limits:
    the step of a token is kept between them.
    """

    heads: int
    head_dim: int
    groups: int
    state_dim: int
    width: int = 4
    convolution_bias: bool = True
    bias: bool = False
    step_limits: tuple[float, float] = (0.0, float("inf"))

    def __post_init__(self) -> None:
        at_least(self, 1, "heads", "head_dim", "groups", "state_dim")
        at_least(self, 2, "width")
        refuse(self.heads % self.groups, f"{self.heads} heads cannot be {self.groups} groups: they must be a multiple")

    @property
    def inner(self) -> int:
        """Features of all heads."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Features that pass the convolution."""
        return self.inner + 2 * self.groups * self.state_dim

    @property
    def state_shape(self) -> tuple[int, int, int]:
        return self.heads, self.state_dim, self.head_dim


StateMixer = ShortConvolution | DeltaRule | Mamba2


@dataclass(frozen=True)
class StateSpec:
    """What some layers have in the place of attention, and which ones, repeated over the layers; () is (True,) where
    there is a mixer."""

    layers: tuple[bool, ...] = ()
    mixer: StateMixer | None = None


# --- feed-forwards

# "clamped_silu" is gpt-oss's gate: (min(up) + 1) · g · sigmoid(1.702 g), both clamped at 7.
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "quick_gelu", "clamped_silu"]
Scoring = Literal["softmax", "softmax_chosen", "sigmoid"]

MAX_EXPERTS = 100_000
"""Experts of one layer at most; published models have a few hundred."""


@dataclass(frozen=True)
class FeedForwardSpec:
    """The dense feed-forward of a stack's layers: `size` features within, an activation, with a gate or without."""

    size: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the feed-forward (https://arxiv.org/abs/2101.03961, DeepSeekMoE 2401.06066).

    `per_token` of `count` experts of `feedforward_size` see a token, and always the shared one of `shared_size`
    features (several shared experts side by side are one of their widths' sum; 0: none). The first `first_dense` layers
    have the spec's own feed-forward instead; of the others, the last of each `every` layers has experts.
    router_bias: the router is an affine map. selection_bias: one number an expert that the load balancer sets and that
    changes only the choice: a buffer, not counted as a parameter. bias: of the experts' products. shared_gate: one
    learned row that scales the shared expert (Qwen2-MoE).
    scoring: how logits become scores: a softmax over all experts, or over the chosen ones (gpt-oss), or a sigmoid of
    each (DeepSeek-V3). renormalise: the chosen ones' scores are divided by their sum; scale: and then multiplied.
    groups, groups_chosen: experts are chosen from so many of so many groups only, the best by the sum of their two
    highest scores (DeepSeek-V3).
    beside: the experts stand beside the layer's own feed-forward: they have a norm before them, and each of the two one
    behind it; the router reads what their norms read (Gemma-4). router_scales: the router's input is normalised, times
    a learned vector and 1/√hidden, and each expert's weight is multiplied by a learned number (Gemma-4).
    """

    count: int
    per_token: int
    feedforward_size: int
    shared_size: int = 0
    first_dense: int = 0
    every: int = 1
    router_bias: bool = False
    selection_bias: bool = False
    bias: bool = False
    shared_gate: bool = False
    scoring: Scoring = "softmax"
    renormalise: bool = True
    scale: float = 1.0
    groups: int = 1
    groups_chosen: int = 1
    beside: bool = False
    router_scales: bool = False

    def __post_init__(self) -> None:
        at_least(self, 1, "count", "per_token", "feedforward_size", "every", "groups", "groups_chosen")
        at_least(self, 0, "shared_size", "first_dense")
        finite(self, "scale")
        refuse(self.count > MAX_EXPERTS, f"{self.count} experts: a layer has at most {MAX_EXPERTS:,}")
        refuse(self.per_token > self.count, f"{self.per_token} experts per token, but there are only {self.count}")
        refuse(self.shared_gate and not self.shared_size, "shared_gate needs a shared expert: shared_size is 0")
        if self.beside and self.shared_size:
            raise UnsupportedModelError("experts beside a feed-forward have no shared one: shared_size must be 0")
        self._check_groups()

    def _check_groups(self) -> None:
        if self.groups == 1:
            return
        if self.count % self.groups or self.count < 2 * self.groups:
            raise UnsupportedModelError(f"{self.count} experts cannot be {self.groups} groups of two or more each")
        if self.groups_chosen > self.groups:
            raise UnsupportedModelError(f"{self.groups_chosen} groups are chosen, but there are only {self.groups}")
        if self.per_token > self.groups_chosen * self.count // self.groups:
            raise UnsupportedModelError(
                f"{self.per_token} experts per token, but {self.groups_chosen} of {self.groups} groups have fewer"
            )

    def in_layer(self, layer: int) -> bool:
        return layer >= self.first_dense and (layer - self.first_dense + 1) % self.every == 0


# --- norms and fixed factors

NormPlacement = Literal["pre", "post", "sandwich", "branch"]


@dataclass(frozen=True)
class NormSpec:
    """The norms of a stack.

    placement: "pre" normalises each block's input, "post" its residual sum, "branch" what attention and feed-forward
        give before it is added (OLMo-2), "sandwich" both input and what they give (Gemma-2).
    weight, bias: whether the norms have them (an RMS norm never has a bias).
    offset: added to the norms' weights (Gemma: 1, which its weights are the distance from).
    first: False: the first block's attention takes its input as it is (ModernBERT).
    embedding, final: whether embeddings, and the last block's states, are normalised; None: an encoder's embeddings
        are, and a decoder's states.
    """

    type: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5
    placement: NormPlacement = "pre"
    weight: bool = True
    bias: bool = True
    offset: float = 0.0
    first: bool = True
    embedding: bool | None = None
    final: bool | None = None


@dataclass(frozen=True)
class Scales:
    """Factors and caps that change values but no count.

    embedding: on the token embeddings (Gemma: √hidden). attention: of the scores, where it is not 1/√head_dim.
    attention_cap and logit_cap: x → cap·tanh(x/cap) of scores and logits (Gemma-2). head: on the states before the head
    (T5 v1.0: 1/√hidden; Granite). residual: on what attention and feed-forward give before it is added (Granite).
    """

    embedding: float = 1.0
    attention: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    head: float = 1.0
    residual: float = 1.0

    def __post_init__(self) -> None:
        finite(self, "embedding", "attention", "head", "residual")
        positive(self, "attention_cap", "logit_cap")


# --- what an encoder's checkpoint has behind its last block

Problem = Literal["one", "any", "score"]


@dataclass(frozen=True)
class Classifier:
    """A checkpoint's own head: scores of labels from one vector of a text.

    problem: "one" of the labels is right (softmax), "any" number of them (sigmoid of each), or the scores are numbers
    ("score"). raw: a single label's score is given as it is; otherwise its sigmoid, as cross-encoders do.
    on_pooler: reads the pooler's features of the first token (BERT). Else the states are pooled ("first" token or
    "mean") and, with `dense`, pass a layer of the head's own with this activation, and with `norm` the spec's norm
    after it (RoBERTa, ModernBERT).
    """

    labels: tuple[str, ...]
    problem: Problem = "one"
    raw: bool = False
    pooling: Literal["first", "mean"] = "first"
    on_pooler: bool = False
    dense: bool = False
    dense_bias: bool = True
    activation: Activation | Literal["tanh"] = "tanh"
    norm: bool = False

    def __post_init__(self) -> None:
        refuse(not self.labels, "a classifier needs at least one label")
        if len(set(self.labels)) < len(self.labels):
            raise UnsupportedModelError(f"a classifier's labels must differ; these are {', '.join(self.labels)}")
        if self.on_pooler and (self.dense or self.pooling != "first"):
            raise UnsupportedModelError("a classifier on the pooler has no dense layer or pooling of its own")


@dataclass(frozen=True)
class MaskedHead:
    """An encoder's head that says which tokens stood where some were hidden (BERT, https://arxiv.org/abs/1810.04805):
    a layer with this activation and the spec's norm, then the token table, and with `bias` one number a token."""

    activation: Activation = "gelu"
    dense_bias: bool = True
    bias: bool = True
