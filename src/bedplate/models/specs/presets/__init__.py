"""Published models by name."""

from bedplate.models.specs.presets.decoders import DECODERS
from bedplate.models.specs.presets.encoders import ENCODERS
from bedplate.models.specs.presets.images import IMAGES
from bedplate.models.specs.presets.preset import Preset

PRESETS: dict[str, Preset] = DECODERS | ENCODERS | IMAGES

__all__ = ["PRESETS", "Preset"]
