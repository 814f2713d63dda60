"""Bytes that a forward pass keeps for the backward pass (Korthikanti et al., https://arxiv.org/abs/2205.05198).

Their sum for one GPT layer, s·b·h·(34 + 5·a·s/h) bytes, counts dropout masks and full multi-head attention. Here each
product's input is counted for what the spec is: grouped queries, gates, latents, experts; without dropout. Per token
and layer: the input of both norms, the input of each product, queries, keys, values and what attention gives (kept by
fused attention), and of a gated feed-forward the gate, its activation, the up product and their product.

recompute: "none" keeps every head's matrix of attention weights; "selective" makes it again in the backward pass, as
fused attention does by itself; "full" keeps a block's input only.
"""

from __future__ import annotations

from typing import Literal

from bedplate.core.errors import UsageError
from bedplate.economics.flops import text_stack
from bedplate.models.specs import EncoderDecoderSpec, Spec, TransformerSpec

Recompute = Literal["none", "selective", "full"]


def activation_bytes(
    spec: Spec,
    tokens: int,
    sequence_tokens: int,
    *,
    bytes_per_value: float = 2.0,
    recompute: Recompute = "selective",
    head: bool = True,
) -> float:
    """Bytes kept for `tokens` tokens in sequences of `sequence_tokens` (they bound a row of attention weights).

    head: with the last norm, the head's input and the logits (float32, as the loss needs them). Under "full" one block
    at a time is computed again: what that one keeps is in it.
    """
    if tokens < 1 or sequence_tokens < 1:
        raise UsageError(f"{tokens} tokens in sequences of {sequence_tokens}: both must be at least 1")
    if isinstance(spec, EncoderDecoderSpec):
        raise UsageError("activation_bytes is for one stack; ask for encoder and decoder apart")
    stack = text_stack(spec, "activation_bytes")
    layers = [
        layer_activation_bytes(stack, n, sequence_tokens, bytes_per_value, recompute) for n in range(stack.layers)
    ]
    kept = sum(layers)
    if recompute == "full":
        kept += max(
            layer_activation_bytes(stack, n, sequence_tokens, bytes_per_value, "selective") for n in range(stack.layers)
        )
    return tokens * (kept + (head_activation_bytes(stack, bytes_per_value) if head else 0.0))


def head_activation_bytes(spec: TransformerSpec, bytes_per_value: float = 2.0) -> float:
    """Bytes a token after the last block: the last norm's input, the head's, and float32 logits."""
    return 2 * spec.hidden_size * bytes_per_value + (4.0 * spec.vocab_size if spec.kind == "decoder" else 0.0)


def layer_activation_bytes(
    spec: TransformerSpec, layer: int, sequence_tokens: int, bytes_per_value: float, recompute: Recompute
) -> float:
    """Bytes a token that one block keeps."""
    if recompute == "full":
        return spec.hidden_size * bytes_per_value
    values = _norm_values(spec) + _attention_values(spec) + _feedforward_values(spec, layer)
    if recompute == "none":
        window = spec.window(layer)
        values += spec.heads * (sequence_tokens if window is None else min(sequence_tokens, window))
    # The row of each head's softmax sums, in float32, from which fused attention makes the weights again.
    return values * bytes_per_value + (4.0 * spec.heads if recompute == "selective" else 0.0)


def _norm_values(spec: TransformerSpec) -> int:
    norms = 4 if spec.norm_placement == "sandwich" else 2
    return norms * spec.hidden_size


def _attention_values(spec: TransformerSpec) -> int:
    """The input of the projections, q, k, v, and what attention gives (the output projection's input)."""
    hidden = spec.hidden_size
    if spec.latent is not None:
        part = spec.latent
        latents = 2 * part.kv_rank + part.rope_dim + 2 * (part.q_rank or 0)  # before and after their norms
        return hidden + latents + spec.heads * (2 * part.key_dim + 2 * part.value_dim)
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    normed = 0 if spec.qk_norm is None else q + kv  # before their norms
    return hidden + 2 * q + 2 * kv + normed


def _feedforward_values(spec: TransformerSpec, layer: int) -> int:
    hidden, per_feature = spec.hidden_size, 4 if spec.gated else 2
    if not spec.has_experts(layer) or spec.experts is None:
        return hidden + per_feature * spec.feedforward_size
    part = spec.experts
    # Each chosen expert has a copy of the token and gives one back, which its gate weighs.
    chosen = part.per_token * (2 * hidden + per_feature * part.feedforward_size)
    return hidden + part.count + chosen + per_feature * part.shared_size
