"""Published models, and the stacks that they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bedplate.models.specs import Spec
from bedplate.models.specs.transformer import TransformerSpec

Sizes = tuple[int, int, int, int, int]
"""Hidden size, layers, heads, key-value heads and feed-forward size."""

BIASED: dict[str, Any] = {"norm": "layer", "gated": False, "attention_bias": True, "feedforward_bias": True}
"""What the first transformers have: layer norms, no gate, biases everywhere."""


@dataclass(frozen=True)
class Preset:
    """A published model: its architecture, where it is published, and the parameters that its publisher prints.

    total, active: in billions as printed, rounding and all; None: not printed, or printed of something else.
    """

    spec: Spec
    source: str
    total: str | None = None
    active: str | None = None


def stack(
    kind: Literal["decoder", "encoder", "tower"], sizes: Sizes, vocab_size: int, context_length: int, **fields: Any
) -> TransformerSpec:
    """A stack of these sizes; head_dim from the first."""
    hidden, layers, heads, kv_heads, feedforward = sizes
    return TransformerSpec.from_fields(
        kind=kind,
        vocab_size=vocab_size,
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        **{"head_dim": hidden // heads, "feedforward_size": feedforward, "context_length": context_length, **fields},
    )


def decoder(sizes: Sizes, vocab_size: int, context_length: int, **fields: Any) -> TransformerSpec:
    """A decoder of these sizes."""
    return stack("decoder", sizes, vocab_size, context_length, **fields)
