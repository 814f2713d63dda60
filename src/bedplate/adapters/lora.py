"""Low-rank adaptation as data: which linears, at which rank and scale, and how A and B start.

LoRA: https://arxiv.org/abs/2106.09685; rank-stabilised scaling (α/√r): https://arxiv.org/abs/2312.03732; with lengths
of their own (DoRA): see `adapters.linear_adapter`.
Conventions (initialisation, scaling, where dropout sits) are peft's, so that adapters move both ways unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from bedplate.core.config import Grown
from bedplate.core.errors import SkinError, UsageError
from bedplate.core.suggestions import did_you_mean, nearest

if TYPE_CHECKING:  # a skin says its configuration, and may have no need of torch
    from torch import Generator, Tensor

    from bedplate.adapters.linear_adapter import Adaptable, AdapterConfig, LowRank, Magnitude
    from bedplate.adapters.site import ExpertLowRank
    from bedplate.models.layers.experts import ExpertLinear
    from bedplate.models.layers.linear import Linear

ALL_LINEAR = "all-linear"


class LoraConfig(Grown):
    """One adapter's shape.

        LoraConfig(r=8, alpha=16, targets=("q", "v"))            # queries and values of every layer
        LoraConfig(dora=True, ranks={"layers.0.attention.q": 4})  # every linear, DoRA, one of a smaller rank

    `targets` is "all-linear" (every linear inside the model's blocks, so not `lm_head`) or names: a module path of
    ours (`layers.3.attention.q`), the end of one (`q`, `attention.q`), or the end of the Hugging Face name (`q_proj`)
    where the bank knows the family's names. `ranks` and `alphas` override `r` and `alpha` by module path. `dora`: every
    adapted linear has magnitudes as well.
    """

    LATE = ("dora",)

    r: Annotated[int, Field(ge=1, le=4096)] = 16
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rslora: bool = False
    targets: Literal["all-linear"] | tuple[str, ...] = ALL_LINEAR
    ranks: dict[str, Annotated[int, Field(ge=1, le=4096)]] = Field(default_factory=dict)
    alphas: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    dora: bool = False

    def rank(self, path: str) -> int:
        return self.ranks.get(path, self.r)

    def scaling(self, path: str) -> float:
        """What B A is multiplied by at one module path: α/r, or α/√r with `rslora`."""
        r, alpha = self.rank(path), self.alphas.get(path, self.alpha)
        return alpha / math.sqrt(r) if self.rslora else alpha / r

    def paths(self, modules: Iterable[str], hf_name: Callable[[str], str] | None) -> list[str]:
        """The modules that `targets` name. UsageError for ranks or alphas of others."""
        matched = match_targets(self.targets, modules, hf_name)
        unknown = sorted((self.ranks.keys() | self.alphas.keys()) - set(matched))
        if unknown:
            raise UsageError(f"LoRA ranks or alphas are set for {unknown[0]!r}, which is not among its targets")
        return matched

    def shapes(self, path: str, module: Adaptable) -> dict[str, tuple[int, ...]]:
        """A [r, in], B [out, r], and with DoRA magnitudes [out]; of experts A [experts, r, in], B [experts, out, r]."""
        from bedplate.adapters.linear_adapter import MAGNITUDE
        from bedplate.models.layers.experts import ExpertLinear

        r, out = self.rank(path), module.out_features
        if isinstance(module, ExpertLinear):
            self._check_experts(path)
            return {"lora_A": (module.experts, r, module.in_features), "lora_B": (module.experts, out, r)}
        shapes: dict[str, tuple[int, ...]] = {"lora_A": (r, module.in_features), "lora_B": (out, r)}
        return shapes | {MAGNITUDE: (out,)} if self.dora else shapes

    def _check_experts(self, path: str) -> None:
        if self.dora or self.dropout:
            feature = "magnitudes (dora)" if self.dora else f"dropout ({self.dropout})"
            raise UsageError(f"LoRA with {feature} is not supported on experts, as {path} is; leave it out")

    def initial(self, path: str, module: Adaptable, generator: Generator) -> dict[str, Tensor]:
        """A Kaiming-uniform with a=√5, so U(±1/√in); B zeros; the magnitudes those of the weights."""
        import torch

        from bedplate.adapters.linear_adapter import MAGNITUDE, row_norms

        bound, shapes = 1.0 / math.sqrt(module.in_features), self.shapes(path, module)
        a = torch.empty(shapes["lora_A"]).uniform_(-bound, bound, generator=generator)
        tensors = {"lora_A": a, "lora_B": torch.zeros(shapes["lora_B"])}
        if self.dora:
            norms = row_norms(module.weight.detach().cpu(), a, tensors["lora_B"], self.scaling(path))
            tensors[MAGNITUDE] = norms.float()
        return tensors

    def attach(self, path: str, module: Linear, tensors: Mapping[str, Tensor], trainable: bool) -> LowRank:
        """Frozen, B is held by columns, which is how the native decoder reads it; magnitudes are always float32."""
        import torch

        from bedplate.adapters.linear_adapter import MAGNITUDE, LowRank, Magnitude, stored

        a = stored(tensors["lora_A"], module, trainable)
        b = stored(tensors["lora_B"], module, trainable, by_columns=not trainable)
        magnitude: Magnitude | None = None
        if self.dora:
            lengths = tensors[MAGNITUDE].to(module.weight.device, torch.float32, copy=True)
            magnitude = Magnitude(torch.nn.Parameter(lengths, requires_grad=trainable), module)
        return LowRank(a, b, self.scaling(path), self.dropout, magnitude)


def attached_experts(
    config: AdapterConfig, path: str, module: ExpertLinear, tensors: Mapping[str, Tensor], trainable: bool
) -> ExpertLowRank:
    """A and B at experts, as `LoraConfig.attach` makes those of a linear. UsageError for other kinds of adapters."""
    from bedplate.adapters.linear_adapter import stored
    from bedplate.adapters.site import ExpertLowRank

    if not isinstance(config, LoraConfig):
        raise UsageError(f"{path} is experts, which only LoRA adapts")
    a, b = (stored(tensors[name], module, trainable) for name in ("lora_A", "lora_B"))
    return ExpertLowRank(a, b, config.scaling(path))


def are_experts(path: str) -> bool:
    """Whether a module path is that of experts (`….experts.down`)."""
    return path.split(".")[-2:-1] == ["experts"]


def match_targets(
    targets: str | Iterable[str], paths: Iterable[str], hf_name: Callable[[str], str] | None = None
) -> list[str]:
    """The module paths that `targets` name, in the order of `paths`. `hf_name` gives a path's Hugging Face module name,
    when the family is known. Experts are named as such ("experts.down"): "all-linear" does not mean them, and the end
    alone does neither. Raises SkinError for a target that names nothing, with the names there are."""
    all_paths = list(paths)
    if targets == ALL_LINEAR:
        return [path for path in all_paths if not are_experts(path)]
    target_names = [targets] if isinstance(targets, str) else list(targets)
    names = {path: _forms(path, hf_name) for path in all_paths}
    chosen: set[str] = set()
    for target in target_names:
        matched = [
            path
            for path, forms in names.items()
            if any(n == target or n.endswith("." + target) for n in forms) and ("." in target or not are_experts(path))
        ]
        if not matched:
            leaves = sorted({name.rsplit(".", 1)[-1] for forms in names.values() for name in forms})
            hint = did_you_mean(nearest(target, leaves), f"use {ALL_LINEAR!r} or one of: {', '.join(leaves)}")
            raise SkinError(f"LoRA target {target!r} names no linear of this model; {hint}")
        chosen.update(matched)
    if not chosen:
        raise SkinError(f"LoRA targets are empty. Use {ALL_LINEAR!r} or name at least one linear")
    return [path for path in all_paths if path in chosen]


def _forms(path: str, hf_name: Callable[[str], str] | None) -> tuple[str, ...]:
    """A module's path, and its Hugging Face name, which experts that are stored in pieces have not."""
    if hf_name is None:
        return (path,)
    try:
        return path, hf_name(path)
    except SkinError:
        if are_experts(path):
            return (path,)
        raise
