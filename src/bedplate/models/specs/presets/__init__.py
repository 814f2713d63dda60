"""Published models by name."""

from bedplate.models.specs.presets.decoders import DECODERS, Preset
from bedplate.models.specs.presets.encoders import ENCODERS
from bedplate.models.specs.presets.images import IMAGES

PRESETS: dict[str, Preset] = DECODERS | ENCODERS | IMAGES

__all__ = ["PRESETS", "Preset"]
