"""Bytes of weights, caches and latents, from the spec and a number format.

Formats with scales count them: int8 one bfloat16 scale for 32 values (GGUF's Q8_0), int4 a scale and an offset for 32
(Q4_1), fp8 one float32 scale for 128 × 128. Norms and biases stay bfloat16 under all three.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

from bedplate.core.errors import UsageError
from bedplate.economics.model.attention_pairs import cached_features
from bedplate.economics.model.flops import source_tokens_of, text_stack
from bedplate.economics.model.parameters import weights as weights_of
from bedplate.economics.model.weight_list import Weight
from bedplate.models.specs import EncoderDecoderSpec, Spec, TransformerSpec
from bedplate.models.specs.cache import cache_layout

WeightFormat = Literal["float32", "bfloat16", "float16", "fp8", "int8", "int4"]
GROUP = 32

BYTES_PER_PARAMETER: dict[WeightFormat, float] = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "fp8": 1.0 + 4 / 128**2,
    "int8": 1.0 + 2 / GROUP,
    "int4": 0.5 + 2 * 2 / GROUP,
}


def weight_bytes(spec: Spec, weights: WeightFormat = "bfloat16") -> float:
    """Bytes of all weights, as one copy of the model keeps them."""
    return sum(weight.stored * _value_bytes(weight, weights) for weight in weights_of(spec))


def experts_touched(experts: int, per_token: int, tokens: int) -> float:
    """Expected number of different experts that `tokens` tokens choose, each `per_token` of `experts` evenly:
    E·(1 − (1 − k/E)^B). Real routers are not even, and choose fewer."""
    if experts < 1 or not 0 < per_token <= experts or tokens < 0:
        raise UsageError(f"{tokens} tokens that choose {per_token} of {experts} experts: no such choice")
    return experts * (1 - (1 - per_token / experts) ** tokens)


@lru_cache(maxsize=4096)  # a simulation asks at every step
def step_weight_bytes(spec: Spec, tokens: int, weights: WeightFormat = "bfloat16") -> float:
    """Bytes of weights that one forward pass of `tokens` tokens reads: of experts those expected to be touched, of
    tables the rows looked up, of a tied table all of it for the head. Towers are not in it; nor is an encoder in a step
    of its decoder, nor the cross-attention's keys and values, which are made once."""
    return step_reads(spec, weights)(tokens)


def step_reads(spec: Spec, weights: WeightFormat = "bfloat16") -> Callable[[int], float]:
    """`step_weight_bytes` of this model as a function of the tokens, for who asks often: what is always read is summed
    once, and experts of one shape are counted together."""
    stack = spec.decoder if isinstance(spec, EncoderDecoderSpec) else text_stack(spec, "step_weight_bytes")
    always = 0.0
    tables: list[tuple[float, float]] = []
    experts: Counter[tuple[int, int, float]] = Counter()
    for weight in weights_of(stack):
        value = _value_bytes(weight, weights)
        if weight.per == "source" or weight.name.startswith("prediction."):
            continue
        if weight.role == "table":
            tables.append((weight.stored * value, weight.used * _row(weight, stack) * value))
        elif weight.copies > 1:
            experts[weight.copies, weight.used, weight.size * value] += 1
        else:
            always += weight.size * value  # a tied head too: it is stored once, as the table, and read as the head

    def read(tokens: int) -> float:
        if tokens < 1:
            raise UsageError(f"a forward pass of {tokens} tokens: it must be at least 1")
        bytes_read = always + sum(min(whole, tokens * row) for whole, row in tables)
        return bytes_read + sum(n * size * experts_touched(c, u, tokens) for (c, u, size), n in experts.items())

    return read


def _row(weight: Weight, stack: TransformerSpec) -> int:
    rows = {
        "value_tables": stack.attention.kv_heads * stack.attention.head_dim,
        "layer_inputs": stack.layers * stack.layer_input_size,
    }
    return rows.get(weight.name, stack.hidden_size)


def kv_bytes_per_token(spec: Spec, bytes_per_value: float = 2.0) -> float:
    """Bytes that one token leaves in the cache, over all layers: 2·L·G·d values, with latent attention L·(rank + rope).
    An encoder keeps none. Of an encoder–decoder it is a target token's."""
    stack = spec.decoder if isinstance(spec, EncoderDecoderSpec) else text_stack(spec, "kv_bytes_per_token")
    if stack.kind != "decoder":
        return 0.0
    return bytes_per_value * sum(size for _, size in cached_features(stack))


def kv_bytes(spec: Spec, context_tokens: int, bytes_per_value: float = 2.0, source_tokens: int | None = None) -> float:
    """Bytes of the cache of one sequence; a layer with a window keeps no more than the window, one with a state has it
    once.

    source_tokens: of an encoder–decoder, what cross-attention keeps; None: Whisper's window, or as many as the context.
    """
    if context_tokens < 0:
        raise UsageError(f"context_tokens is {context_tokens}: it must be at least 0")
    stack = spec.decoder if isinstance(spec, EncoderDecoderSpec) else text_stack(spec, "kv_bytes")
    if stack.kind != "decoder":
        return 0.0
    cache_values = sum(size * min(context_tokens, window or context_tokens) for window, size in cached_features(stack))
    if isinstance(spec, EncoderDecoderSpec):
        source = source_tokens_of(spec, context_tokens if source_tokens is None else source_tokens)
        cache_values += 2 * stack.layers * stack.attention.kv_heads * stack.attention.head_dim * source
    states = [state for state in cache_layout(stack) if state.of_sequence] if stack.state.mixer is not None else []
    # A recurrence's state is float32 whatever the rest is.
    recurrent_values = sum(state.values for state in states if state.cache_type == "recurrent")
    cache_values += sum(state.values for state in states if state.cache_type == "convolution")
    return bytes_per_value * cache_values + max(bytes_per_value, 4.0) * recurrent_values


def _value_bytes(weight: Weight, weights: WeightFormat) -> float:
    value_bytes = BYTES_PER_PARAMETER[weights]
    return max(value_bytes, 2.0) if weight.role == "vector" else value_bytes
