"""What moves the parameters: AdamW and Muon, with masters, clipping and averages around them."""

from bedplate.training.optimizers.optimization import NamedParameters, Optimization, ParameterRole, averaged, kinds_of

__all__ = ["NamedParameters", "Optimization", "ParameterRole", "averaged", "kinds_of"]
