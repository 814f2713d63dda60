"""INPUTS, the kinds of input that a task may have: how a cell of a table is read, and what a prompt template is given.

A new kind is one file with its class and one row here; task files, skins and prompts look it up by name.
"""

from __future__ import annotations

from typing import Protocol

from bedplate.core.values import Media, Value, as_text
from bedplate.data.rows import Row, text_of


class InputKind(Protocol):
    """One kind of input."""

    def read(self, row: Row, column: str, location: str) -> Value:
        """The value in a row's cell. DataError naming the location."""
        ...

    def text_in_prompt(self, value: Value) -> str:
        """What stands for the value in a prompt template. RequestError."""
        ...


class TextInput:
    """Text, which stands in a prompt as it is."""

    def read(self, row: Row, column: str, location: str) -> str:
        return text_of(row, column, location)

    def text_in_prompt(self, value: Value) -> str:
        return as_text(value)


INPUTS: dict[str, InputKind] = {"text": TextInput()}


def text_in_prompt(value: Value) -> str:
    """What stands for a value of any kind in a prompt template. RequestError for a kind that is not in the table."""
    kind = INPUTS.get(value.kind) if isinstance(value, Media) else INPUTS["text"]
    return as_text(value) if kind is None else kind.text_in_prompt(value)


def check_input_kind(kind: str) -> str:
    """The name of a kind of input. ValueError for one that is not in the table."""
    if kind in INPUTS:
        return kind
    problem = f"input kind {kind!r} is not supported yet" if kind in ("image", "audio") else f"no input kind {kind!r}"
    raise ValueError(f"{problem}; supported: {', '.join(INPUTS)}")
