"""Architectures as plain data; free of torch."""

from bedplate.models.specs.encoder_decoder import EncoderDecoderSpec
from bedplate.models.specs.media import AudioSpec, DiffusionSpec, MultimodalSpec, Projector, TextCondition, VisionSpec
from bedplate.models.specs.transformer import TransformerSpec

TextSpec = TransformerSpec | EncoderDecoderSpec
"""Specs of models that read and write tokens."""
Spec = TransformerSpec | EncoderDecoderSpec | VisionSpec | AudioSpec | DiffusionSpec | MultimodalSpec

__all__ = [
    "AudioSpec",
    "DiffusionSpec",
    "EncoderDecoderSpec",
    "MultimodalSpec",
    "Projector",
    "Spec",
    "TextCondition",
    "TextSpec",
    "TransformerSpec",
    "VisionSpec",
]
