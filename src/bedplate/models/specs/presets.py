"""Published models by name, as presets.yaml has them, each behind the address of what says so."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml

from bedplate.models.specs import Spec, TransformerSpec, encoder_decoder, media, parts, position, transformer


def _read(value: Any) -> Any:
    """The value of a YAML node: sequences as tuples, and a mapping {CLASS: fields} as an object of that class."""
    if isinstance(value, list):
        return tuple(map(_read, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if not isinstance(value, dict):
        return value
    ((name, fields),) = value.items()  # pyright: ignore[reportUnknownVariableType]
    arguments = {key: _read(content) for key, content in fields.items()}
    if name == "TransformerSpec":
        return TransformerSpec.from_fields(**arguments)
    modules = (encoder_decoder, media, parts, position, transformer)
    return next(vars(module)[name] for module in modules if name in vars(module))(**arguments)


_TEXT = (files(__package__ or "") / "presets.yaml").read_text("utf-8")
PRESETS: dict[str, Spec] = {
    name: _read(value) for name, value in yaml.load(_TEXT, getattr(yaml, "CSafeLoader", yaml.SafeLoader)).items()
}
