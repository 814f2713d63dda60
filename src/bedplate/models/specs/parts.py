"""Parts of a transformer as data: what a layer may have besides its sizes. Each is optional in a TransformerSpec."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bedplate.core.errors import UnsupportedModelError

# "clamped_silu" is gpt-oss's gate: (min(up) + 1) · g · sigmoid(1.702 g), both clamped at 7.
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "quick_gelu", "clamped_silu"]
Problem = Literal["one", "any", "score"]


BEYOND = 1e15
"""No number of a model is as large: with sizes beyond it torch's own arithmetic of sizes overflows."""


MOST_EXPERTS = 100_000
"""Of one layer; published models have a few hundred."""


def at_least(part: object, smallest: int, *names: str) -> None:
    """Raises UnsupportedModelError naming the first of the fields that is under `smallest`."""
    for name in names:
        value = getattr(part, name)
        if value < smallest:
            raise UnsupportedModelError(f"{name} is {value}: it must be at least {smallest}")


def positive(part: object, *names: str) -> None:
    """Raises UnsupportedModelError naming the first of the fields that is not a finite number above 0; None is left."""
    for name in names:
        value = getattr(part, name)
        if value is not None and not 0 < value < math.inf:
            raise UnsupportedModelError(f"{name} is {value}: it must be a finite number above 0")


def finite(part: object, *names: str) -> None:
    """Raises UnsupportedModelError naming the first of the fields that is not a finite number; None is left."""
    for name in names:
        value = getattr(part, name)
        if value is not None and (isinstance(value, complex) or not math.isfinite(value)):
            raise UnsupportedModelError(f"{name} is {value}: it must be a finite number")


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama-3's frequency-dependent RoPE scaling (https://arxiv.org/abs/2407.21783, and its reference code)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def __post_init__(self) -> None:
        positive(self, "factor", "low_freq_factor", "high_freq_factor", "original_context")


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: positions divided by `factor` (https://arxiv.org/abs/2306.15595)."""

    factor: float

    def __post_init__(self) -> None:
        positive(self, "factor")


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (https://arxiv.org/abs/2309.00071). `scale` and `scale_all` are DeepSeek's mscale and mscale_all_dim.

    attention_factor: on cosines and sines; None: what the paper, or the two scales, make of `factor`. truncate: whether
    the bounds between the frequencies that stay and those that are interpolated are whole numbers (gpt-oss: not).
    query_growth: queries at position p are multiplied by 1 + query_growth · ln(1 + ⌊p / original_context⌋) (Llama 4,
    Ministral 3).
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    scale: float | None = None
    scale_all: float | None = None
    attention_factor: float | None = None
    truncate: bool = True
    query_growth: float = 0.0

    def __post_init__(self) -> None:
        positive(self, "factor", "original_context", "beta_fast", "beta_slow", "attention_factor")
        finite(self, "scale", "scale_all", "query_growth")


@dataclass(frozen=True)
class LongRopeScaling:
    """LongRoPE (https://arxiv.org/abs/2402.13753): a divisor of each pair's frequency, other ones past the original
    context.

    short, long: the divisors, one a pair. factor: how much longer the context became; attention_factor: on cosines and
    sines; None: √(1 + ln factor / ln original_context).
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_context: int
    factor: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        if len(self.short) != len(self.long):
            raise UnsupportedModelError(
                f"longrope has {len(self.short)} short factors and {len(self.long)} long ones: they must be as many"
            )
        positive(self, "original_context", "factor", "attention_factor")
        for divisor in (*self.short, *self.long):
            if not 0 < divisor < math.inf:
                raise UnsupportedModelError(f"a longrope factor is {divisor}: it must be a finite number above 0")

    @property
    def extended_context(self) -> int:
        """Tokens that it reaches."""
        return round(self.original_context * self.factor)

    @property
    def is_uniform(self) -> bool:
        """Whether every position turns in one way, whatever comes after it."""
        return self.short == self.long


Scaling = Llama3Scaling | LinearScaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True)
class Rope:
    """Rotary positions (https://arxiv.org/abs/2104.09864): feature i turns with feature i + D/2.

    fraction: of a head's features, from the first on, that turn (GPT-NeoX, Phi); the others stay as they are.
    interleaved: feature 2i turns with feature 2i + 1 (GPT-J, GLM). proportional: pairs and frequencies are those of a
    whole head, and the first `fraction` of the pairs turn (Gemma-4).
    """

    theta: float = 10_000.0
    scaling: Scaling | None = None
    fraction: float = 1.0
    interleaved: bool = False
    proportional: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UnsupportedModelError(f"the rotary fraction is {self.fraction}: it must be over 0 and at most 1")
        positive(self, "theta")
        if isinstance(self.scaling, YarnScaling) and self.theta == 1:
            raise UnsupportedModelError("theta is 1.0: YaRN divides by its logarithm")


@dataclass(frozen=True)
class RelativeBias:
    """T5's learned bias of each head by the distance of query and key, in buckets (https://arxiv.org/abs/1910.10683).

    One table [buckets, heads] of a stack, used by all of its layers.
    """

    buckets: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        at_least(self, 2, "buckets")
        at_least(self, 1, "max_distance")


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
        at_least(self, 1, "kv_rank", "nope_dim", "rope_dim", "value_dim")
        if self.q_rank is not None:
            at_least(self, 1, "q_rank")

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
        at_least(self, 1, *(name for name in ("head_dim", "kv_heads") if getattr(self, name) is not None))


@dataclass(frozen=True)
class SharedKeys:
    """The last `layers` layers have no keys and values of their own: each uses those of the last layer before them with
    the same window, or with none where it has none (https://arxiv.org/abs/2405.12981; Gemma 3n, Gemma-4).

    feedforward_size: of these layers, where it is another one; None: the spec's.
    """

    layers: int
    feedforward_size: int | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "layers")
        if self.feedforward_size is not None:
            at_least(self, 1, "feedforward_size")


Scoring = Literal["softmax", "softmax_chosen", "sigmoid"]


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
        if self.count > MOST_EXPERTS:
            raise UnsupportedModelError(f"{self.count} experts: a layer has at most {MOST_EXPERTS:,}")
        if self.per_token > self.count:
            raise UnsupportedModelError(f"{self.per_token} experts per token, but there are only {self.count}")
        if self.shared_gate and not self.shared_size:
            raise UnsupportedModelError("shared_gate needs a shared expert: shared_size is 0")
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
        """Whether this layer has experts."""
        return layer >= self.first_dense and (layer - self.first_dense + 1) % self.every == 0


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
        if not self.labels:
            raise UnsupportedModelError("a classifier needs at least one label")
        if len(set(self.labels)) < len(self.labels):
            raise UnsupportedModelError(f"a classifier's labels must differ; these are {', '.join(self.labels)}")
        if self.on_pooler and (self.dense or self.pooling != "first"):
            raise UnsupportedModelError("a classifier on the pooler has no dense layer or pooling of its own")


@dataclass(frozen=True)
class MaskedHead:
    """Of an encoder, what says which tokens stood where some were hidden (BERT, https://arxiv.org/abs/1810.04805): a
    layer with this activation and the spec's norm, then the token table, and with `bias` one number a token."""

    activation: Activation = "gelu"
    dense_bias: bool = True
    bias: bool = True
