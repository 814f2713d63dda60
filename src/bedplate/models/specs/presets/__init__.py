"""Published models by name."""

from bedplate.models.specs.presets.dense import DENSE
from bedplate.models.specs.presets.encoders import ENCODERS
from bedplate.models.specs.presets.experts import EXPERTS
from bedplate.models.specs.presets.images import IMAGES
from bedplate.models.specs.presets.mixed import MIXED
from bedplate.models.specs.presets.preset import Preset

PRESETS: dict[str, Preset] = DENSE | EXPERTS | MIXED | ENCODERS | IMAGES

__all__ = ["PRESETS", "Preset"]
