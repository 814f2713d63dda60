"""Architectures as plain data; free of torch."""

from bedplate.models.specs.audio import AudioSpec
from bedplate.models.specs.diffusion import DiffusionSpec, TextCondition
from bedplate.models.specs.encoder_decoder import EncoderDecoderSpec
from bedplate.models.specs.multimodal import MultimodalSpec, Projector
from bedplate.models.specs.transformer import TransformerSpec
from bedplate.models.specs.vision import VisionSpec

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
