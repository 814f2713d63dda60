"""Rows of tables that are imported when they are first used, so that reading a table's names stays cheap."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


class Deferred:
    """A class or function named as "module:name": calling it imports and calls that."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    @property
    def __wrapped__(self) -> Callable[..., Any]:  # the name under which `inspect.signature` looks for what is called
        module, _, name = self.path.partition(":")
        return getattr(import_module(module), name)
