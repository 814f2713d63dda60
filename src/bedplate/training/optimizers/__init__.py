"""What moves the parameters: AdamW and Muon, with masters, clipping and averages around them."""

from bedplate.training.optimizers.average import averaged
from bedplate.training.optimizers.kinds import Kind, kinds_of
from bedplate.training.optimizers.optimization import NamedParameters, Optimization

__all__ = ["Kind", "NamedParameters", "Optimization", "averaged", "kinds_of"]
