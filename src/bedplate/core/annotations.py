"""Reads annotations of pydantic models: the valid keys at a place, and whether a field is a number."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any, TypeGuard

import pydantic


def field_names(model: type[pydantic.BaseModel], location: Sequence[str | int]) -> set[str]:
    """The valid keys at `location`, over every union member that could be meant there."""
    candidates: list[Any] = [model]
    for part in location:
        inner = [annotation for candidate in candidates for annotation in _inside(candidate, part)]
        candidates = inner or candidates  # a union member's name, not a key
    names: set[str] = set()
    for member in [m for annotation in candidates for m in _members(annotation)]:
        if _is_model(member):
            names.update(field.alias or name for name, field in member.model_fields.items())
    return names


def _members(annotation: Any) -> list[Any]:
    """A union's members (or the annotation alone), with Annotated and aliases unwrapped."""
    annotation = getattr(annotation, "__value__", annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin is typing.Union or origin is types.UnionType:
        return [m for argument in typing.get_args(annotation) for m in _members(argument)]
    return [annotation]


def _inside(annotation: Any, part: str | int) -> list[Any]:
    """What one step into `annotation` by a key or an index is annotated as."""
    inner_types: list[Any] = []
    tagged = [m for m in _members(annotation) if _is_model(m) and _has_tag(m, part)]
    if tagged:
        return tagged
    for member in _members(annotation):
        arguments = [a for a in typing.get_args(member) if a is not Ellipsis]
        if _is_model(member):
            inner_types += [f.annotation for name, f in member.model_fields.items() if part in {name, f.alias}]
        elif arguments and typing.get_origin(member) is not typing.Literal:
            inner_types.append(arguments[-1])  # dict[K, V] → V; list[X], tuple[X, ...] → X
    return inner_types


def _is_model(annotation: Any) -> TypeGuard[type[pydantic.BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)


def _has_tag(model: type[pydantic.BaseModel], tag: str | int) -> bool:
    """Whether a discriminated union picks `model` by `tag`: one of its fields is Literal[tag]."""
    return any(
        typing.get_origin(f.annotation) is typing.Literal and tag in typing.get_args(f.annotation)
        for f in model.model_fields.values()
    )


def wants_number_only(annotation: Any) -> bool:
    """Whether a field is a number and no boolean."""
    members = _members(annotation)
    return bool not in members and any(m is int or m is float for m in members)


def wants_quantity(annotation: Any) -> bool:
    """Whether a text in such a field can only be meant as a number, such as 50k."""
    return wants_number_only(annotation) and str not in _members(annotation)
