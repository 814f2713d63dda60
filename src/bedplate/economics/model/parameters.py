"""How many parameters a spec has, exactly, and how many of them one token passes through."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from bedplate.economics.model.media import audio_weights, diffusion_weights, projector_weights, vision_weights
from bedplate.economics.model.weight_list import Weight, stack_weights
from bedplate.models.specs import (
    AudioSpec,
    DiffusionSpec,
    EncoderDecoderSpec,
    MultimodalSpec,
    Spec,
    TransformerSpec,
    VisionSpec,
)


@dataclass(frozen=True)
class Parameters:
    """Counts of values.

    total: all of them, tied ones once. active: without the experts that a token does not pass. embedding: token,
    position and type tables; a tied table is counted here. products: those in matrix products that one token passes,
    the output head's among them whether tied or not. head: the head's share of `products`.

    An encoder–decoder's products are those of both sides: a token of the source passes one, a token of the target the
    other. A multimodal model's are its language model's; its towers are priced by the image.
    """

    total: int
    active: int
    embedding: int
    products: int
    head: int


def weights(spec: Spec) -> tuple[Weight, ...]:
    """Every weight of the model, towers included."""
    if isinstance(spec, TransformerSpec):
        return stack_weights(spec)
    if isinstance(spec, EncoderDecoderSpec):
        return _encoder_decoder(spec)
    if isinstance(spec, AudioSpec):
        return audio_weights(spec)
    if isinstance(spec, VisionSpec):
        return vision_weights(spec)
    if isinstance(spec, DiffusionSpec):
        return diffusion_weights(spec)
    return (*vision_weights(spec.vision), *projector_weights(spec), *stack_weights(spec.language))


def _encoder_decoder(spec: EncoderDecoderSpec) -> tuple[Weight, ...]:
    source = audio_weights(spec.encoder) if isinstance(spec.encoder, AudioSpec) else stack_weights(spec.encoder)
    if spec.shared_embedding:
        source = tuple(weight for weight in source if weight.name != "embedding")
    return (*source, *stack_weights(spec.decoder))


@lru_cache(maxsize=256)
def parameters(spec: Spec) -> Parameters:
    """The counts of a spec."""
    all_weights = weights(spec)
    passed = stack_weights(spec.language) if isinstance(spec, MultimodalSpec) else all_weights
    heads = ("head", "prediction.head")
    return Parameters(
        total=total(all_weights),
        active=total(all_weights)
        - sum(weight.size * (weight.copies - weight.used) for weight in all_weights if weight.copies > weight.used),
        embedding=sum(weight.stored for weight in all_weights if weight.role == "table"),
        products=sum(weight.passed for weight in passed),
        head=sum(weight.passed for weight in passed if weight.name in heads),
    )


def total(weight_rows: Iterable[Weight]) -> int:
    """Values that are stored."""
    return sum(weight.stored for weight in weight_rows)
