"""A transformer as data: everything a builder or a cost model needs to know, nothing about any library's names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from bedplate.core.errors import UnsupportedModelError

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama-3's frequency-dependent RoPE scaling (https://arxiv.org/abs/2407.21783, and its reference code)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: positions divided by `factor` (https://arxiv.org/abs/2306.15595)."""

    factor: float


@dataclass(frozen=True)
class Rope:
    """Rotary positions in half-split form (https://arxiv.org/abs/2104.09864)."""

    theta: float = 10_000.0
    scaling: Llama3Scaling | LinearScaling | None = None


@dataclass(frozen=True)
class TransformerSpec:
    """One stack of transformer blocks.

    Sizes are counts of features, heads or tokens. `rope` is None where positions are a learned table (encoder).
    `pooling` is how hidden states become one vector where nothing else is asked for.
    `norm_placement`: "pre" normalises each block's input, "post" its residual sum.
    """

    kind: Literal["decoder", "encoder"]
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
    norm_placement: Literal["pre", "post"] = "pre"
    rope: Rope | None = None
    activation: Activation = "silu"
    gated: bool = True
    attention_bias: bool = False
    feedforward_bias: bool = False
    tied_head: bool = True
    token_types: int = 0
    pooler: bool = False
    pooling: Literal["mean", "first", "last"] = "mean"

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "feedforward_size")
        for name in (*sizes, "context_length"):
            if getattr(self, name) < 1:
                raise UnsupportedModelError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.heads % self.kv_heads:
            raise UnsupportedModelError(
                f"{self.heads} attention heads cannot share {self.kv_heads} key-value heads: heads must be a multiple"
            )
        if self.rope is not None and self.head_dim % 2:
            raise UnsupportedModelError(f"rotary positions need an even head size, not {self.head_dim}")

    def with_(self, **changes: Any) -> TransformerSpec:
        """A copy with some fields changed."""
        return replace(self, **changes)
