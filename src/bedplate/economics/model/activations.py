"""Bytes that a forward pass keeps for the backward pass (Korthikanti et al., https://arxiv.org/abs/2205.05198).

Their sum for one GPT layer, s·b·h·(34 + 5·a·s/h) bytes, counts dropout masks and full multi-head attention. Here each
product's input is counted for what the spec is: grouped queries, gates, latents, experts, cross-attention; without
dropout, which leaves s·b·h·(32 + 2·a·s/h) of theirs. Per token and layer: the input of each norm, the input of each
product, queries, keys, values and what attention gives (fused attention keeps these), and of a gated feed-forward the
gate, its activation, the up product and their product. Norms are taken to keep their input alone (fused ones do), and
their statistics, a few bytes a token, are left out.

recompute: "none" keeps every head's matrix of attention weights; "selective" makes it again in the backward pass, as
fused attention does by itself; "full" keeps a block's input only.
"""

from __future__ import annotations

from bedplate.core.errors import UsageError
from bedplate.economics.model.mixer_flops import attends, state_values
from bedplate.models.specs import (
    AudioSpec,
    DiffusionSpec,
    EncoderDecoderSpec,
    MultimodalSpec,
    Spec,
    TransformerSpec,
    VisionSpec,
)
from bedplate.models.specs.split import Recompute
from bedplate.models.specs.transformer import AttentionSpec, FeedForwardSpec, NormSpec


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

    Of an encoder–decoder, for so many tokens of the source and as many of the target. Of a tower, its blocks; of a
    multimodal model, its language model; of a diffusion transformer with text, tokens are of both streams.
    head: with the last norm, the head's input and the logits (float32, as the loss needs them). Under "full" one block
    at a time is computed again: what that one keeps is in it.
    """
    if tokens < 1 or sequence_tokens < 1:
        raise UsageError(f"{tokens} tokens in sequences of {sequence_tokens}: both must be at least 1")
    if isinstance(spec, DiffusionSpec):
        block_bytes = _diffusion_bytes(spec, sequence_tokens, bytes_per_value, recompute)
        recomputed_bytes = (
            _diffusion_bytes(spec, sequence_tokens, bytes_per_value, "selective") if recompute == "full" else 0.0
        )
        end = 3 * spec.hidden_size * bytes_per_value if head else 0.0
        return tokens * (spec.layers * block_bytes + recomputed_bytes + end)
    return tokens * sum(
        _stack_bytes(stack, sequence_tokens, bytes_per_value, recompute, head) for stack in stacks_of(spec)
    )


def head_activation_bytes(spec: TransformerSpec, bytes_per_value: float = 2.0) -> float:
    """Bytes a token after the last block: the last norm's input, the head's, and float32 logits."""
    head_bytes = spec.hidden_size * (spec.norms_output + (spec.kind == "decoder")) * bytes_per_value
    return head_bytes + (4.0 * spec.vocab_size if spec.kind == "decoder" else 0.0)


def layer_activation_bytes(
    spec: TransformerSpec, layer: int, sequence_tokens: int, bytes_per_value: float, recompute: Recompute
) -> float:
    """Bytes a token that one block keeps."""
    if recompute == "full":
        return spec.hidden_size * bytes_per_value
    mixed = _attention_values(spec, layer) if attends(spec, layer) else state_values(spec)
    values = _norm_values(spec) + mixed + _feedforward_values(spec, layer) + _given_values(spec)
    if not attends(spec, layer):
        return values * bytes_per_value
    if recompute == "none":
        window = spec.window(layer)
        values += spec.attention.heads * (sequence_tokens if window is None else min(sequence_tokens, window))
        values += spec.attention.heads * sequence_tokens if spec.attention.cross_size is not None else 0
        return values * bytes_per_value
    # The row of each head's softmax sums, in float32, from which fused attention makes the weights again.
    return values * bytes_per_value + 4.0 * spec.attention.heads * (1 if spec.attention.cross_size is None else 2)


def stacks_of(spec: Spec) -> tuple[TransformerSpec, ...]:
    """The stacks of blocks whose activations training keeps; a frozen vision tower is not among them."""
    if isinstance(spec, TransformerSpec):
        return (spec,)
    if isinstance(spec, MultimodalSpec):
        return (spec.language,)
    if isinstance(spec, EncoderDecoderSpec):
        return (spec.stack, spec.decoder)
    if isinstance(spec, VisionSpec | AudioSpec):
        return (spec.tower,)
    return (_as_tower(spec),)


def _as_tower(spec: DiffusionSpec) -> TransformerSpec:
    """A diffusion transformer's blocks, for their activations: modulation keeps as much as norms do."""
    streams = 1 if spec.text is None else 2
    return TransformerSpec(
        kind="tower",
        vocab_size=0,
        hidden_size=spec.hidden_size,
        layers=spec.layers,
        context_length=spec.tokens * streams,
        attention=AttentionSpec(heads=spec.heads, kv_heads=spec.heads, head_dim=spec.head_dim),
        feedforward=FeedForwardSpec(size=spec.feedforward_size, gated=False),
        norm=NormSpec(placement="sandwich"),
    )


