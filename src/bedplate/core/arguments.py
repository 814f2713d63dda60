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
import types
from collections.abc import Callable, Collection, Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from bedplate.core.errors import UsageError
from bedplate.core.shown import shortened

P = ParamSpec("P")
R = TypeVar("R")

_WORDS: dict[Any, tuple[str, str]] = {
    str: ("a text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "True or False"),
    type(None): ("None", "None"),
}
"""A type → one of it, and several."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which raises UsageError for an argument of another type than its annotation says."""
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind_partial(*args, **kwargs).arguments
        except TypeError:  # too many, or unknown ones: Python says so itself
            return function(*args, **kwargs)
        for name, value in given.items():
            parameter = signature.parameters[name]
            if name not in hints:
                hints[name] = _hint(parameter.annotation, function)
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD or parameter.kind is parameter.KEYWORD_ONLY:
                need(name, value, hints[name])
        return function(*args, **kwargs)

    return call


def need(name: str, value: object, hint: Any) -> None:
    """UsageError where the value of the argument `name` is not of the type `hint`."""
    if not fits(value, hint):
        raise UsageError(f"{name} is {_said(value)}; give {wanted(hint)}")


def need_fields(one: Any) -> None:
    """UsageError for the first field of a dataclass whose value is not of its type."""
    hints = get_type_hints(type(one))
    for field in dataclasses.fields(one):
        need(field.name, getattr(one, field.name), hints[field.name])


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; True for a type that says nothing at run time. Numbers of numpy are numbers, True
    is none, and a text is no list."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Annotated:
        return fits(value, inner[0])
    if origin is Literal:
        return value in inner if isinstance(value, str | int | None) else False
    if hint is None or hint is Any:
        return hint is Any or value is None
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return not isinstance(value, bool) and isinstance(value, kind)
    kind = origin or hint
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return True  # what a protocol asks for, its user says best
    if issubclass(kind, PurePath):
        return isinstance(value, os.PathLike)
    if kind is not str and issubclass(kind, Collection) and isinstance(value, str | bytes):
        return False
    return _is_instance(value, kind) and _holds(value, kind, inner)


def _is_instance(value: Any, kind: type) -> bool:
    if isinstance(value, kind):
        return True
    # arrays and columns of tables are sequences in all but name
    alike = kind.__module__ == "collections.abc" and issubclass(kind, Collection) and not issubclass(kind, Mapping)
    return alike and all(hasattr(value, name) for name in ("__len__", "__getitem__", "tolist"))


def _holds(value: Any, kind: type, inner: tuple[Any, ...]) -> bool:
    """Whether what a list or a tuple holds is of its type; others are not looked into."""
    if not isinstance(value, list | tuple) or not inner or not issubclass(kind, Collection):
        return True
    if kind is tuple and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(fits, value, inner))
    return all(fits(one, inner[0]) for one in value)


def wanted(hint: Any) -> str:
    """A type in words. A class may say in MADE_BY which call gives one."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        words = list(dict.fromkeys(wanted(one) for one in inner))
        return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    if origin is Annotated:
        return wanted(inner[0])
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if hint in _WORDS or hint is None:
        return _WORDS[type(None) if hint is None else hint][0]
    kind = origin or hint
    if not isinstance(kind, type):
        return str(hint)
    if issubclass(kind, PurePath):
        return "a path"
    if issubclass(kind, Mapping):
        return "a mapping"
    if issubclass(kind, Collection):
        several = _WORDS.get(inner[0]) if inner else None
        return f"a list of {several[1]}" if several else "a list"
    if kind.__name__ == "Callable":
        return "a function"
    maker = getattr(kind, "MADE_BY", "")
    words = f"{'an' if kind.__name__[0] in 'AEIO' else 'a'} {kind.__name__}"
    return f"{words}, as {maker} gives one" if maker else words


def _said(value: object) -> str:
    kind = type(value).__name__
    if isinstance(value, str):
        return f"the text {shortened(value, 60)!r}"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return f"of type {kind}"


def _hint(annotation: Any, function: Callable[..., object]) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, function.__globals__)  # of our own source: what `from __future__` made a text
    except NameError:
        return Any
