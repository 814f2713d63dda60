"""A checkpoint's config as a spec, and its tensors as a model's parameters and back, one rule of the family at a
time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.models.families import Family
from bedplate.models.families.fields import located
from bedplate.models.families.weights import BoundRule, unchanged
from bedplate.models.specs import TextSpec, TransformerSpec
from bedplate.models.specs.transformer import LongRopeScaling

_SHOWN = 8
"""Names that an error lists; of more it says how many."""


_MAX_TENSORS, _MAX_SPELLINGS = 100_000, 16
"""Names that rules have for a spec, at most: so many, and so many for each tensor. Of experts of which there are none a
damaged config asks for any number."""
Get = Callable[[str, torch.dtype], Tensor]
"""A tensor by name. Where it has to be made of what is stored, it may be made in this dtype."""


def spec_of_fields(family: Family, config: Mapping[str, Any], names: Sequence[str], location: str) -> TextSpec:
    """The family's spec of a config. A damaged one must not build a model that the named tensors cannot fill."""
    try:
        spec = family.by_names(family.to_spec(config), tuple(names))
    except UnsupportedModelError as error:
        raise located(error, location) from error
    except KeyError as error:
        raise CheckpointError(f"{location} has no {error}; it is not a whole model") from error
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RecursionError) as error:
        raise CheckpointError(f"{location}: a field has a value of the wrong kind ({error})") from error
    if spec.deepest > len(names):
        raise CheckpointError(f"{location} asks for {spec.deepest} layers, but there are {len(names)} tensors")
    _refuse_longrope(spec, location)
    return spec


def _refuse_longrope(spec: TextSpec, location: str) -> None:
    """UnsupportedModelError for a decoder whose context goes beyond what LongRoPE turns in one way: what a cache holds
    would be other keys than those of the whole text. (Phi's family ends its context there.)"""
    rope = spec.position.rope if isinstance(spec, TransformerSpec) and spec.kind == "decoder" else None
    scaling = None if rope is None else rope.scaling
    if not isinstance(scaling, LongRopeScaling) or scaling.is_uniform:
        return
    if spec.context_length > scaling.original_context:
        raise UnsupportedModelError(
            f"{location}: longrope turns the positions of a text of more than {scaling.original_context} tokens "
            "otherwise (short_factor and long_factor differ), which is supported for phi3 alone"
        )


class ConversionStep(NamedTuple):
    """A step, and what its tensors are called in the checkpoint."""

    step: BoundRule
    theirs: tuple[str, ...]


def readings(
    family: Family, spec: TextSpec, names: Sequence[str], targets: Mapping[str, Tensor], location: str
) -> list[ConversionStep]:
    """The steps that make the `targets` parameters of the checkpoint that holds `names`, in its order.

    CheckpointError, before anything is read, naming every tensor that is missing or that has no place.
    """
    weights = family.weights
    external_names = {weights.bare(name): name for name in names}
    candidate_steps: list[BoundRule] = []
    max_tensors, tensor_count = _MAX_TENSORS + _MAX_SPELLINGS * len(names), 0
    for step in weights.steps(spec):
        tensor_count += len(step.theirs)
        if tensor_count > max_tensors:
            raise CheckpointError(
                f"{location}: the config asks for more than {max_tensors:,} tensors, but the checkpoint holds "
                f"{len(names):,}; they do not belong together"
            )
        if targets.keys() >= set(step.ours):
            candidate_steps.append(step)
    # Of several ways to store the same parameters, that in which the checkpoint holds them, or else the first.
    steps = [
        next((step for step in spellings if external_names.keys() >= set(step.theirs)), spellings[0])
        for spellings in _by_parameters(candidate_steps).values()
    ]
    nameless = sorted(targets.keys() - {name for step in steps for name in step.ours})
    if nameless:
        raise CheckpointError(f"{location}: {_listed(nameless)} has no name in the {' '.join(family.key)} family")
    used = {name for step in steps for name in step.theirs}
    missing = sorted(used - external_names.keys())
    places = {external_names[name] for name in used & external_names.keys()}
    surplus = sorted(name for name in names if name not in places and not weights.is_ignorable(name))
    if missing or surplus:
        problems = [f"lacks {_listed(missing)}"] if missing else []
        problems += [f"holds {_listed(surplus)}, for which the config has no place"] if surplus else []
        raise CheckpointError(
            f"{location}: the checkpoint {' and '.join(problems)} ({len(missing)} missing, {len(surplus)} surplus)"
        )
    order = {name: number for number, name in enumerate(names)}
    planned = [ConversionStep(step, tuple(external_names[name] for name in step.theirs)) for step in steps]
    return sorted(planned, key=lambda reading: order[reading.theirs[0]])


