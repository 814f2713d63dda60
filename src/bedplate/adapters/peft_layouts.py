"""LoRA where PEFT's layout has other modules than ours: experts, and projections that stand in one matrix.

Low-rank weights of experts are stored on a module's parameters (`target_parameters`), all experts in one A
[experts · r, in] and one B [out, r · experts].

Several parameters of one module are wrapped in each other in their order, so that the last one's tensors stand at the
module and those of the one before it a `base_layer` further in.

Projections that stand apart in our models may be one matrix in theirs (GPT-2's c_attn, Phi-3's qkv_proj). Together,
several adapters are one: their A below each other, their B on the diagonal of a matrix of blocks, whose rows go where
the projections' own rows go. Apart, an adapter on the whole is one on each part, with the same A and that part's rows
of B; columns of B that are zero for a part, and the rows of A that go with them, are none of that part's. Neither
changes what is computed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bedplate.adapters.linear_adapter import MAGNITUDE
from bedplate.adapters.lora import LoraConfig, are_experts
from bedplate.core.errors import CheckpointError, SkinError, UnsupportedModelError
from bedplate.models.build import build
from bedplate.models.families.weights import BoundRule, Rule, WeightMap
from bedplate.models.specs import TextSpec

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


# --- projections that stand in one matrix


DEEPEST = 1000
"""Layers: an adapter's file, which may be a stranger's, says of which model it is, and that model is laid out."""
Adapter = tuple[LoraConfig, dict[str, Tensor]]


def joined(config: LoraConfig, tensors: Mapping[str, Tensor], weights: WeightMap, spec: TextSpec | None) -> Adapter:
    """The adapter with each such group under the name of their module, in place of the parts' paths. SkinError for DoRA
    on a part of a group, whose other rows' lengths it does not know."""
    paths = {name.rsplit(".", 1)[0] for name in tensors}
    whole = [path for path in paths if is_part(weights, path)]
    if not whole:
        return config, dict(tensors)
    if spec is None:
        raise SkinError(f"{min(whole)} stands in a matrix with others; say of which model the adapter is (its spec)")
    joined_tensors, ranks, alphas = dict(tensors), dict(config.ranks), dict(config.alphas)
    for step in _groups(weights, spec):
        parts = [name.removesuffix(".weight") for name in step.ours]
        adapted = [path for path in parts if path in paths]
        if not adapted:
            continue
        place = step.theirs[0].removesuffix(".weight")
        part_tensors = [{side: joined_tensors.pop(f"{path}.{side}") for side in _sides(config)} for path in adapted]
        scale, total = config.scaling(adapted[0]), sum(len(part["lora_A"]) for part in part_tensors)
        blocks = [torch.zeros(row_counts(spec)[name], total) for name in step.ours]
        begin = 0
        for path, part in zip(adapted, part_tensors, strict=True):
            block = part["lora_B"] if config.scaling(path) == scale else part["lora_B"] * (config.scaling(path) / scale)
            blocks[parts.index(path)][:, begin : begin + block.shape[1]] = block
            begin += block.shape[1]
        joined_tensors[f"{place}.lora_A"] = torch.cat([part["lora_A"] for part in part_tensors])
        joined_tensors[f"{place}.lora_B"] = _forward(step, blocks, spec)
        if config.dora:
            if len(adapted) < len(parts):
                raise SkinError(f"DoRA on {', '.join(adapted)} alone cannot leave {place}, which has others")
            lengths = [part[MAGNITUDE][:, None] for part in part_tensors]
            joined_tensors[f"{place}.{MAGNITUDE}"] = _forward(step, lengths, spec)[:, 0]
        alpha = config.alphas.get(adapted[0], config.alpha)
        alphas[place], ranks[place] = alpha * _alpha_ratio(config, total, config.rank(adapted[0])), total
        for path in adapted:
            ranks.pop(path, None)
            alphas.pop(path, None)
    return config.model_copy(update={"ranks": ranks, "alphas": alphas}), joined_tensors


def is_part(weights: WeightMap, path: str) -> bool:
    """Whether a module of ours stands in one matrix of theirs together with others."""
    name = f"{path}.weight"
    return weights.to_external(name) is None and weights.holder(name) is not None


