"""Positions as data: rotary ones and their scalings, learned tables, sinusoids, relative biases."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.specs.checks import at_least, finite, positive, refuse


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


def yarn_scale(factor: float, weight: float = 1.0) -> float:
    """YaRN's temperature √(1/t) of a context that became `factor` times as long (equation 22), weighted by DeepSeek."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


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

    @property
    def applied_factor(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor > 1 and self.scale and self.scale_all:
            return yarn_scale(self.factor, self.scale) / yarn_scale(self.factor, self.scale_all)
        return yarn_scale(self.factor)


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
            raise UnsupportedModelError(f"longrope has {len(self.short)} short factors, but {len(self.long)} long ones")
        positive(self, "original_context", "factor", "attention_factor")
        for divisor in (*self.short, *self.long):
            refuse(not 0 < divisor < math.inf, f"a longrope factor is {divisor}: it must be a finite number above 0")

    @property
    def applied_factor(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_context)) if self.factor > 1 else 1.0

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
        refuse(not 0 < self.fraction <= 1, f"the rotary fraction is {self.fraction}: it must be over 0 and at most 1")
        positive(self, "theta")
        refuse(isinstance(self.scaling, YarnScaling) and self.theta == 1, "theta is 1.0: YaRN divides by its logarithm")


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
class PositionSpec:
    """How a stack knows the order of its tokens.

    rope, local_rope: rotary positions; the second those of layers with a window, where they differ (Gemma 3).
    rope_layers: which layers have them, repeated over the layers (SmolLM3); () is (True,).
    rows: of the learned table; None: `context_length` rows in an encoder without rope, otherwise no table.
    offset: rows of the learned table before that of the first token (RoBERTa: its padding's and those before).
    sinusoids: fixed sines and cosines of the position are added to embeddings, sines first (Marian).
    relative_projection: keys of relative positions are made by one more product in every layer, and queries have two
        more biases (Transformer-XL, https://arxiv.org/abs/1901.02860; Gopher, Chinchilla).
    """

    rope: Rope | None = None
    local_rope: Rope | None = None
    rope_layers: tuple[bool, ...] = ()
    rows: int | None = None
    offset: int = 0
    sinusoids: bool = False
    relative_bias: RelativeBias | None = None
    relative_projection: bool = False
