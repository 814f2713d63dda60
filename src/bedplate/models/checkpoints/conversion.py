"""From a checkpoint's tensors to a model's parameters and back, one rule of the family at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bedplate.core.errors import CheckpointError
from bedplate.models.families import Family
from bedplate.models.families.weights import Step, same
from bedplate.models.specs import TextSpec

_SHOWN = 8
"""Names that an error lists; of more it says how many."""


_ASKED, _WAYS = 100_000, 16
"""Names that rules have for a spec, at most: so many, and so many for each tensor. Of experts of which there are none a
damaged config asks for any number."""
Get = Callable[[str, torch.dtype], Tensor]
"""A tensor by name. Where it has to be made of what is stored, it may be made in this dtype."""


class Reading(NamedTuple):
    """A step, and what its tensors are called in the checkpoint."""

    step: Step
    theirs: tuple[str, ...]


def readings(
    family: Family, spec: TextSpec, names: Sequence[str], wanted: Mapping[str, Tensor], where: str
) -> list[Reading]:
    """The steps that make the `wanted` parameters of the checkpoint that holds `names`, in its order.

    CheckpointError, before anything is read, naming every tensor that is missing or that has no place.
    """
    return [Reading(step, theirs) for step, theirs in _plan(family, spec, names, wanted, where)]


def read(
    reading: Reading, spec: TextSpec, get: Get, wanted: Mapping[str, Tensor], where: str, *, stored: bool = False
) -> list[tuple[str, Tensor]]:
    """The parameters of one step, each of its wanted shape. stored: with the values as they are stored, whatever
    dtype is wanted."""
    step, theirs = reading
    # Rows that are only moved can be made in the dtype they will have; arithmetic is done in the stored one.
    moved = not stored and (step.rule.inverse is same or step.rule.rows)
    made_in = wanted[step.ours[0]].dtype if moved else torch.float32
    tensors, found = [get(one, made_in) for one in theirs], list[tuple[str, Tensor]]()
    try:
        made = step.rule.inverse(tensors, spec)
    except (CheckpointError, RuntimeError, IndexError, TypeError, ValueError) as error:
        shapes = sorted({str(list(tensor.shape)) for tensor in tensors})[:_SHOWN]
        raise CheckpointError(
            f"{where}: {_listed(theirs)} of shape {' and '.join(shapes)} cannot be {_listed(step.ours)}: {error}"
        ) from error
    for name, tensor in zip(step.ours, made, strict=True):
        if tensor.shape != wanted[name].shape:
            _check_labels(name, tensor, spec, where)
            raise CheckpointError(
                f"{where}: {_listed(theirs)} gives {name} the shape {list(tensor.shape)}, "
                f"but the config asks for {list(wanted[name].shape)}"
            )
        found.append((name, tensor))
    return found


def read_parameters(
    family: Family,
    spec: TextSpec,
    names: Sequence[str],
    get: Callable[[str], Tensor],
    wanted: Mapping[str, Tensor],
    where: str,
) -> Iterator[tuple[str, Tensor]]:
    """All of it, one after the other, with the values as they are stored."""
    for reading in readings(family, spec, names, wanted, where):
        yield from read(reading, spec, lambda name, _: get(name), wanted, where, stored=True)


def _check_labels(name: str, tensor: Tensor, spec: TextSpec, where: str) -> None:
    """CheckpointError where a classifier's tensor is of other labels than the config's."""
    head = spec.classifier
    if head is not None and name.startswith("classifier.out.") and len(tensor) != len(head.labels):
        labels = ", ".join(head.labels[:_SHOWN])
        raise CheckpointError(
            f"{where}: the head has {len(tensor)} rows, but the config names {len(head.labels)} labels: {labels}; "
            "write one of each row into id2label"
        )


def _plan(
    family: Family, spec: TextSpec, names: Sequence[str], wanted: Mapping[str, Tensor], where: str
) -> list[tuple[Step, tuple[str, ...]]]:
    """The steps that make the wanted parameters, each with the names that its tensors have in the checkpoint."""
    weights = family.weights
    held = {weights.bare(name): name for name in names}
    every: list[Step] = []
    most, asked = _ASKED + _WAYS * len(names), 0
    for step in weights.steps(spec):
        asked += len(step.theirs)
        if asked > most:
            raise CheckpointError(
                f"{where}: the config asks for more than {most:,} tensors, but the checkpoint holds {len(names):,}; "
                "they do not belong together"
            )
        if wanted.keys() >= set(step.ours):
            every.append(step)
    steps = [_spelled(ways, held) for ways in _by_parameters(every).values()]
    nameless = sorted(wanted.keys() - {name for step in steps for name in step.ours})
    if nameless:
        raise CheckpointError(f"{where}: {_listed(nameless)} has no name in the {' '.join(family.key)} family")
    used = {name for step in steps for name in step.theirs}
    missing = sorted(used - held.keys())
    places = {held[name] for name in used & held.keys()}
    surplus = sorted(name for name in names if name not in places and not weights.is_ignorable(name))
    if missing or surplus:
        what = [f"lacks {_listed(missing)}"] if missing else []
        what += [f"holds {_listed(surplus)}, for which the config has no place"] if surplus else []
        raise CheckpointError(
            f"{where}: the checkpoint {' and '.join(what)} ({len(missing)} missing, {len(surplus)} surplus)"
        )
    order = {name: number for number, name in enumerate(names)}
    found = [(step, tuple(held[name] for name in step.theirs)) for step in steps]
    return sorted(found, key=lambda one: order[one[1][0]])


def _by_parameters(steps: Sequence[Step]) -> dict[tuple[str, ...], list[Step]]:
    """Several ways to store the same parameters stand together, in the order of the rules."""
    found: dict[tuple[str, ...], list[Step]] = {}
    for step in steps:
        found.setdefault(step.ours, []).append(step)
    return found


def _spelled(ways: Sequence[Step], held: Mapping[str, str]) -> Step:
    """The way in which the checkpoint holds them, or else the first, which is what it lacks."""
    return next((step for step in ways if held.keys() >= set(step.theirs)), ways[0])


def write_parameters(family: Family, spec: TextSpec, parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The family's tensors of these parameters, in their order. CheckpointError for one that it has no name for."""
    steps = [step for step in family.weights.steps(spec) if parameters.keys() >= set(step.ours)]
    nameless = sorted(parameters.keys() - {name for step in steps for name in step.ours})
    if nameless:
        raise CheckpointError(
            f"{_listed(nameless)} has no name in the {' '.join(family.key)} family; it cannot be exported"
        )
    first = {ways[0].ours[0]: ways[0] for ways in _by_parameters(steps).values()}
    for step in (first[name] for name in parameters if name in first):
        theirs = [family.weights.written(name, spec) for name in step.theirs]
        yield from zip(theirs, step.rule.forward([parameters[name].detach() for name in step.ours], spec), strict=True)


def largest_change(before: nn.Module, after: nn.Module) -> float:
    """By how much a parameter's value differs at most, as a share of the largest value of that parameter."""
    changes = [0.0]
    others = dict(after.named_parameters())
    for name, tensor in before.named_parameters():
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        if largest:
            changes.append(float((tensor.float() - others[name].float()).abs().max()) / largest)
    return max(changes)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more
