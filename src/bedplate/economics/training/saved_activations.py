"""Bytes that this project's own training keeps of a forward pass, operation by operation, by a run's `recompute`.

`economics.model.activations` is of training as it is published. Here attention never keeps its weights, a norm keeps
its input and a statistic, a gated feed-forward its gate and what is gated; under "selective" what norms and activations
give is made again (Korthikanti et al., https://arxiv.org/abs/2205.05198), under "full" whole blocks are
(https://arxiv.org/abs/1604.06174). Shapes do not enter: packed documents are neither padded nor masked as a whole, so
that what is kept is a number of bytes a token.
"""

from __future__ import annotations

from dataclasses import dataclass

from bedplate.core.errors import UsageError
from bedplate.economics.model.mixer_flops import attends, state_values
from bedplate.models.specs import EncoderDecoderSpec, TransformerSpec
from bedplate.models.specs.split import Recompute

_STATISTIC = 4.0
"""Bytes of what a norm keeps of a row, in float32; layer norms keep two."""


@dataclass(frozen=True)
class KeptBytes:
    """Bytes that a training step keeps. stored: from the forward pass on. recomputed: of the largest block that is run
    again, while its backward pass lasts."""

    stored: float
    recomputed: float

    @property
    def total(self) -> float:
        return self.stored + self.recomputed


def kept_bytes(
    spec: TransformerSpec | EncoderDecoderSpec,
    tokens: int,
    *,
    bytes_per_value: float = 2.0,
    recompute: Recompute = "none",
    source_tokens: int = 0,
) -> KeptBytes:
    """Bytes saved by a pass over so many tokens through all blocks and the last norm, where every weight is trained.
    source_tokens: of what an encoder reads. The head is apart: logits are made for 512 learned tokens at a time."""
    if tokens < 1 or source_tokens < 0:
        raise UsageError(f"tokens is {tokens} and source_tokens {source_tokens}: give at least 1, and not fewer than 0")
    if isinstance(spec, TransformerSpec):
        per_token = _stack(spec, bytes_per_value, recompute)
        return KeptBytes(tokens * per_token.stored, tokens * per_token.recomputed)
    reads, writes = _stack(spec.stack, bytes_per_value, recompute), _stack(spec.decoder, bytes_per_value, recompute)
    # The decoder's keys and values are of the source: what the layers keep of it, and the states they are made of.
    decoder, size = spec.decoder, bytes_per_value
    cross_bytes = 2 * decoder.attention.kv_heads * decoder.attention.head_dim * size
    crossed = spec.stack.hidden_size * size + (0 if recompute == "full" else decoder.layers * cross_bytes)
    stored = tokens * writes.stored + source_tokens * (reads.stored + crossed)
    recomputed = max(tokens * writes.recomputed + source_tokens * cross_bytes, source_tokens * reads.recomputed)
    return KeptBytes(stored, recomputed if recompute == "full" else 0.0)


def _stack(spec: TransformerSpec, size: float, recompute: Recompute) -> KeptBytes:
    """Bytes a token of one stack."""
    ends = spec.norms_output * (spec.hidden_size * size + _statistic(spec))
    ends += spec.norms_embedding * (spec.hidden_size * size + _statistic(spec))
    ropes = {rope for rope in map(spec.rope_of, range(spec.layers)) if rope is not None}
    turned = spec.attention.head_dim if spec.attention.latent is None else spec.attention.latent.rope_dim
    ends += sum(2 * turned * rope.fraction * size for rope in ropes)  # cosines and sines, once for all layers
    if recompute == "full":
        recomputed = max(_layer(spec, layer, size, "none") for layer in range(spec.layers))
        return KeptBytes(ends + spec.layers * spec.hidden_size * size, recomputed)
    return KeptBytes(ends + sum(_layer(spec, layer, size, recompute) for layer in range(spec.layers)), 0.0)


def _layer(spec: TransformerSpec, layer: int, size: float, recompute: Recompute) -> float:
    """Bytes a token of one block."""
    hidden, selective = spec.hidden_size, recompute == "selective"
    norms = (4 if spec.norm.placement == "sandwich" else 2) + (spec.attention.cross_size is not None)
    norms -= layer == 0 and not spec.norm.first and spec.norm.placement == "pre"
    # What a norm before a part gives is the input of the part's products.
    recomputes_norms = selective and spec.norm.placement in ("pre", "sandwich")
    inputs = 0 if recomputes_norms else 2 + (spec.attention.cross_size is not None)
    mixed = _attention(spec, layer) if attends(spec, layer) else float(state_values(spec))
    norm_inputs = norms - spec.parallel  # the norms of parallel parts have one input
    values = (norm_inputs + inputs) * hidden + mixed + _feedforward(spec, layer, selective)
    if spec.layer_input_size:  # the gate's input, the last norm's, what is given, the gate, and their product
        values += 2 * hidden + 3 * spec.layer_input_size
        norms += 1
    return values * size + norms * _statistic(spec) + _head_statistics(spec, layer)


def _attention(spec: TransformerSpec, layer: int) -> float:
    """Values that attention keeps beside its input: queries, keys, values, and what it gives."""
    if spec.attention.latent is not None:
        part = spec.attention.latent
        latents = 2 * part.kv_rank + 2 * (part.q_rank or 0)  # before and after their norms
        return latents + spec.attention.heads * (2 * part.key_dim + 2 * part.value_dim)
    size = spec.head_dim_of(layer)
    q, kv = spec.attention.heads * size, spec.kv_heads_of(layer) * size
    normed = 0 if spec.attention.qk_norm is None else q + kv * (spec.keys_of(layer) == layer)
    normed += kv if spec.attention.value_norm and not spec.keys_are_values(layer) else 0
    gates = 2 * q if spec.attention.gate else 0  # the gate's sigmoid, and what it gates
    cross = 0 if spec.attention.cross_size is None else 2 * q
    return 2 * q + 2 * kv + normed + gates + cross


def _feedforward(spec: TransformerSpec, layer: int, selective: bool) -> float:
    """Values that a feed-forward keeps beside its input."""
    per_feature = (2 if spec.feedforward.gated else 1) + (not selective)
    if not spec.has_experts(layer) or spec.experts is None:
        return per_feature * spec.feedforward_size_of(layer)
    part = spec.experts
    # Each chosen expert has a copy of the token and gives one back, which its gate weighs.
    copies = part.per_token * (spec.hidden_size * (1 if selective else 2) + per_feature * part.feedforward_size)
    # The feed-forward that they stand beside, one norm's input and output, and the inputs of the two behind.
    dense_values = per_feature * spec.feedforward_size_of(layer) + 4 * spec.hidden_size if part.beside else 0
    # Of each expert a router keeps a logit and a score, with what sigmoid or softmax made of it.
    return (
        copies + per_feature * part.shared_size + 2 * part.count + dense_values + spec.hidden_size * part.router_scales
    )


def _statistic(spec: TransformerSpec) -> float:
    return _STATISTIC * (1 if spec.norm.type == "rms" else 2)


def _head_statistics(spec: TransformerSpec, layer: int) -> float:
    if spec.attention.qk_norm is None:
        return 0.0
    return _statistic(spec) * (
        2 if spec.attention.qk_norm == "projection" else spec.attention.heads + spec.kv_heads_of(layer)
    )
