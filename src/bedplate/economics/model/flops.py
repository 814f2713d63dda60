"""How many operations a forward pass or a training step takes, from the spec.

A multiplication and its addition are two. What counts: matrix products (embedding look-ups are none; the head on the
rows it is asked for; the experts a token passes, the router and shared experts among them), and attention's two
products of each (query, key) pair. What does not: norms, activations, softmax, rotations, sampling.
Training is three forward passes (the gradients of inputs and of weights are one each, https://arxiv.org/abs/2001.08361);
recomputed activations are not counted, so that utilisation is of the model's own operations (2204.02311, appendix B).
"""

from __future__ import annotations

from functools import lru_cache

from bedplate.core.errors import UsageError
from bedplate.economics.model.attention_pairs import attention_flops, pair_flops
from bedplate.economics.model.media import audio_weights, diffusion_weights, projector_weights, vision_weights
from bedplate.economics.model.weight_list import Per, Weight, stack_weights
from bedplate.models.specs import (
    AudioSpec,
    DiffusionSpec,
    EncoderDecoderSpec,
    MultimodalSpec,
    Spec,
    TransformerSpec,
    VisionSpec,
)


def training_flops_per_token(spec: Spec, sequence_tokens: int, *, causal: bool | None = None) -> float:
    """Operations of a training step for each token of sequences of `sequence_tokens`, with the head on every token.

    causal: of decoders. True (and None): the pairs that are seen, 6·L·H·d·(s+1) for s tokens of a dense decoder; False:
    the full square, 12·L·H·d·s, which is what most published numbers count. Windows bound s in their layers.
    An encoder–decoder's source and target are `sequence_tokens` each (Whisper's source is its window), and the result
    is for each token of both. Towers and diffusion transformers have a sequence of their own: the argument is not used.
    """
    _count("sequence_tokens", sequence_tokens)
    if isinstance(spec, TransformerSpec):
        return 3 * _stack_flops(spec, sequence_tokens, 0, sequence_tokens, causal) / sequence_tokens
    if isinstance(spec, MultimodalSpec):
        return training_flops_per_token(spec.language, sequence_tokens, causal=causal)
    if isinstance(spec, EncoderDecoderSpec):
        source = source_tokens_of(spec, sequence_tokens)
        whole = encoder_decoder_flops(spec, sequence_tokens, sequence_tokens, causal=causal)
        return 3 * whole / (source + sequence_tokens)
    if isinstance(spec, DiffusionSpec):
        return 3 * denoise_flops(spec) / spec.tokens
    tokens = spec.window_tokens if isinstance(spec, AudioSpec) else spec.tokens
    return 3 * (audio_flops(spec) if isinstance(spec, AudioSpec) else image_flops(spec)) / tokens


def prefill_flops(spec: Spec, prompt_tokens: int, cached_tokens: int = 0, *, head_rows: int = 1) -> float:
    """Operations of a forward pass over `prompt_tokens` tokens of one sequence, `cached_tokens` of it being cached.

    The head is computed on `head_rows` rows. For an encoder–decoder: the encoder over the prompt (Whisper: its window)
    and the keys and values of cross-attention.
    """
    _count("prompt_tokens", prompt_tokens)
    _count("cached_tokens", cached_tokens, 0)
    _count("head_rows", head_rows, 0)
    if isinstance(spec, EncoderDecoderSpec):
        return _encoder_flops(spec, prompt_tokens)
    stack = text_stack(spec, "prefill_flops")
    if stack.kind == "encoder":
        return _stack_flops(stack, prompt_tokens, 0, 0, None)
    return _stack_flops(stack, prompt_tokens, cached_tokens, head_rows, None)


def decode_flops(spec: Spec, context_tokens: int, source_tokens: int | None = None) -> float:
    """Operations of one new token of one sequence, which sees `context_tokens` earlier ones and itself.

    source_tokens: of an encoder–decoder, what cross-attention reads; None: Whisper's window, or as many as the context.
    """
    _count("context_tokens", context_tokens, 0)
    if isinstance(spec, EncoderDecoderSpec):
        source = source_tokens_of(spec, context_tokens if source_tokens is None else source_tokens)
        return _stack_flops(spec.decoder, 1, context_tokens, 1, None) + _cross_flops(spec.decoder, 1, source)
    stack = text_stack(spec, "decode_flops")
    if stack.kind != "decoder":
        raise UsageError("an encoder generates no tokens; use prefill_flops")
    return _stack_flops(stack, 1, context_tokens, 1, None)


def encoder_decoder_flops(
    spec: EncoderDecoderSpec, source_tokens: int, target_tokens: int, *, causal: bool | None = None
) -> float:
    """Operations of one forward pass over a source and a target, with the head on every token of the target."""
    _count("source_tokens", source_tokens)
    _count("target_tokens", target_tokens)
    source = source_tokens_of(spec, source_tokens)
    target = _stack_flops(spec.decoder, target_tokens, 0, target_tokens, causal)
    return _encoder_flops(spec, source_tokens) + target + _cross_flops(spec.decoder, target_tokens, source)


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


