"""Arguments of public functions, checked against their annotations: a wrong type is a UsageError that names the
argument, instead of a failure somewhere inside.

Only the types are looked at; what a value may be is each function's own to say. An annotation that cannot be read here
(of a name that only type checkers import) is not checked.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import os
import re
import types
from collections.abc import Callable, Collection, Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from bedplate.core.display import shortened
from bedplate.core.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which raises UsageError for an argument of another type than its annotation says."""
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            arguments = signature.bind_partial(*args, **kwargs).arguments
        except TypeError:  # too many, or unknown ones: Python says so itself
            return function(*args, **kwargs)
        for name, value in arguments.items():
            parameter = signature.parameters[name]
            if name not in hints:
                hints[name] = _hint(parameter.annotation, function)
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD or parameter.kind is parameter.KEYWORD_ONLY:
                need(name, value, hints[name])
        return function(*args, **kwargs)

    return call


def need(name: str, value: Any, hint: Any) -> None:
    """UsageError where the value of the argument `name` is not of the type `hint`."""
    if not fits(value, hint):
        place = _wrong_member(value, hint)
        name, wrong = (name, value) if place is None else (f"{name}[{place}]", value[place])
        raise UsageError(f"{name} is {_describe_value(wrong)}; give {describe_type(hint)}")


def need_fields(instance: Any) -> None:
    """UsageError for the first field of a dataclass whose value is not of its type."""
    hints = get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        need(field.name, getattr(instance, field.name), hints[field.name])


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; True for a type that says nothing at run time. Numbers of numpy are numbers, True
    is none, and a text is no list."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, member) for member in inner)
    if origin is Annotated:
        return fits(value, inner[0])
    if origin is Literal:
        return value in inner if isinstance(value, str | int | None) else False
    if hint is None or hint is Any:
        return hint is Any or value is None
    if hint in (int, float):
        base_type = numbers.Integral if hint is int else numbers.Real
        return not isinstance(value, bool) and isinstance(value, base_type)
    base_type = origin or hint
    if not isinstance(base_type, type) or getattr(base_type, "_is_protocol", False):
        return True  # what a protocol asks for, its user says best
    if issubclass(base_type, PurePath):
        return isinstance(value, os.PathLike)
    if base_type is not str and issubclass(base_type, Collection) and isinstance(value, str | bytes):
        return False
    return _is_instance(value, base_type) and _members_fit(value, base_type, inner)


def _is_instance(value: Any, base_type: type) -> bool:
    if isinstance(value, base_type):
        return True
    # arrays and columns of tables are sequences in all but name
    collection = base_type.__module__ == "collections.abc" and issubclass(base_type, Collection)
    is_sequence = collection and not issubclass(base_type, Mapping)
    return is_sequence and all(hasattr(value, name) for name in ("__len__", "__getitem__", "tolist"))


def _members_fit(value: Any, base_type: type, inner: tuple[Any, ...]) -> bool:
    """Whether what a list or a tuple holds is of its type; others are not looked into."""
    if not isinstance(value, list | tuple) or not inner or not issubclass(base_type, Collection):
        return True
    if base_type is tuple and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(fits, value, inner))
    return all(fits(member, inner[0]) for member in value)


def _wrong_member(value: Any, hint: Any) -> int | None:
    """The place of the first member that makes a list another one than its type says; None for anything else."""
    inner = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return next((place for member in inner if (place := _wrong_member(value, member)) is not None), None)
    if not isinstance(value, list | tuple) or len(inner) != 1 or not fits([], hint):
        return None
    return next((place for place, member in enumerate(value) if not fits(member, inner[0])), None)


def describe_type(hint: Any) -> str:
    """A type as Python writes it, without modules. A class may say in MADE_BY which call gives one."""
    text = re.sub(r"\b(?:\w+\.)+(?=\w)", "", inspect.formatannotation(hint))
    text = re.sub(r"^Optional\[(.*)\]$", r"\1 | None", text)
    makers = [maker for member in (hint, *get_args(hint)) if isinstance(maker := getattr(member, "MADE_BY", None), str)]
    return f"{text}, as {makers[0]} gives one" if makers else text


def _describe_value(value: object) -> str:
    type_name = type(value).__name__
    if isinstance(value, str):
        return repr(shortened(value, 60))
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return f"of type {type_name}"


def _hint(annotation: Any, function: Callable[..., object]) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, function.__globals__)  # of our own source: what `from __future__` made a text
    except NameError:
        return Any
