"""A kind of adapter in one file: every output of a linear has a factor of its own (as in IA3, arXiv 2205.05638)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bedplate.adapters.linear_adapter import LinearAdapter, stored
from bedplate.adapters.lora import match_targets
from bedplate.models.layers.linear import Linear


@dataclass(frozen=True, eq=False)
class Scale(LinearAdapter):
    factors: nn.Parameter

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {"factors": self.factors}

    def update(self, x: Tensor, y: Tensor | None, module: Linear) -> Tensor:
        assert y is not None
        product = y if module.bias is None else y - module.bias
        return product * (self.factors - 1.0).to(y.dtype)

    def merged(self, weight_OI: Tensor) -> Tensor:
        return weight_OI * self.factors[:, None].float()


@dataclass(frozen=True)
class ScaleConfig:
    targets: tuple[str, ...] = ("k", "v", "down")

    def paths(self, modules: Iterable[str], hf_name: Callable[[str], str] | None) -> list[str]:
        return match_targets(self.targets, modules, hf_name)

    def shapes(self, path: str, module: Linear) -> dict[str, tuple[int, ...]]:
        return {"factors": (module.out_features,)}

    def initial(self, path: str, module: Linear, generator: torch.Generator) -> dict[str, Tensor]:
        return {"factors": torch.ones(module.out_features)}

    def attach(self, path: str, module: Linear, tensors: Mapping[str, Tensor], trainable: bool) -> Scale:
        return Scale(stored(tensors["factors"], module, trainable))
