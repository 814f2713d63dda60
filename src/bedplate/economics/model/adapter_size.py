"""How many parameters a LoRA adapter of every linear map has: rank · (inputs + outputs) a map (2106.09685).

Routed experts, tables and the head have none, as with our own `adapters.lora` and with peft's "all-linear".
"""

from __future__ import annotations

from collections.abc import Iterator

from bedplate.economics.model.activations import stacks_of
from bedplate.economics.model.mixer_flops import attends, linear_maps
from bedplate.economics.numbers.bounds import whole
from bedplate.models.specs import Spec, TransformerSpec


def lora_parameters(spec: Spec, rank: int) -> int:
    """Parameters of an adapter on every linear map inside the blocks."""
    whole(rank=rank)
    return rank * sum(
        a + b for stack in stacks_of(spec) for layer in range(stack.layers) for a, b in _maps(stack, layer)
    )


def _maps(spec: TransformerSpec, layer: int) -> Iterator[tuple[int, int]]:
    """(inputs, outputs) of each linear map of a block."""
    size = spec.head_dim_of(layer)
    hidden, q, kv = spec.hidden_size, spec.attention.heads * size, spec.kv_heads_of(layer) * size
    part = spec.attention.latent
    if not attends(spec, layer):
        yield from ((inputs, outputs) for _, inputs, outputs, _ in linear_maps(spec))
    elif part is None:
        keys = 0 if spec.keys_of(layer) != layer else 2 - spec.keys_are_values(layer)
        yield from ((hidden, q * (1 + spec.attention.gate)), *((hidden, kv),) * keys, (q, hidden))
    else:
        queries = spec.attention.heads * part.key_dim
        yield from ((hidden, queries),) if part.q_rank is None else ((hidden, part.q_rank), (part.q_rank, queries))
        yield hidden, part.kv_rank + part.rope_dim
        yield part.kv_rank, spec.attention.heads * (part.nope_dim + part.value_dim)
        yield spec.attention.heads * part.value_dim, hidden
    if spec.attention.cross_size is not None:
        yield from ((hidden, q), (spec.attention.cross_size, kv), (spec.attention.cross_size, kv), (q, hidden))
    if spec.layer_input_size:
        yield from ((hidden, spec.layer_input_size), (spec.layer_input_size, hidden))
    shared = 0 if spec.experts is None else spec.experts.shared_size
    feedforward_size = spec.feedforward_size_of(layer) if spec.feedforward_kind(layer) == "dense" else shared
    if feedforward_size:
        yield from ((hidden, feedforward_size),) * (2 if spec.feedforward.gated else 1)
        yield feedforward_size, hidden
