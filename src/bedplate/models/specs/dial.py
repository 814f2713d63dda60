"""The shape of a decoder of so many parameters. Every law with its source.

width : depth   64 up to 32 layers (nanochat, https://github.com/karpathy/nanochat), from there 32 layers up to a
                ratio of 128 (Llama 3, https://arxiv.org/abs/2407.21783, table 3); the loss hardly depends on it
                within a wide range (Kaplan et al., https://arxiv.org/abs/2001.08361, figure 5)
heads           of 64 features, of 128 from a width of 2,048 on (Llama 3); four query heads share one of keys and
                values where they divide so (https://arxiv.org/abs/2305.13245)
feed-forward    8/3 of the width with a gate, which is as many weights as 4 without
                (https://arxiv.org/abs/2002.05202), in multiples of 64
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bedplate.core.errors import ConfigError

SIZES: dict[str, float] = {
    "nano": 1e6,
    "micro": 5e6,
    "mini": 20e6,
    "small": 125e6,
    "medium": 350e6,
    "large": 760e6,
    "xl": 1.3e9,
    "2.7b": 2.7e9,
    "6.7b": 6.7e9,
    "13b": 13e9,
}
"""Parameters by a size's name: from `small` on those of GPT-3 (https://arxiv.org/abs/2005.14165, table 2.1)."""
_STEP = 64
_LARGE_WIDTH, _WIDEST = 2048, 32_768
"""From the first on heads are twice as large, and with them the steps of the width."""


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder with a gated feed-forward, in counts of features, layers and heads."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    feedforward: int

    def parameters(self, vocabulary: int, tied: bool) -> int:
        """Parameters of products and tables, without norms."""
        head, size = self.head_size, self.width
        attention = size * head * (2 * self.heads + 2 * self.kv_heads)
        block = attention + 3 * size * self.feedforward
        return self.layers * block + vocabulary * size * (1 if tied else 2)

    def config(self) -> dict[str, Any]:
        """The fields under the names that config.json has for most decoders."""
        return {
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "intermediate_size": self.feedforward,
        }


def shape_of_width(width: int) -> DecoderShape:
    """The shape whose only free number is the width, a multiple of its heads' size."""
    head_size = 128 if width >= _LARGE_WIDTH else 64
    heads = max(1, width // head_size)
    shared = next(n for n in (4, 2, 1) if heads % n == 0)
    layers = max(2, round(max(min(width / 64, 32), width / 128)))
    return DecoderShape(width, layers, heads, heads // shared, head_size, -(-8 * width // 3 // _STEP) * _STEP)


def shape_for(parameters: float, vocabulary: int, tied: bool = True) -> DecoderShape:
    """The shape whose parameters are nearest. ConfigError where no such model is near: under half or over twice."""
    if parameters <= 0:
        raise ConfigError(f"a model has more than {parameters:g} parameters; give a size such as 1b")
    widths = (*range(_STEP, _LARGE_WIDTH, _STEP), *range(_LARGE_WIDTH, _WIDEST + 1, 2 * _STEP))
    shapes = [shape_of_width(width) for width in widths]
    best = min(shapes, key=lambda shape: abs(shape.parameters(vocabulary, tied) - parameters))
    if best.parameters(vocabulary, tied) < 0.5 * parameters:  # as a ratio the next larger one may be nearer
        best = min(shapes, key=lambda shape: abs(math.log(shape.parameters(vocabulary, tied) / parameters)))
    nearest_count = best.parameters(vocabulary, tied)
    if not 0.5 <= nearest_count / parameters <= 2:
        raise ConfigError(
            f"no model of about {parameters:,.0f} parameters has a vocabulary of {vocabulary:,}: the nearest has "
            f"{nearest_count:,}; give another number of parameters, or a smaller vocabulary"
        )
    return best
