"""What moves the parameters: AdamW and Muon, with masters, clipping and averages around them."""

from bedplate.training.optimizers.average import averaged
from bedplate.training.optimizers.kinds import ParameterRole, kinds_of
from bedplate.training.optimizers.optimization import NamedParameters, Optimization

__all__ = ["ParameterRole", "NamedParameters", "Optimization", "averaged", "kinds_of"]
