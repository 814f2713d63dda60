"""How many operations a forward pass or a training step takes, from the spec.

A multiplication and its addition are two. What counts: matrix products (embedding look-ups are none; the head on the
rows it is asked for; the experts a token passes, the router and shared experts among them), and attention's two
products of each (query, key) pair. What does not: norms, activations, softmax, rotations, sampling.
Pairs are exact: a causal query sees itself and what came before it, bounded by its layer's window. Kernels that compute
the full square and mask it do more.
Training is three forward passes (the gradients of inputs and of weights are one each, https://arxiv.org/abs/2001.08361);
recomputed activations are not counted, so that utilisation is of the model's own operations (2204.02311, appendix B).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from bedplate.core.errors import UsageError
from bedplate.economics.model.parameters import (
    Per,
    Weight,
    attends,
    audio_weights,
    diffusion_weights,
    projector_weights,
    recurrent_flops,
    stack_weights,
    vision_weights,
)
from bedplate.models.specs import (
    AudioSpec,
    DiffusionSpec,
    EncoderDecoderSpec,
    MultimodalSpec,
    Spec,
    TransformerSpec,
    VisionSpec,
)


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
    amounts: dict[Per, float] = {"token": vision.tokens, "input": vision.patches, "sequence": 1}
    flops = _products(vision_weights(vision), amounts) + attention_flops(vision.tower, vision.tokens)
    if vision.pooling == "map":  # one query over all tokens
        flops += 4 * vision.tower.hidden_size * vision.tokens
    if isinstance(spec, MultimodalSpec):
        flops += _products(projector_weights(spec), {"token": spec.image_tokens})
    return flops


def audio_flops(spec: AudioSpec) -> float:
    """Operations of the tower over one window of sound."""
    amounts: dict[Per, float] = {"token": spec.window_tokens, "input": spec.frames, "sequence": 1}
    return _products(audio_weights(spec), amounts) + attention_flops(spec.tower, spec.window_tokens)


def denoise_flops(spec: DiffusionSpec) -> float:
    """Operations of one image through the transformer once: a forward pass at one timestep."""
    source = 0 if spec.text is None else spec.text.tokens
    amounts: dict[Per, float] = {"token": spec.tokens, "input": spec.tokens, "source": source, "sequence": 1}
    return (
        _products(diffusion_weights(spec), amounts) + 4 * spec.hidden_size * spec.layers * (spec.tokens + source) ** 2
    )


def source_tokens_of(spec: EncoderDecoderSpec, source_tokens: int) -> int:
    """Tokens that the decoder attends to: an audio encoder's window, or the text's own."""
    return spec.encoder.window_tokens if isinstance(spec.encoder, AudioSpec) else source_tokens


@lru_cache(maxsize=256)
def _per(spec: TransformerSpec) -> dict[Per, int]:
    """A stack's weights in products, by what passes through them."""
    counts: dict[Per, int] = dict.fromkeys(("token", "row", "source", "input", "sequence"), 0)
    for weight in stack_weights(spec):
        counts[weight.per] += weight.passed
    return counts


def _products(weights: tuple[Weight, ...], amounts: dict[Per, float]) -> float:
    return 2 * sum(weight.passed * amounts[weight.per] for weight in weights)


# --- attention


def attention_flops(spec: TransformerSpec, tokens: int) -> float:
    """Operations of self-attention over all layers, for one sequence; and of the recurrences of layers that have one in
    its place."""
    pairs_of = causal_pairs if spec.kind == "decoder" else two_sided_pairs
    states = sum(not attends(spec, layer) for layer in range(spec.layers)) if spec.state.mixer is not None else 0
    pairs = sum(layers * pair * pairs_of(tokens, window) for window, pair, layers in _windows(spec))
    return pairs + states * recurrent_flops(spec) * tokens


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
    layers = (layer for layer in range(spec.layers) if attends(spec, layer))
    layer_counts = Counter((spec.window(layer), pair_flops(spec, layer)) for layer in layers)
    if spec.prediction_modules:
        layer_counts[None, pair_flops(spec, spec.layers)] += spec.prediction_modules
    return tuple((window, pair, count) for (window, pair), count in layer_counts.items())


def pair_flops(spec: TransformerSpec, layer: int) -> int:
    """Operations of one pair in this layer: the score and the weighted value of every head, 2 a feature."""
    if spec.attention.latent is not None:
        return 2 * spec.attention.heads * (spec.attention.latent.key_dim + spec.attention.latent.value_dim)
    return 4 * spec.attention.heads * spec.head_dim_of(layer)


def cached_features(spec: TransformerSpec) -> Iterator[tuple[int | None, int]]:
    """(window, values that each token leaves in the cache) of each group of layers with one window; a layer that uses
    another one's keys and values leaves none."""
    features_by_window: Counter[int | None] = Counter()
    for layer in filter(lambda layer: attends(spec, layer), range(spec.layers)):
        size = 2 * spec.kv_heads_of(layer) * spec.head_dim_of(layer) if spec.keys_of(layer) == layer else 0
        if spec.attention.latent is not None:
            size = spec.attention.latent.kv_rank + spec.attention.latent.rope_dim
        features_by_window[spec.window(layer)] += size
    yield from features_by_window.items()