def image_tokens(spec: VisionSpec | MultimodalSpec) -> int:
    """Tokens of one image: of the tower, or, in a multimodal model, of its language model."""
    return spec.image_tokens if isinstance(spec, MultimodalSpec) else spec.tokens


def audio_flops(spec: AudioSpec | EncoderDecoderSpec) -> float:
    """Operations of the tower over one window of sound."""
    audio = _audio(spec)
    amounts: dict[Per, float] = {"token": audio.window_tokens, "input": audio.frames, "sequence": 1}
    return _products(audio_weights(audio), amounts) + attention_flops(audio.tower, audio.window_tokens)


def denoise_flops(spec: DiffusionSpec) -> float:
    """Operations of one image through the transformer once: a forward pass at one timestep."""
    source = 0 if spec.text is None else spec.text.tokens
    amounts: dict[Per, float] = {"token": spec.tokens, "input": spec.tokens, "source": source, "sequence": 1}
    joint_tokens = spec.tokens + source
    products = _products(diffusion_weights(spec), amounts)
    return products + 4 * spec.hidden_size * spec.layers * joint_tokens * joint_tokens


def sampling_flops(spec: DiffusionSpec, steps: int, images: int = 1, *, guidance: bool = True) -> float:
    """Operations of `images` images in `steps` denoising steps. With classifier-free guidance each step is two passes.

    The autoencoder and the text encoders are not counted.
    """
    _count("steps", steps)
    _count("images", images)
    return denoise_flops(spec) * steps * images * (2 if guidance else 1)


def source_tokens_of(spec: EncoderDecoderSpec, source_tokens: int) -> int:
    """Tokens that the decoder attends to: an audio encoder's window, or the text's own."""
    return spec.encoder.window_tokens if isinstance(spec.encoder, AudioSpec) else source_tokens


_WITHOUT_TEXT: dict[type[Spec], tuple[str, str]] = {
    VisionSpec: ("a vision tower", "image_flops"),
    AudioSpec: ("an audio tower", "audio_flops"),
    DiffusionSpec: ("a diffusion transformer", "sampling_flops"),
    EncoderDecoderSpec: ("an encoder–decoder", "its `encoder` and `decoder`"),
}


def text_stack(spec: Spec, caller: str) -> TransformerSpec:
    """The stack that reads text tokens. UsageError for a model without one."""
    if isinstance(spec, TransformerSpec):
        return spec
    if isinstance(spec, MultimodalSpec):
        return spec.language
    model_type, alternative = _WITHOUT_TEXT[type(spec)]
    raise UsageError(f"{caller} is for one stack that reads text, not for {model_type}; use {alternative}")


def _audio(spec: AudioSpec | EncoderDecoderSpec) -> AudioSpec:
    encoder = spec if isinstance(spec, AudioSpec) else spec.encoder
    if not isinstance(encoder, AudioSpec):
        raise UsageError("this encoder–decoder reads text, not sound")
    return encoder


def _encoder_flops(spec: EncoderDecoderSpec, source_tokens: int) -> float:
    source = source_tokens_of(spec, source_tokens)
    cross = _per(spec.decoder)["source"] * 2 * source
    if isinstance(spec.encoder, AudioSpec):
        return audio_flops(spec.encoder) + cross
    return _stack_flops(spec.encoder, source, 0, 0, None) + cross


def _cross_flops(decoder: TransformerSpec, target_tokens: int, source_tokens: int) -> float:
    return decoder.layers * pair_flops(decoder, 0) * target_tokens * source_tokens


def _stack_flops(spec: TransformerSpec, new: int, cached: int, head_rows: int, causal: bool | None) -> float:
    """One sequence through a stack, without what belongs to a source."""
    passed_weights = _per(spec)
    products = 2 * (passed_weights["token"] * new + passed_weights["row"] * head_rows + passed_weights["sequence"])
    return products + attention_flops(spec, new, cached, causal)


@lru_cache(maxsize=256)
def _per(spec: TransformerSpec) -> dict[Per, int]:
    """A stack's weights in products, by what passes through them."""
    counts: dict[Per, int] = dict.fromkeys(("token", "row", "source", "input", "sequence"), 0)
    for weight in stack_weights(spec):
        counts[weight.per] += weight.passed
    return counts


def _products(weights: tuple[Weight, ...], amounts: dict[Per, float]) -> float:
    return 2 * sum(weight.passed * amounts[weight.per] for weight in weights)


def _count(name: str, value: int, smallest: int = 1) -> None:
    if value < smallest:
        raise UsageError(f"{name} is {value}: it must be at least {smallest}")
