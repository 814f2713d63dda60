"""Attention as data: heads, windows, gates, latents, and what layers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bedplate.models.specs.checks import at_least


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
