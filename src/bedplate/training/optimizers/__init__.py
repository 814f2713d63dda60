"""What moves the parameters: AdamW and Muon, with masters, clipping and averages around them."""

from bedplate.training.optimizers.average import averaged
from bedplate.training.optimizers.optimization import NamedParameters, Optimization
from bedplate.training.optimizers.parameter_groups import ParameterRole, kinds_of

__all__ = ["NamedParameters", "Optimization", "ParameterRole", "averaged", "kinds_of"]
