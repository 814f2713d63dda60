"""Low-rank weights of experts as PEFT stores them: on a module's parameters (`target_parameters`), all experts in one A
[experts · r, in] and one B [out, r · experts].

Several parameters of one module are wrapped in each other in their order, so that the last one's tensors stand at the
module and those of the one before it a `base_layer` further in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bedplate.adapters.lora import are_experts
from bedplate.core.errors import SkinError
from bedplate.models.families.weights import Rule, WeightMap

_ORDER = ("gate_up_proj", "down_proj")
"""How transformers' modules hold them."""
_INNER = ".base_layer"


def expert_keys(hf: Mapping[str, str]) -> dict[str, str]:
    """Where the tensors of each adapted path of ours stand, given the name of its parameter."""
    return {path: _place(name, hf.values()) for path, name in hf.items()}


def _place(name: str, names: Iterable[str]) -> str:
    module, parameter = name.rsplit(".", 1)
    siblings = sorted((full.rsplit(".", 1)[1] for full in names if full.rsplit(".", 1)[0] == module), key=_ORDER.index)
    return module + _INNER * (len(siblings) - 1 - siblings.index(parameter))


def to_peft(weights: WeightMap, path: str, a_ErI: Tensor, b_EOr: Tensor) -> tuple[Tensor, Tensor]:
    """A and B as PEFT has them, B's features in their order."""
    [b] = _rule(weights, path).forward([b_EOr], None)  # type: ignore[arg-type]  # these do not read the spec
    b_EOr = b.transpose(1, 2) if _exchanges(_rule(weights, path), a_ErI) else b
    return a_ErI.flatten(0, 1).contiguous(), b_EOr.permute(1, 2, 0).flatten(1).contiguous()


def from_peft(weights: WeightMap, path: str, a: Tensor, b: Tensor, rank: int, location: Path) -> tuple[Tensor, Tensor]:
    """The inverse. SkinError for shapes that are not of this rank."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] % rank or a.shape[0] != b.shape[1]:
        raise SkinError(
            f"{location}: {path} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, but the configuration says "
            f"rank {rank} for each expert ([experts · {rank}, in] and [out, {rank} · experts])"
        )
    a_ErI, b_EOr = a.unflatten(0, (-1, rank)), b.unflatten(1, (rank, -1)).permute(2, 0, 1)
    rule = _rule(weights, path)
    theirs = b_EOr.transpose(1, 2) if _exchanges(rule, a) else b_EOr
    [b_EOr] = rule.inverse([theirs.contiguous()], None)  # type: ignore[arg-type]
    return a_ErI.contiguous(), b_EOr.contiguous()


def _rule(weights: WeightMap, path: str) -> Rule:
    """That by which all experts stand in one tensor of theirs."""
    pattern = re.sub(r"\.\d+\.", ".{i}.", path, count=1) + ".weight"
    matching = (rule for rule in weights.rules if rule.ours == (pattern,) and len(rule.theirs) == 1)
    rule = next((rule for rule in matching if "{e}" not in rule.theirs[0]), None)
    if rule is None:
        raise SkinError(f"the family has no tensor of all experts for {path}; an adapter on them cannot be exported")
    return rule


def _exchanges(rule: Rule, template: Tensor) -> bool:
    """Whether theirs has inputs before outputs."""
    [probe] = rule.forward([template.new_zeros(1, 4, 3)], None)  # type: ignore[arg-type]
    return tuple(probe.shape) == (1, 3, 4)


def is_taken_for_experts(weights: WeightMap, path: str, name: str) -> bool:
    """Whether peft takes a linear's name, as `target_modules` has it, for that of experts: its end is that of a matrix
    which files have of each expert, and peft looks for those in the parameter that holds them all. A linear so named
    (of an expert for all tokens, or a layer without experts) is reached as `target_parameters` alone, by its weight."""
    end = name.rsplit(".", 1)[-1]
    expert_names = (external.split(".") for rule in weights.rules for external in rule.theirs if "{e}" in external)
    return not are_experts(path) and any(parts[-2] == end for parts in expert_names if len(parts) > 1)


def linear_parameters(stored: Iterable[str], targets: Any, location: Path) -> dict[str, str]:
    """Linears among the modules of the tensors' keys that `target_parameters` names by their weights: what stands
    there → the parameter's name."""
    ends = [target.removesuffix(".weight") for target in _names(targets, location) if target.endswith(".weight")]
    return {place: f"{place}.weight" for place in stored if any(_is_end(end, place) for end in ends)}


def parameter_names(stored: Iterable[str], targets: Any, location: Path) -> dict[str, str]:
    """Experts among the modules of the tensors' keys that `target_parameters` names: what stands there → the
    parameter's name. SkinError for targets that no tensor has, or tensors that no target names. A target without a
    module's name is that of any experts, as peft writes it who was given the names of single experts' matrices."""
    stored = set(stored)
    named = [target.rpartition(".")[::2] for target in _names(targets, location) if not target.endswith(".weight")]
    if not named:
        return {}
    names_by_place: dict[str, str] = {}
    modules = {re.sub(rf"({re.escape(_INNER)})+$", "", place) for place in stored}
    for module in sorted(modules):
        parameters = {name for end, name in named if _is_end(end or "experts", module)}
        unknown = sorted(parameters - set(_ORDER))
        if unknown:
            raise SkinError(f"{location}: target_parameters names {unknown[0]!r} of {module}, not one of {_ORDER}")
        names = {f"{module}.{parameter}": f"{module}.{parameter}" for parameter in parameters}
        names_by_place |= {place: name for name, place in expert_keys(names).items()}
    lost = sorted(names_by_place.keys() - stored)
    if lost or not names_by_place:
        raise SkinError(f"{location}: target_parameters names {lost or targets}, but the adapter has no tensors for it")
    return names_by_place


def _names(targets: Any, location: Path) -> list[str]:
    if not targets:
        return []
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise SkinError(f"{location}: target_parameters must be a list of names, got {targets!r}")
    return targets


def _is_end(name: str, module: str) -> bool:
    return module == name or module.endswith("." + name)