def _stack_bytes(
    spec: TransformerSpec, sequence_tokens: int, bytes_per_value: float, recompute: Recompute, head: bool
) -> float:
    """Bytes a token of one stack."""
    blocks = range(spec.layers)
    stack_bytes = sum(layer_activation_bytes(spec, n, sequence_tokens, bytes_per_value, recompute) for n in blocks)
    if recompute == "full":
        stack_bytes += max(
            layer_activation_bytes(spec, n, sequence_tokens, bytes_per_value, "selective") for n in blocks
        )
    return stack_bytes + (head_activation_bytes(spec, bytes_per_value) if head else 0.0)


def _norm_values(spec: TransformerSpec) -> int:
    norms = 2 if spec.attention.cross_size is None else 3
    return norms * (2 if spec.norm.placement == "sandwich" else 1) * spec.hidden_size


def _given_values(spec: TransformerSpec) -> int:
    """Bytes of what the layer takes besides its input: the gate's input, the last norm's, and what is given, before and
    after its own norm, the gate, its activation, and their product."""
    return 2 * spec.hidden_size + 5 * spec.layer_input_size if spec.layer_input_size else 0


def _attention_values(spec: TransformerSpec, layer: int) -> int:
    """The input of the projections, q, k, v, and what attention gives (the output projection's input). What is another
    layer's is kept there."""
    hidden = spec.hidden_size
    if spec.attention.latent is not None:
        part = spec.attention.latent
        latents = 2 * part.kv_rank + part.rope_dim + 2 * (part.q_rank or 0)  # before and after their norms
        return hidden + latents + spec.attention.heads * (2 * part.key_dim + 2 * part.value_dim)
    size, has_keys = spec.head_dim_of(layer), spec.keys_of(layer) == layer
    q, kv = spec.attention.heads * size, spec.kv_heads_of(layer) * size * has_keys
    normed = 0 if spec.attention.qk_norm is None else q + kv  # before their norms
    normed += kv if spec.attention.value_norm and not spec.keys_are_values(layer) else 0
    cross = 0 if spec.attention.cross_size is None else hidden + 2 * q + 2 * kv
    gate = q if spec.attention.gate else 0
    return hidden + 2 * q + 2 * kv + normed + cross + gate


def _feedforward_values(spec: TransformerSpec, layer: int) -> int:
    hidden, per_feature = spec.hidden_size, 4 if spec.feedforward.gated else 2
    if not spec.has_experts(layer) or spec.experts is None:
        return hidden + per_feature * spec.feedforward_size_of(layer)
    part = spec.experts
    # Each chosen expert has a copy of the token and gives one back, which its gate weighs.
    chosen = part.per_token * (2 * hidden + per_feature * part.feedforward_size)
    # The feed-forward that they stand beside, one norm's input and output, and the inputs of the two behind.
    dense_values = per_feature * spec.feedforward_size_of(layer) + 4 * hidden if part.beside else 0
    return hidden + part.count + chosen + per_feature * part.shared_size + dense_values + hidden * part.router_scales


def _diffusion_bytes(spec: DiffusionSpec, sequence_tokens: int, bytes_per_value: float, recompute: Recompute) -> float:
    """Bytes a token of a block with adaLN: a norm's input and its output (which is scaled), the scaled one (a product's
    input), and what each branch gives (which is gated), twice; q, k, v and attention's own; and the feed-forward's."""
    hidden = spec.hidden_size
    if recompute == "full":
        return hidden * bytes_per_value
    values = 8 * hidden + 4 * hidden + 2 * spec.feedforward_size
    if recompute == "none":
        return (values + spec.heads * sequence_tokens) * bytes_per_value
    return values * bytes_per_value + 4.0 * spec.heads