def split_fused(
    config: LoraConfig, tensors: Mapping[str, Tensor], weights: WeightMap, spec: TextSpec | None, location: str
) -> Adapter:
    """The inverse: paths of ours in place of the names of their modules, which `config.targets` holds as well."""
    places = {place for name in tensors if weights.is_group(f"{(place := name.rsplit('.', 1)[0])}.weight")}
    if not places:
        return config, dict(tensors)
    if spec is None:
        raise SkinError(f"{location}: {min(places)} is several projections in one; say of which model the adapter is")
    split_tensors, ranks, alphas = dict(tensors), dict(config.ranks), dict(config.alphas)
    targets = [path for path in config.targets if path not in places]
    for step in _groups(weights, spec):
        place = step.theirs[0].removesuffix(".weight")
        if place not in places:
            continue
        places.discard(place)
        fused_tensors = {side: split_tensors.pop(f"{place}.{side}") for side in _sides(config)}
        rank, alpha = ranks.pop(place, config.r), alphas.pop(place, config.alpha)
        blocks = _inverse(step, fused_tensors["lora_B"], spec, location)
        lengths: list[Any] = [None] * len(blocks)
        if config.dora:
            lengths = _inverse(step, fused_tensors[MAGNITUDE][:, None], spec, location)
        used = [(block != 0).any(0) for block in blocks]
        if not any(bool(mask.any()) for mask in used):  # an adapter at its start
            used = [torch.ones_like(mask) for mask in used]
        for name, block, length, columns in zip(step.ours, blocks, lengths, used, strict=True):
            if not bool(columns.any()) and length is None:
                continue
            used_columns = columns if bool(columns.any()) else torch.ones_like(columns)
            path, own_rank = name.removesuffix(".weight"), int(used_columns.sum())
            split_tensors[f"{path}.lora_A"] = fused_tensors["lora_A"][used_columns].contiguous()
            split_tensors[f"{path}.lora_B"] = block[:, used_columns].contiguous()
            if length is not None:
                split_tensors[f"{path}.{MAGNITUDE}"] = length[:, 0].contiguous()
            own_alpha = alpha * _alpha_ratio(config, own_rank, rank)
            targets.append(path)
            if own_rank != config.r:
                ranks[path] = own_rank
            if own_alpha != config.alpha:
                alphas[path] = own_alpha
    if places:
        raise SkinError(f"{location}: {min(places)} is not a linear inside this family's blocks")
    return config.model_copy(update={"ranks": ranks, "alphas": alphas, "targets": tuple(targets)}), split_tensors


def _alpha_ratio(config: LoraConfig, rank: int, before: int) -> float:
    """What alpha is multiplied by with the rank, so that the scaling stays."""
    return math.sqrt(rank / before) if config.rslora else rank / before


def _sides(config: LoraConfig) -> tuple[str, ...]:
    return ("lora_A", "lora_B", MAGNITUDE) if config.dora else ("lora_A", "lora_B")


def _groups(weights: WeightMap, spec: TextSpec) -> Iterator[BoundRule]:
    """Matrices of theirs that hold several of ours, each parameter's first rule."""
    grouped, counts = set[str](), row_counts(spec)
    for step in weights.steps(spec):
        together = len(step.ours) > 1 and len(step.theirs) == 1 and step.theirs[0].endswith(".weight")
        if together and grouped.isdisjoint(step.ours) and counts.keys() >= set(step.ours):
            grouped.update(step.ours)
            yield step


@lru_cache(4)
def row_counts(spec: TextSpec) -> Mapping[str, int]:
    """The parameters of such a model, each with its rows. SkinError for more layers than any model has."""
    layers = spec.deepest + spec.prediction_modules
    if layers > DEEPEST:
        raise SkinError(f"an adapter for a model of {layers} layers; at most {DEEPEST} are read")
    try:
        return {name: len(p) for name, p in build(spec, device="meta").named_parameters() if p.dim()}
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes that no tensor can have
        raise SkinError(f"an adapter for a model that cannot be built ({str(error).splitlines()[0]})") from error


def _forward(step: BoundRule, parts: list[Tensor], spec: TextSpec) -> Tensor:
    whole: Any = step.rule.forward(parts, spec)[0]
    return (whole.T if step.rule.turned else whole).contiguous()


def _inverse(step: BoundRule, whole: Tensor, spec: TextSpec, location: str) -> list[Tensor]:
    try:
        return list(step.rule.inverse([whole.T if step.rule.turned else whole], spec))
    except (RuntimeError, ValueError) as error:
        sizes = list(whole.shape)
        raise SkinError(f"{location}: {step.theirs[0]} cannot be cut out of a tensor {sizes} ({error})") from error
    except (CheckpointError, UnsupportedModelError) as error:
        raise SkinError(f"{location}: {error}") from error