def read(
    reading: ConversionStep,
    spec: TextSpec,
    get: Get,
    targets: Mapping[str, Tensor],
    location: str,
    *,
    stored: bool = False,
) -> list[tuple[str, Tensor]]:
    """The parameters of one step, each of its wanted shape. stored: with the values as they are stored, whatever
    dtype is wanted."""
    step, theirs = reading
    # Rows that are only moved can be made in the dtype they will have; arithmetic is done in the stored one.
    moved = not stored and (step.rule.inverse is unchanged or step.rule.rows)
    made_in = targets[step.ours[0]].dtype if moved else torch.float32
    tensors, parameters = [get(external_name, made_in) for external_name in theirs], list[tuple[str, Tensor]]()
    try:
        outputs = step.rule.inverse(tensors, spec)
    except (CheckpointError, RuntimeError, IndexError, TypeError, ValueError) as error:
        shapes = sorted({str(list(tensor.shape)) for tensor in tensors})[:_SHOWN]
        raise CheckpointError(
            f"{location}: {_listed(theirs)} of shape {' and '.join(shapes)} cannot be {_listed(step.ours)}: {error}"
        ) from error
    for name, tensor in zip(step.ours, outputs, strict=True):
        if tensor.shape != targets[name].shape:
            _check_labels(name, tensor, spec, location)
            raise CheckpointError(
                f"{location}: {_listed(theirs)} gives {name} the shape {list(tensor.shape)}, "
                f"but the config asks for {list(targets[name].shape)}"
            )
        parameters.append((name, tensor))
    return parameters


def read_parameters(
    family: Family,
    spec: TextSpec,
    names: Sequence[str],
    get: Callable[[str], Tensor],
    targets: Mapping[str, Tensor],
    location: str,
) -> Iterator[tuple[str, Tensor]]:
    """All of it, one after the other, with the values as they are stored."""
    for reading in readings(family, spec, names, targets, location):
        yield from read(reading, spec, lambda name, _: get(name), targets, location, stored=True)


def _check_labels(name: str, tensor: Tensor, spec: TextSpec, location: str) -> None:
    """CheckpointError where a classifier's tensor is of other labels than the config's."""
    head = spec.classifier
    if head is not None and name.startswith("classifier.out.") and len(tensor) != len(head.labels):
        labels = ", ".join(head.labels[:_SHOWN])
        raise CheckpointError(
            f"{location}: the head has {len(tensor)} rows, but the config names {len(head.labels)} labels: {labels}; "
            "write one of each row into id2label"
        )


def _by_parameters(steps: Sequence[BoundRule]) -> dict[tuple[str, ...], list[BoundRule]]:
    """Several ways to store the same parameters stand together, in the order of the rules."""
    steps_by_parameters: dict[tuple[str, ...], list[BoundRule]] = {}
    for step in steps:
        steps_by_parameters.setdefault(step.ours, []).append(step)
    return steps_by_parameters


def write_parameters(family: Family, spec: TextSpec, parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The family's tensors of these parameters, in their order. CheckpointError for one that it has no name for."""
    steps = [step for step in family.weights.steps(spec) if parameters.keys() >= set(step.ours)]
    nameless = sorted(parameters.keys() - {name for step in steps for name in step.ours})
    if nameless:
        raise CheckpointError(f"{_listed(nameless)} has no name in the {' '.join(family.key)} family")
    first = {spellings[0].ours[0]: spellings[0] for spellings in _by_parameters(steps).values()}
    for step in (first[name] for name in parameters if name in first):
        theirs = [family.weights.written(name, spec) for name in step.theirs]
        yield from zip(theirs, step.rule.forward([parameters[name].detach() for name in step.ours], spec), strict=True)


def largest_change(before: nn.Module, after: nn.Module) -> float:
    """By how much a parameter's value differs at most, as a share of the largest value of that parameter."""
    changes = [0.0]
    changed = dict(after.named_parameters())
    for name, tensor in before.named_parameters():
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        if largest:
            changes.append(float((tensor.float() - changed[name].float()).abs().max()) / largest)
    return max(changes)


def _listed(names: Sequence[str]) -> str:
    suffix = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + suffix
