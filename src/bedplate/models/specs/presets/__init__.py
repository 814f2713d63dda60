"""Published models by name, each behind the address of what says so."""

from bedplate.models.specs import Spec
from bedplate.models.specs.presets.decoders import DECODERS
from bedplate.models.specs.presets.encoders import ENCODERS, IMAGES

PRESETS: dict[str, Spec] = DECODERS | ENCODERS | IMAGES
