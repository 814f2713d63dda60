"""Input values of tasks: texts, and media by their hashes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from bedplate.core.errors import RequestError


@dataclass(frozen=True)
class Media:
    """An image or a sound (or another kind of `data.rows.INPUTS`), by the sha256 of its file. media_type: as
    "image/png". source: where it is, if known."""

    kind: str
    sha256: str
    media_type: str
    source: str | None = None


Value: TypeAlias = str | Media
Values: TypeAlias = Mapping[str, Value]
"""A row's inputs, each by its name."""
TaskInput: TypeAlias = Value | Values
"""What is asked: inputs by name, or the only one."""


def input_name(column: str) -> str:
    """A column's name as prompts refer to it: letters, digits and _."""
    name = re.sub(r"\W+", "_", column).strip("_").lower() or "text"
    return f"_{name}" if name[0].isdigit() else name


def as_text(value: Value) -> str:
    """The value where it is a text. RequestError for media, which nothing here takes yet."""
    if isinstance(value, Media):
        raise RequestError(
            f"{value.source or value.sha256[:12]} ({value.media_type}): inputs of kind {value.kind} are not supported "
            "yet; give a text",
            param="input",
        )
    return value
