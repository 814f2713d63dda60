"""A spec as text, and back: for files that have to say of what shape of model they speak. The text has flat fields."""

from __future__ import annotations

import json

import pydantic

from bedplate.core.errors import BedplateError, UnsupportedModelError
from bedplate.models.specs.encoder_decoder import EncoderDecoderSpec
from bedplate.models.specs.flat import grouped_stacks, plain_fields
from bedplate.models.specs.transformer import TransformerSpec

_ADAPTER: pydantic.TypeAdapter[TransformerSpec | EncoderDecoderSpec] = pydantic.TypeAdapter(
    TransformerSpec | EncoderDecoderSpec, config=None
)


def spec_text(spec: TransformerSpec | EncoderDecoderSpec) -> str:
    """JSON (with Infinity as a number), the same for the same spec."""
    return json.dumps(plain_fields(spec), sort_keys=True, separators=(",", ":"))


def spec_of(text: str) -> TransformerSpec | EncoderDecoderSpec:
    """The inverse. UnsupportedModelError for anything else."""
    try:
        return _ADAPTER.validate_python(grouped_stacks(TransformerSpec, json.loads(text)))
    except (ValueError, TypeError, AttributeError, RecursionError, BedplateError) as error:
        raise UnsupportedModelError("the text does not describe a model") from error
