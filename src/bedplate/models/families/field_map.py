"""A format's fields as one list, used in both directions: from a config to a spec, and back.

fields = FieldMap("config.json (toy)", (size("width", "hidden_size"), real("eps", "norm_eps", 1e-6), …))
spec = fields.to_spec(config)                    # UnsupportedModelError names what no field of the list reads
config = fields.to_config(spec)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.fields import Fields
from bedplate.models.specs.transformer import TransformerSpec

Values = Mapping[str, Any]
Default = Any
"""A value, or a function of the fields of the spec that were read before."""


def _nothing(*arguments: Any) -> Values:
    return {}


@dataclass(frozen=True)
class Field:
    """What one row of a list does.

    read: takes fields of a config, from its reader, and gives those of the spec, by their flat names; it sees what the
        rows before gave.
    write: the inverse, from the flat fields of the spec (of the stack that writes, where there are two) and the spec.
    """

    read: Callable[[Any, Values], Values] = _nothing
    write: Callable[[Values, Any], Values] = _nothing


@dataclass(frozen=True)
class FieldMap:
    """All fields of a family's config. open: a config as a reader of its fields. make: the spec of its flat fields.
    ignored: fields that do not change what the model computes."""

    open: Callable[[Values], Fields]
    fields: tuple[Field, ...]
    make: Callable[..., Any] = TransformerSpec.from_fields
    ignored: Collection[str] = ()

    def to_spec(self, config: Values) -> Any:
        """The spec of a config. UnsupportedModelError, naming the field, for what it cannot express."""
        fields = self.open(config)
        values = read_fields(self.fields, fields)
        fields.ignore(self.ignored)
        fields.finish()
        return self.make(**values)

    def to_config(self, spec: Any) -> dict[str, Any]:
        return write_fields(self.fields, spec.main.flat(), spec)


def read_fields(rows: Collection[Field], fields: Fields, values: Values | None = None) -> dict[str, Any]:
    """What the rows read, one after the other. values: what was read before them."""
    ours: dict[str, Any] = {}
    for row in rows:
        ours |= row.read(fields, {**(values or {}), **ours})
    return ours


def write_fields(rows: Collection[Field], values: Values, spec: Any) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for row in rows:
        config |= row.write(values, spec)
    return config


def _resolved(default: Default, values: Values) -> Any:
    return default(values) if callable(default) else default


def converted(
    name: str,
    ours: str | None,
    read: Callable[[Fields, str, Values], Any],
    write: Callable[[Any], Any] = lambda value: value,
) -> Field:
    """One field and the spec's that it stands for, under the same name where `ours` is None."""
    key = ours or name
    return Field(lambda fields, values: {key: read(fields, name, values)}, lambda flat, _: {name: write(flat[key])})


def _taken_by(take: Callable[..., Any]) -> Callable[..., Field]:
    """Rows of a name, the spec's where it is another, and a default, that a reader's method takes."""

    def row(name: str, ours: str | None = None, *default: Any) -> Field:
        return converted(name, ours, lambda fields, name, _: take(fields, name, *default))

    return row


size, layers, real = _taken_by(Fields.size), _taken_by(Fields.layers), _taken_by(Fields.real)
optional, flag = _taken_by(Fields.optional), _taken_by(Fields.flag)


def whole(name: str, ours: str, default: Default, null: Any = None) -> Field:
    """A whole number. null: what stands for an explicit null, ... for the default; otherwise it is refused."""

    def read(fields: Fields, name: str, values: Values) -> int | None:
        usual = _resolved(default, values)
        return fields.whole(name, usual, null=usual if null is ... else null)

    return converted(name, ours, read)


def named_value(name: str, ours: str, default: str, table: Mapping[str, Any]) -> Field:
    """One of several names, written as the first that stands for the value."""
    return converted(
        name,
        ours,
        lambda fields, name, _: fields.named(name, default, table),
        lambda value: next(text for text, meant in table.items() if meant == value),
    )


def only(name: str, *allowed: Any, written: bool = False) -> Field:
    """A field that must have one of these values: another one would change the model's outputs. written: as the first
    of them."""

    def read(fields: Fields, values: Values) -> Values:
        fields.only(name, *(_resolved(value, values) for value in allowed))
        return {}

    return Field(read, lambda *_: {name: allowed[0]} if written else {})


def ignored(*names: str) -> Field:
    """Fields that do not change what the model computes."""

    def read(fields: Fields, values: Values) -> Values:
        fields.ignore(names)
        return {}

    return Field(read)


def constant(**ours: Any) -> Field:
    """What the family's specs always have."""
    return Field(lambda *_: ours)


def written(**config: Any) -> Field:
    """What is written whatever the spec says."""
    return Field(write=lambda *_: config)


def part(ours: str, make: Callable[..., Any], *rows: Field) -> Field:
    """A part of the spec that has fields of its own, the rows'; a spec without it is written as one with defaults."""

    def read(fields: Fields, values: Values) -> Values:
        return {ours: make(**read_fields(rows, fields, values))}

    def write(flat: Values, spec: Any) -> Values:
        try:
            value = make() if flat[ours] is None else flat[ours]
        except TypeError as error:
            raise UnsupportedModelError(f"a model without {ours} is of another family") from error
        return write_fields(rows, {**flat, **vars(value)}, spec)

    return Field(read, write)
