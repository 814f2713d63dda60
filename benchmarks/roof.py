"""How far a measured speed is from what the machine's roofs allow (Williams et al. 2009, the roofline model).

Decode reads every weight and the keys and values before it once per token: bytes over the bandwidth that torch's sum of
a long vector reaches, which the kernel can exceed (120% were seen where it reads experts). Prefill multiplies:
operations over the peak of our own kernel in that format, on weights that a cache holds.
"""

from __future__ import annotations

from typing import Any, Literal

from bedplate.economics.model.footprint import step_reads
from machine import Machine

CACHE_BYTES = 2
Weights = Literal["bfloat16", "int8", "int4"]


def cached_bytes(spec: Any, context: float) -> float:
    """Bytes of keys and values that a token reads of this context."""
    return 2 * spec.layers * spec.attention.kv_heads * spec.attention.head_dim * CACHE_BYTES * context


def decode(spec: Any, weights: Weights, context: float, rows: int, speed: float, machine: Machine) -> str:
    """A line about `speed` tokens a second of `rows` sequences at this mean context."""
    read = step_reads(spec, weights)(rows)
    cached = cached_bytes(spec, context)
    bound = rows * machine.bandwidth / (read + rows * cached)
    read_at = f"{machine.bandwidth / 1e9:.1f} GB/s that torch sums at"
    return (
        f"roof: a step reads {read / 1e6:.1f} MB of weights and {rows * cached / 1e6:.1f} MB of keys and values; over "
        f"the {read_at} this is {bound:,.0f} tokens/s: {speed / bound:.0%} reached"
    )


def prefill(spec: Any, weights: Weights, tokens: int, speed: float, machine: Machine) -> str:
    """A line about `speed` tokens a second of one prompt, the head on its last row only."""
    name = f"kernel {weights}"
    if name not in machine.products:
        return f"roof: no product peak of our kernel in {weights} was measured, for it does not run here"
    peak = machine.products[name]
    linears = spec.hidden_size * spec.attention.head_dim * (2 * spec.attention.heads + 2 * spec.attention.kv_heads)
    linears += 3 * spec.hidden_size * spec.feedforward.size
    products = 2 * spec.layers * linears * tokens + 2 * spec.vocab_size * spec.hidden_size
    attention = (
        2 * spec.layers * spec.attention.heads * spec.attention.head_dim * tokens**2
    )  # causal: half of 4 · tokens²
    bound = tokens * peak / (products + attention)
    return (
        f"roof: {products / 1e9:.1f} GFLOP of products with weights and {attention / 1e9:.1f} of attention; at the "
        f"kernel's own {peak / 1e9:,.0f} GFLOP/s ({weights}) that is {bound:,.0f} tokens/s: {speed / bound:.0%} reached"
    )
