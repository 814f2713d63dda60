"""Which parameter is what to an optimizer: read off the modules, so that no name of a model's part is known here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from torch import nn

from bedplate.models.layers.block import Block
from bedplate.models.layers.experts import ExpertLinear
from bedplate.models.layers.linear import Linear

ParameterRole = Literal["embedding", "head", "matrix", "other"]


def kinds_of(modules: Iterable[nn.Module]) -> Mapping[int, ParameterRole]:
    """By a parameter's id: tables; the weights of linears inside of blocks ("matrix", the experts' as well, one a
    matrix) and of those outside ("head"). What is not named is "other". A table that is the head too is a table.

    modules: all of a model, itself among them.
    """
    all_modules = list(modules)
    inside = {id(m) for block in all_modules if isinstance(block, Block) for m in block.modules()}
    roles: dict[int, ParameterRole] = {}
    for module in all_modules:
        if isinstance(module, Linear | ExpertLinear):
            roles[id(module.weight)] = "matrix" if id(module) in inside else "head"
    tables: dict[int, ParameterRole] = {id(m.weight): "embedding" for m in all_modules if isinstance(m, nn.Embedding)}
    return roles | tables
