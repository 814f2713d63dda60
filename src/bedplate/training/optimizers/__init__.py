"""Optimizers: AdamW and Muon, with float32 masters, gradient clipping and averaged weights."""

from bedplate.training.optimizers.optimization import NamedParameters, Optimization, ParameterRole, averaged, kinds_of

__all__ = ["NamedParameters", "Optimization", "ParameterRole", "averaged", "kinds_of"]
