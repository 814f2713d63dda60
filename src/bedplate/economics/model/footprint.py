"""How many operations a forward pass or a training step takes, and how many bytes its weights, caches and activations,
from the spec and a number format; and how large an adapter is.

A multiplication and its addition are two. What counts: matrix products (embedding look-ups are none; the head on the
rows it is asked for; the experts a token passes, the router and shared experts among them), and attention's two
products of each (query, key) pair. What does not: norms, activations, softmax, rotations, sampling.
Pairs are exact: a causal query sees itself and what came before it, bounded by its layer's window. Kernels that compute
the full square and mask it do more.
Training is three forward passes (the gradients of inputs and of weights are one each, https://arxiv.org/abs/2001.08361);
recomputed activations are not counted, so that utilisation is of the model's own operations (2204.02311, appendix B).

Formats with scales count them: int8 one bfloat16 scale for 32 values (GGUF's Q8_0), int4 a scale and an offset for 32
(Q4_1), fp8 one float32 scale for 128 × 128. Norms and biases stay bfloat16 under all three.
Activations are those that a forward pass keeps for the backward pass (Korthikanti et al., 2205.05198), as training is
published and as this project's own training does it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from bedplate.core.errors import UsageError
from bedplate.economics.model import parameters
from bedplate.economics.numbers.formula import whole
from bedplate.models.specs import (
    AudioSpec,
    DiffusionSpec,
    EncoderDecoderSpec,
    MultimodalSpec,
    Spec,
    TransformerSpec,
    VisionSpec,
)
from bedplate.models.specs.cache import cache_layout
from bedplate.models.specs.parts import AttentionSpec, FeedForwardSpec, LatentAttention, NormSpec
from bedplate.models.specs.split import Recompute


def training_flops_per_token(spec: Spec, sequence_tokens: int) -> float:
    """Operations of a training step for each token of sequences of `sequence_tokens`, with the head on every token.

    Of a dense decoder's attention: 6·L·H·d·(s+1) for s tokens; windows bound s in their layers. An encoder–decoder's
    source and target are `sequence_tokens` each (Whisper's source is its window), and the result is for each token of
    both. Towers and diffusion transformers have a sequence of their own: the argument is not used.
    """
    if sequence_tokens < 1:
        raise UsageError(f"sequence_tokens is {sequence_tokens}: it must be at least 1")
    if isinstance(spec, TransformerSpec):
        return 3 * forward_flops(spec, sequence_tokens, sequence_tokens) / sequence_tokens
    if isinstance(spec, MultimodalSpec):
        return training_flops_per_token(spec.language, sequence_tokens)
    if isinstance(spec, EncoderDecoderSpec):
        whole = encoder_decoder_flops(spec, sequence_tokens, sequence_tokens)
        return 3 * whole / (source_tokens_of(spec, sequence_tokens) + sequence_tokens)
    if isinstance(spec, DiffusionSpec):
        return 3 * denoise_flops(spec) / spec.tokens
    if isinstance(spec, AudioSpec):
        return 3 * audio_flops(spec) / spec.window_tokens
    return 3 * image_flops(spec) / spec.tokens


def forward_flops(spec: TransformerSpec, tokens: int, head_rows: int) -> float:
    """Operations of one sequence through a stack, with the head on so many rows, without what belongs to a source."""
    passed = _per(spec)
    products = 2 * (passed["token"] * tokens + passed["row"] * head_rows + passed["sequence"])
    return products + attention_flops(spec, tokens)


def encoder_decoder_flops(spec: EncoderDecoderSpec, source_tokens: int, target_tokens: int) -> float:
    """Operations of one forward pass over a source and a target, with the head on every token of the target; the keys
    and values of cross-attention are made once of each token of the source."""
    source, decoder, encoder = source_tokens_of(spec, source_tokens), spec.decoder, spec.encoder
    encoded = audio_flops(encoder) if isinstance(encoder, AudioSpec) else forward_flops(encoder, source, 0)
    cross_pairs = decoder.layers * pair_flops(decoder, 0) * target_tokens * source
    cross = _per(decoder)["source"] * 2 * source + cross_pairs
    return encoded + cross + forward_flops(decoder, target_tokens, target_tokens)


def image_flops(spec: VisionSpec | MultimodalSpec) -> float:
    """Operations of one image through its tower (and projector), without the language model's on its tokens."""
    vision = spec.vision if isinstance(spec, MultimodalSpec) else spec
    amounts: dict[parameters.Per, float] = {"token": vision.tokens, "input": vision.patches, "sequence": 1}
    flops = _products(parameters.vision_weights(vision), amounts) + attention_flops(vision.tower, vision.tokens)
    if vision.pooling == "map":  # one query over all tokens
        flops += 4 * vision.tower.hidden_size * vision.tokens
    if isinstance(spec, MultimodalSpec):
        flops += _products(parameters.projector_weights(spec), {"token": spec.image_tokens})
    return flops


def audio_flops(spec: AudioSpec) -> float:
    """Operations of the tower over one window of sound."""
    amounts: dict[parameters.Per, float] = {"token": spec.window_tokens, "input": spec.frames, "sequence": 1}
    return _products(parameters.audio_weights(spec), amounts) + attention_flops(spec.tower, spec.window_tokens)


def denoise_flops(spec: DiffusionSpec) -> float:
    """Operations of one image through the transformer once: a forward pass at one timestep."""
    source = 0 if spec.text is None else spec.text.tokens
    amounts: dict[parameters.Per, float] = {"token": spec.tokens, "input": spec.tokens, "source": source, "sequence": 1}
    return (
        _products(parameters.diffusion_weights(spec), amounts)
        + 4 * spec.hidden_size * spec.layers * (spec.tokens + source) ** 2
    )


def source_tokens_of(spec: EncoderDecoderSpec, source_tokens: int) -> int:
    """Tokens that the decoder attends to: an audio encoder's window, or the text's own."""
    return spec.encoder.window_tokens if isinstance(spec.encoder, AudioSpec) else source_tokens


@lru_cache(maxsize=256)
def _per(spec: TransformerSpec) -> dict[parameters.Per, int]:
    """A stack's weights in products, by what passes through them."""
    counts: dict[parameters.Per, int] = dict.fromkeys(("token", "row", "source", "input", "sequence"), 0)
    for weight in parameters.stack_weights(spec):
        counts[weight.per] += weight.passed
    return counts


def _products(weights: tuple[parameters.Weight, ...], amounts: dict[parameters.Per, float]) -> float:
    return 2 * sum(weight.passed * amounts[weight.per] for weight in weights)


# --- attention


def attention_flops(spec: TransformerSpec, tokens: int) -> float:
    """Operations of self-attention over all layers, for one sequence; and of the recurrences of layers that have one in
    its place."""
    pairs_of = causal_pairs if spec.kind == "decoder" else two_sided_pairs
    states = (
        sum(not parameters.attends(spec, layer) for layer in range(spec.layers)) if spec.state.mixer is not None else 0
    )
    pairs = sum(layers * pair * pairs_of(tokens, window) for window, pair, layers in _windows(spec))
    return pairs + states * parameters.recurrent_flops(spec) * tokens


def causal_pairs(tokens: int, window: int | None) -> int:
    """Pairs where each token sees itself and those before, at most `window` in all."""
    if window is None or tokens <= window:
        return tokens * (tokens + 1) // 2
    return window * (window + 1) // 2 + (tokens - window) * window


def two_sided_pairs(tokens: int, window: int | None) -> int:
    """Pairs of an encoder: all, or those at most half a window apart."""
    half = tokens if window is None else min(window // 2, tokens - 1)
    if window is None or half >= tokens - 1:
        return tokens * tokens
    return tokens * (2 * half + 1) - half * (half + 1)


@lru_cache(maxsize=256)
def _windows(spec: TransformerSpec) -> tuple[tuple[int | None, int, int], ...]:
    """The windows of layers with attention, each with the operations of a pair there, and the number of layers that
    have both; prediction modules see all."""
    layers = (layer for layer in range(spec.layers) if parameters.attends(spec, layer))
    layer_counts = Counter((spec.window(layer), pair_flops(spec, layer)) for layer in layers)
    if spec.prediction_modules:
        layer_counts[None, pair_flops(spec, spec.layers)] += spec.prediction_modules
    return tuple((window, pair, count) for (window, pair), count in layer_counts.items())


def pair_flops(spec: TransformerSpec, layer: int) -> int:
    """Operations of one pair in this layer: the score and the weighted value of every head, 2 a feature."""
    if spec.attention.latent is not None:
        return 2 * spec.attention.heads * (spec.attention.latent.key_dim + spec.attention.latent.value_dim)
    return 4 * spec.attention.heads * spec.head_dim_of(layer)


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
    return sum(weight.stored * _value_bytes(weight, weights) for weight in parameters.weights(spec))


def _value_bytes(weight: parameters.Weight, weights: WeightFormat) -> float:
    value_bytes = BYTES_PER_PARAMETER[weights]
    return max(value_bytes, 2.0) if weight.role == "vector" else value_bytes


def experts_touched(experts: int, per_token: int, tokens: int) -> float:
    """Expected number of different experts that `tokens` tokens choose, each `per_token` of `experts` evenly:
    E·(1 − (1 − k/E)^B). Real routers are not even, and choose fewer."""
    return experts * (1 - (1 - per_token / experts) ** tokens)


def step_reads(spec: Spec, weights: WeightFormat = "bfloat16") -> Callable[[int], float]:
    """Bytes of weights that one forward pass reads, as a function of its tokens: of experts those expected to be
    touched, of tables the rows looked up, of a tied table all of it for the head. Towers are not in it; nor is an
    encoder in a step of its decoder, nor the cross-attention's keys and values, which are made once."""
    stack, always = _decoding_stack(spec), 0.0
    kv_size, inputs = stack.attention.kv_heads * stack.attention.head_dim, stack.layers * stack.layer_input_size
    rows = {"value_tables": kv_size, "layer_inputs": inputs}
    tables: list[tuple[float, float]] = []
    experts: Counter[tuple[int, int, float]] = Counter()  # those of one shape are counted together
    for weight in parameters.weights(stack):
        value = _value_bytes(weight, weights)
        if weight.per == "source" or weight.name.startswith("prediction."):
            continue
        if weight.role == "table":
            row = rows.get(weight.name, stack.hidden_size)
            tables.append((weight.stored * value, weight.used * row * value))
        elif weight.copies > 1:
            experts[weight.copies, weight.used, weight.size * value] += 1
        else:
            always += weight.size * value  # a tied head too: it is stored once, as the table, and read as the head

    def read(tokens: int) -> float:
        bytes_read = always + sum(min(whole, tokens * row) for whole, row in tables)
        return bytes_read + sum(n * size * experts_touched(c, u, tokens) for (c, u, size), n in experts.items())

    return read


def _decoding_stack(spec: Spec) -> TransformerSpec:
    """The stack that reads and writes text tokens. UsageError for a model without one."""
    if isinstance(spec, EncoderDecoderSpec):
        return spec.decoder
    if isinstance(spec, MultimodalSpec):
        return spec.language
    if not isinstance(spec, TransformerSpec):
        raise UsageError(f"a {type(spec).__name__.removesuffix('Spec').lower()} model has no stack that reads text")
    return spec


@lru_cache(maxsize=256)
def _cached_values(spec: TransformerSpec) -> tuple[tuple[str, int | None, int], ...]:
    """(cache type, window, values) of the buffers that are alike, over all layers."""
    counts: Counter[tuple[str, int | None]] = Counter()
    for buffer in cache_layout(spec):
        counts[buffer.cache_type, buffer.window] += buffer.values
    return tuple((cache_type, window, values) for (cache_type, window), values in counts.items())


def kv_bytes_per_token(spec: Spec, bytes_per_value: float = 2.0) -> float:
    """Bytes that one token leaves in the cache, over all layers: 2·L·G·d values, with latent attention L·(rank + rope).
    An encoder keeps none. Of an encoder–decoder it is a target token's."""
    buffers = _cached_values(_decoding_stack(spec))
    return bytes_per_value * sum(size for cache_type, _, size in buffers if cache_type in ("kv", "window", "latent"))


def kv_bytes(spec: Spec, context_tokens: int, bytes_per_value: float = 2.0, source_tokens: int = 0) -> float:
    """Bytes of the cache of one sequence; a layer with a window keeps no more than the window, one with a state has it
    once. source_tokens: of an encoder–decoder for text, what cross-attention keeps."""
    source = source_tokens_of(spec, source_tokens) if isinstance(spec, EncoderDecoderSpec) else 0
    tokens_of = {"cross": source, "convolution": 1, "recurrent": 1}
    total = 0.0
    for cache_type, window, values in _cached_values(_decoding_stack(spec)):
        # A recurrence's state is float32 whatever the rest is.
        size = max(bytes_per_value, 4.0) if cache_type == "recurrent" else bytes_per_value
        total += size * values * tokens_of.get(cache_type, min(context_tokens, window or context_tokens))
    return total


# --- as published


def layer_activation_bytes(
    spec: TransformerSpec, layer: int, sequence_tokens: int, bytes_per_value: float, recompute: Recompute
) -> float:
    """Bytes a token that one block keeps."""
    if recompute == "full":
        return spec.hidden_size * bytes_per_value
    mixed = _attention_values(spec, layer) if parameters.attends(spec, layer) else parameters.state_values(spec)
    norms = (2 if spec.attention.cross_size is None else 3) * (2 if spec.norm.placement == "sandwich" else 1)
    values = norms * spec.hidden_size + mixed + spec.hidden_size
    values += _feedforward_values(spec, layer, 4 if spec.feedforward.gated else 2, 2, 1)
    if spec.layer_input_size:
        # The gate's input, the last norm's, and what is given, before and after its own norm, the gate, its activation,
        # and their product.
        values += 2 * spec.hidden_size + 5 * spec.layer_input_size
    if not parameters.attends(spec, layer):
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
    # A diffusion transformer's blocks, for their activations: modulation keeps as much as norms do.
    tower = TransformerSpec(
        kind="tower",
        vocab_size=0,
        hidden_size=spec.hidden_size,
        layers=spec.layers,
        context_length=spec.tokens * (1 if spec.text is None else 2),
        attention=AttentionSpec(heads=spec.heads, kv_heads=spec.heads, head_dim=spec.head_dim),
        feedforward=FeedForwardSpec(size=spec.feedforward_size, gated=False),
        norm=NormSpec(placement="sandwich"),
    )
    return (tower,)


def _attention_values(spec: TransformerSpec, layer: int) -> int:
    """The input of the projections, q, k, v, and what attention gives (the output projection's input). What is another
    layer's is kept there."""
    part, hidden = spec.attention, spec.hidden_size
    if part.latent is not None:
        return hidden + part.latent.rope_dim + _latent_values(part.latent, part.heads)
    size = spec.head_dim_of(layer)
    q, kv = part.heads * size, spec.kv_heads_of(layer) * size * (spec.keys_of(layer) == layer)
    normed = 0 if part.qk_norm is None else q + kv  # before their norms
    normed += kv if part.value_norm and not spec.keys_are_values(layer) else 0
    cross = 0 if part.cross_size is None else hidden + 2 * q + 2 * kv
    return hidden + 2 * q + 2 * kv + normed + cross + (q if part.gate else 0)


def _latent_values(part: LatentAttention, heads: int) -> int:
    """The latents before and after their norms, and what the heads make of them."""
    return 2 * part.kv_rank + 2 * (part.q_rank or 0) + heads * (2 * part.key_dim + 2 * part.value_dim)


def _feedforward_values(spec: TransformerSpec, layer: int, per_feature: int, copies: int, routing: int) -> int:
    """Values that a feed-forward keeps beside its input. copies: of a token for each chosen expert, and what it gives
    back, which its gate weighs. routing: values of the router for each expert."""
    part, hidden, dense = spec.experts, spec.hidden_size, per_feature * spec.feedforward_size_of(layer)
    if not spec.has_experts(layer) or part is None:
        return dense
    chosen = part.per_token * (copies * hidden + per_feature * part.feedforward_size)
    # The feed-forward that they stand beside, one norm's input and output, and the inputs of the two behind.
    beside = dense + 4 * hidden if part.beside else 0
    return chosen + per_feature * part.shared_size + routing * part.count + beside + hidden * part.router_scales


# --- of this project's own training


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
    mixed = _attention(spec, layer) if parameters.attends(spec, layer) else float(parameters.state_values(spec))
    # Of each expert a router keeps a logit and a score, with what sigmoid or softmax made of it.
    per_feature, copies = (2 if spec.feedforward.gated else 1) + (not selective), 1 if selective else 2
    feedforward = _feedforward_values(spec, layer, per_feature, copies, 2)
    norm_inputs = norms - spec.parallel  # the norms of parallel parts have one input
    values = (norm_inputs + inputs) * hidden + mixed + feedforward
    if spec.layer_input_size:  # the gate's input, the last norm's, what is given, the gate, and their product
        values += 2 * hidden + 3 * spec.layer_input_size
        norms += 1
    if spec.attention.qk_norm is not None:
        norms += 2 if spec.attention.qk_norm == "projection" else spec.attention.heads + spec.kv_heads_of(layer)
    return values * size + norms * _statistic(spec)


def _attention(spec: TransformerSpec, layer: int) -> float:
    """Values that attention keeps beside its input: queries, keys, values, and what it gives."""
    part, size = spec.attention, spec.head_dim_of(layer)
    if part.latent is not None:
        return _latent_values(part.latent, part.heads)
    q, kv = part.heads * size, spec.kv_heads_of(layer) * size
    normed = 0 if part.qk_norm is None else q + kv * (spec.keys_of(layer) == layer)
    normed += kv if part.value_norm and not spec.keys_are_values(layer) else 0
    gates = 2 * q if part.gate else 0  # the gate's sigmoid, and what it gates
    return 2 * q + 2 * kv + normed + gates + (0 if part.cross_size is None else 2 * q)


def _statistic(spec: TransformerSpec) -> float:
    """Bytes of what a norm keeps of a row, in float32; layer norms keep two."""
    return 4.0 * (1 if spec.norm.type == "rms" else 2)


# --- adapters


def lora_parameters(spec: Spec, rank: int) -> int:
    """Parameters of a LoRA adapter on every linear map inside the blocks: rank · (inputs + outputs) a map (2106.09685).
    Routed experts, tables and the head have none, as with our own `adapters.lora` and with peft's "all-linear"."""
    whole(rank=rank)
    weights = (
        weight for stack in stacks_of(spec) for weight in parameters.stack_weights(stack) if weight.layer is not None
    )
    return rank * sum(weight.features for weight in weights if not weight.name.startswith("prediction."))
