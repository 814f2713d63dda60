"""The modules of a model that adapters attach to, what those are called elsewhere, and the tensors that fit them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bedplate.adapters.linear_adapter import Adaptable, AdapterConfig
from bedplate.core.errors import SkinError
from bedplate.models.families.weights import WeightMap
from bedplate.models.layers.experts import ExpertLinear
from bedplate.models.layers.linear import Linear


def adaptable(model: nn.Module) -> dict[str, Adaptable]:
    """`block_linears`, and the experts inside the blocks, in the model's order."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Linear | ExpertLinear) and "layers" in path.split(".")[:-1]
    }


def block_linears(model: nn.Module) -> dict[str, Linear]:
    """Every `Linear` inside a model's blocks (below a `layers` list), by module path, in the model's order."""
    return {path: module for path, module in adaptable(model).items() if isinstance(module, Linear)}


def hf_module_name(weights: WeightMap, path: str) -> str:
    """A module path of ours → its Hugging Face name, which several share that stand in one matrix. SkinError when the
    family has no such module."""
    name = weights.holder(f"{path}.weight")
    if name is None:
        raise SkinError(f"the family has no Hugging Face name for {path}; an adapter on it cannot be exported")
    return name.removesuffix(".weight")


def initial_tensors(config: AdapterConfig, modules: Mapping[str, Adaptable], seed: int) -> dict[str, Tensor]:
    """A fresh adapter, float32 on the CPU, with which the model equals the base."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{path}.{end}": tensor
        for path, module in modules.items()
        for end, tensor in config.initial(path, module, generator).items()
    }


def check_tensors(config: AdapterConfig, modules: Mapping[str, Adaptable], tensors: Mapping[str, Tensor]) -> None:
    """Raise SkinError unless `tensors` holds exactly what the configuration says for every module, finite."""
    expected = {f"{p}.{end}": shape for p, module in modules.items() for end, shape in config.shapes(p, module).items()}
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        mismatch = f"{len(missing)} missing (first: {missing[0]})" if missing else f"{len(unknown)} unmatched"
        raise SkinError(
            f"the adapter's tensors do not fit its targets on this model: {mismatch}"
            + (f" (unmatched: {', '.join(unknown[:3])})" if unknown else "")
            + ". Was it made for another base or with other targets?"
        )
    for name, shape in expected.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise SkinError(f"adapter tensor {name} has shape {list(tensor.shape)}, this model needs {list(shape)}")
        if not tensor.is_floating_point():
            raise SkinError(f"adapter tensor {name} has dtype {tensor.dtype}, a floating-point type is needed")
        if not bool(torch.isfinite(tensor).all()):
            raise SkinError(f"adapter tensor {name} holds NaN or infinity; the adapter is refused")
