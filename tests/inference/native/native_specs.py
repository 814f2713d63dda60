"""The small decoder that the native kernel's tests run."""

from __future__ import annotations

from typing import Any

from bedplate.models.specs.transformer import Rope, TransformerSpec


def spec_of(**changes: Any) -> TransformerSpec:
    """Two blocks of three query heads to a key-value head, in sizes that the kernel takes; and what is to differ."""
    spec = TransformerSpec(
        kind="decoder",
        vocab_size=331,
        hidden_size=96,
        layers=2,
        heads=6,
        kv_heads=2,
        head_dim=32,
        feedforward_size=160,
        context_length=512,
        rope=Rope(10_000.0),
    )
    return spec.with_(**changes)
