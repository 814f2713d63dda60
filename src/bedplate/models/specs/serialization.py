"""A spec as text, and back: for files that have to say of what shape of model they speak."""

from __future__ import annotations

import json
from dataclasses import asdict

import pydantic

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.specs.encoder_decoder import EncoderDecoderSpec
from bedplate.models.specs.transformer import TransformerSpec

_ADAPTER: pydantic.TypeAdapter[TransformerSpec | EncoderDecoderSpec] = pydantic.TypeAdapter(
    TransformerSpec | EncoderDecoderSpec, config=None
)


def spec_text(spec: TransformerSpec | EncoderDecoderSpec) -> str:
    """JSON (with Infinity as a number), the same for the same spec."""
    return json.dumps(asdict(spec), sort_keys=True, separators=(",", ":"))


def spec_of(text: str) -> TransformerSpec | EncoderDecoderSpec:
    """The inverse. UnsupportedModelError for anything else."""
    try:
        return _ADAPTER.validate_python(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise UnsupportedModelError("the text does not describe a model") from error
