"""Strict YAML files: read into frozen models, every mistake named with its file, line, key and nearest valid key."""

from __future__ import annotations

import contextlib
import copy
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import pydantic
import pydantic_core
import yaml
from yaml.constructor import SafeConstructor

from bedplate.core.display import shortened
from bedplate.core.errors import ConfigError, DataError
from bedplate.core.files import read_text
from bedplate.core.quantities import DAYS_PER_MONTH, SECONDS, count_of, seconds_of
from bedplate.core.suggestions import did_you_mean, nearest, path_hint

M = TypeVar("M", bound=pydantic.BaseModel)


class Strict(pydantic.BaseModel):
    """Base of every configuration: frozen, no unknown keys, no NaN or infinity, no boolean where a number is wanted.

    A number may be written as people write it: 50k, 15.6T; and where the field's name ends in a unit of time, as a
    time: `train_minutes: 90s` is one and a half. `calls_per_month` is read where there is a field `calls_per_day`.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _check_keys_and_numbers(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        fields = {field.alias or name: field for name, field in cls.model_fields.items()} | cls.model_fields
        numbers: dict[Any, Any] = {}
        if DAILY in fields and MONTHLY in values:
            values = _daily(cast("Mapping[Any, Any]", values))
        for key, value in cast("Mapping[Any, Any]", values).items():
            field = fields.get(key) if isinstance(key, str) else None
            if field is None and cls.model_config.get("extra") == "forbid":
                names = sorted(field.alias or name for name, field in cls.model_fields.items())
                hint = did_you_mean(nearest(str(key), names)) or f"the keys here are {', '.join(names) or 'none'}"
                context = {"key": repr(key), "hint": hint, "at": key}
                raise pydantic_core.PydanticCustomError("unknown_key", "unknown key {key}; {hint}", context)
            members = [] if field is None else _members(field.annotation)
            if bool in members or not (int in members or float in members):
                continue
            # pydantic reads True as 1; in a file that is a typing mistake (`r: yes`)
            if isinstance(value, bool):
                raise ValueError(f"{key} is the boolean {str(value).lower()}, but a number is wanted")
            if isinstance(value, str) and str not in members:
                numbers[key] = _quantity(key, value)
        return {**values, **numbers} if numbers else values


DAILY, MONTHLY = "calls_per_day", "calls_per_month"


def _daily(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Calls of a month, or their range, by the day."""
    if DAILY in values:
        raise ValueError(f"{DAILY} and {MONTHLY} are both given: give one of them")

    def of_a_day(volume: Any) -> Any:
        count = count_of(volume) if isinstance(volume, str) else volume
        if isinstance(count, bool) or not isinstance(count, int | float):
            raise ValueError(f"{MONTHLY} is {volume!r}; a number such as 1.5M is wanted")
        if not 0 < count < math.inf:
            raise ValueError(f"{MONTHLY} is {volume}; a number above 0 is wanted")
        return count / DAYS_PER_MONTH

    monthly = values[MONTHLY]
    is_range = isinstance(monthly, Mapping)
    daily = {end: of_a_day(volume) for end, volume in monthly.items()} if is_range else of_a_day(monthly)
    return {name: value for name, value in values.items() if name != MONTHLY} | {DAILY: daily}


def _members(annotation: Any) -> list[Any]:
    """A union's members (or the annotation alone), with Annotated and aliases unwrapped."""
    annotation = getattr(annotation, "__value__", annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin is typing.Union or origin is types.UnionType:
        return [m for argument in typing.get_args(annotation) for m in _members(argument)]
    return [annotation]


_UNITS = {"ms": "ms", "s": "s", "seconds": "s", "minutes": "m", "hours": "h", "days": "d"}
"""Ends of the names of fields that are times, and their units."""


def _quantity(name: str, text: str) -> Any:
    """A text such as 50k as the number that it stands for; where it stands for none, as it is."""
    unit = _UNITS.get(name.rpartition("_")[2]) if "_" in name else None
    seconds = None if unit is None else seconds_of(text)
    value = count_of(text) if unit is None or seconds is None else seconds / SECONDS[unit]
    if value is None or not math.isfinite(value):
        return text
    whole = round(value)
    return whole if math.isclose(value, whole, rel_tol=1e-12) else value  # 1.13 M is no whole number of floats


class Grown(Strict):
    """A configuration that fields came to after files of it were written. Those in `LATE` are left out of what is
    written while they have their default, so that what is named by its hash keeps its name."""

    LATE: ClassVar[tuple[str, ...]] = ()

    @pydantic.model_serializer(mode="wrap")
    def _as_ever(self, serialise: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialise(self)
        model_fields = type(self).model_fields
        return {k: v for k, v in fields.items() if k not in self.LATE or getattr(self, k) != model_fields[k].default}


def load_config(path: Path | str, model: type[M], overrides: Sequence[str] = ()) -> M:
    """Read a YAML file into `model` after applying `key.path=value` overrides.

    Raises ConfigError for a missing file, bad YAML, a duplicate or unknown key, or a value that does not validate.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is a directory, not a file" if path.is_dir() else "does not exist"
        hint = path_hint(path, "give the path of a YAML file")
        raise ConfigError(f"{path}: the config file {problem}; {hint}")
    try:
        text = read_text(path)
    except DataError as error:
        raise ConfigError(str(error)) from error
    return parse_config(text, model, str(path), overrides)


def parse_config(text: str, model: type[M], source: str, overrides: Sequence[str] = ()) -> M:
    """Validate YAML `text` as `model` after the overrides; `source` names it in errors. Raises ConfigError."""
    root, data = _parse_yaml(text, source)
    overridden: dict[tuple[str | int, ...], str] = {}
    for override in overrides:
        keys, value = _parse_override(override)
        _set(data, keys, value, override)
        overridden[keys] = override
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        problems = error.errors(include_url=False)
        inner = [e["loc"] for e in problems]
        # a list of which no item is valid counts as empty; what is wrong with the items is said already
        reported = [
            e
            for e in problems
            if e["type"] != "too_short"
            or not any(location != e["loc"] and _covers(e["loc"], location) for location in inner)
        ]
        lines = [_explain(e, data, root, source, overridden) for e in reported]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from error


def dump_config(config: pydantic.BaseModel) -> str:
    """The resolved configuration as YAML that `parse_config` reads back to an equal model."""
    values = config.model_dump(mode="json", by_alias=True)
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def one_line(value: Any) -> str:
    """A value as YAML on one line, which is read back as the same value."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1e9)
    return text.removesuffix("\n").removesuffix("\n...")


# --- YAML


class _UniqueKeys(SafeConstructor):
    """Refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        line_by_key: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            try:
                duplicate = key in line_by_key
            except TypeError:
                break  # an unhashable key: super() below reports it with its place
            if duplicate:
                raise ConfigError(f"line {line}: the key {key!r} appears twice (first on line {line_by_key[key]})")
            line_by_key[key] = line
        return super().construct_mapping(node, deep)


class _Loader(_UniqueKeys, yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and reads 1e-4 as a number (YAML 1.1 wants 1.0e-4)."""


_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FastLoader = cast("type[_Loader]", type("_FastLoader", (_UniqueKeys, _PARSER), {}))
"""As `_Loader`, with libyaml's parser where PyYAML has it: ten times as fast, with other words for mistakes."""


class _Dumper(yaml.SafeDumper):
    """Safe YAML that quotes the strings which `_Loader` would read as numbers, and escapes line breaks."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # in its other styles PyYAML writes NEL, LS and PS as they are and reads them back as spaces
    style = '"' if any(c in text for c in "\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)


_FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
for _class in (_Loader, _FastLoader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _parse_yaml(text: str, source: str) -> tuple[yaml.Node | None, dict[Any, Any]]:
    """The node tree (for line numbers) and the values of one YAML document whose top is a mapping."""
    try:
        root, data = _loaded(text)
    except ConfigError as error:
        raise ConfigError(f"{source}, {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(f"{source}{place}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML forbids; a date such as 2026-13-45
        raise ConfigError(f"{source}: not valid YAML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply to be read") from None
    if data is None:
        return root, {}
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: the top of the file is a {_type_name(data)}; `key: value` lines are wanted")
    return root, cast("dict[Any, Any]", data)


def _loaded(text: str) -> tuple[yaml.Node | None, Any]:
    with contextlib.suppress(ConfigError, yaml.YAMLError, ValueError, RecursionError):  # `_Loader` says what is wrong
        return _constructed(_FastLoader(text))
    return _constructed(_Loader(text))


def _constructed(loader: _Loader) -> tuple[yaml.Node | None, Any]:
    root = loader.get_single_node()
    return root, None if root is None else loader.construct_document(root)


def _locate(root: yaml.Node | None, keys: Sequence[str | int]) -> tuple[yaml.Node | None, int | None]:
    """The deepest node along `keys` and its 1-based line; (None, None) if there is no file behind it."""
    node, line = root, None
    for key in keys:
        child = None
        if isinstance(node, yaml.MappingNode):
            for key_node, value_node in node.value:
                if key_node.value == str(key):
                    child, line = value_node, key_node.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            child = node.value[key]
            line = child.start_mark.line + 1
        if child is None:
            break
        node = child
    return node, line


# --- overrides


_BARE = re.compile(r"""[^.="'\s](?:[^.=]*[^.=\s])?""")
_KEY = re.compile(rf"""\s*(?:"([^"]*)"|'([^']*)'|({_BARE.pattern}))\s*([.=])""")
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_HOW = (
    "write it as key=value or key.inner=value; a key that has a dot or an = in it stands in quotes, as in "
    'prices."gpt-4.1".usd=1'
)


def key_path(keys: Sequence[str | int]) -> str:
    """Keys as an override spells them: `a.b.0`, in quotes what would be taken apart or for an index."""
    return ".".join(_quoted(key) if isinstance(key, str) else str(key) for key in keys)


def _quoted(key: str) -> str:
    if _BARE.fullmatch(key) and not _INDEX.fullmatch(key):
        return key
    quote = "'" if '"' in key else '"'
    return f"{quote}{key}{quote}"


def _parse_override(override: str) -> tuple[tuple[str | int, ...], Any]:
    """`a.b.0=c` as (("a", "b", 0), value), the value read as YAML. What stands in quotes is one key: `a."b.c"=1`."""
    keys: list[str | int] = []
    at, ending = 0, "."
    while ending == ".":
        match = _KEY.match(override, at)
        if match is None:
            raise ConfigError(f"override {override!r}: {_HOW}")
        double, single, bare, ending = match.groups()
        keys.append(int(bare) if bare and _INDEX.fullmatch(bare) else double or single or bare or "")
        at = match.end()
    try:
        value = _Loader(override[at:]).get_single_data()
    except (ConfigError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from error
    return tuple(keys), value


def _set(data: dict[Any, Any], keys: tuple[str | int, ...], value: Any, override: str) -> None:
    """Set one overridden value, making the mappings on the way where the file has none (or null).

    What is on the way is copied first: under a YAML alias it is the same object as where its anchor stands.
    """
    container: Any = data
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        place = key_path(keys[:depth]) or "the file"
        if isinstance(container, list):
            sequence = cast("list[Any]", container)
            if not isinstance(key, int) or key >= len(sequence):
                raise ConfigError(f"override {override!r}: {place} is a list of {len(sequence)}; {key!r} is no index")
            container = sequence
        elif isinstance(container, dict):
            mapping = cast("dict[Any, Any]", container)
            key = _mapping_key(mapping, keys, depth, override)  # noqa: PLW2901
            if not last and mapping.get(key) is None:
                mapping[key] = {}
            container = mapping
        else:
            raise ConfigError(f"override {override!r}: {place} is {container!r}; it has no {key!r} inside")
        if last:
            container[key] = value
            if isinstance(container, dict) and key in (DAILY, MONTHLY):  # over the file's, however that counts
                cast("dict[Any, Any]", container).pop(MONTHLY if key == DAILY else DAILY, None)
        else:
            container[key] = copy.copy(container[key])
            container = container[key]


def _mapping_key(mapping: Mapping[Any, Any], keys: tuple[str | int, ...], depth: int, override: str) -> Any:
    """The mapping's key that is meant. ConfigError where what follows only fits a key that has dots in it."""
    present = next((key for key in (keys[depth], str(keys[depth])) if key in mapping), None)
    for end in range(len(keys), depth + 1, -1) if present is None else ():
        dotted = ".".join(map(str, keys[depth:end]))
        if dotted in mapping:
            quoted = key_path((*keys[:depth], dotted, *keys[end:]))
            raise ConfigError(f"override {override!r}: the key {dotted!r} has a dot in it; quote it: {quoted}=…")
    return str(keys[depth]) if present is None else present


# --- messages


def _explain(
    error: Any,
    data: dict[Any, Any],
    root: yaml.Node | None,
    source: str,
    overridden: Mapping[tuple[str | int, ...], str],
) -> str:
    """One pydantic error as `source, line n: key: what is wrong; what to do`."""
    location: tuple[str | int, ...] = error["loc"]
    keys = _data_keys(location, data, missing=error["type"] == "missing")
    if error["type"] == "unknown_key":
        keys = (*keys, error["ctx"]["at"])
    if error["type"] in {"union_tag_not_found", "union_tag_invalid"}:
        keys = (*keys, error["ctx"]["discriminator"].strip("'"))
    by = next((text for path, text in overridden.items() if _covers(path, keys)), None)
    node, line = (None, None) if by else _locate(root, keys)
    place = f"override {by!r}" if by else source if line is None else f"{source}, line {line}"
    key = key_path(keys)
    message = f"{key + ': ' if key else ''}{_problem(error, node)}"
    for depth, name in enumerate(keys if by is None else ()):
        begun, names = keys[: depth + 1], _names(root, keys[:depth])
        by = next((text for path, text in overridden.items() if len(path) > len(begun) and _covers(begun, path)), None)
        if by and names and str(name) not in names:  # the override began a section that the file does not have
            like = [key_path([*keys[:depth], near]) for near in nearest(str(name), names)]
            hint = did_you_mean(like) or f"in a new one, {message}"
            return f"override {by!r}: {source} has no {key_path(begun)}; {hint}"
    return f"{place}: {message}"


def _names(node: yaml.Node | None, keys: Sequence[str | int]) -> list[str]:
    """The keys of the mapping that stands there in the file."""
    values = {name.value: value for name, value in node.value} if isinstance(node, yaml.MappingNode) else {}
    return _names(values.get(str(keys[0])), keys[1:]) if keys else list(values)


def plain_message(message: str) -> str:
    """What a validator says, without pydantic's own words."""
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return re.sub(r"^\w+ should have (at \w+ \d+ items?) after validation, not", r"give \1, not", message)


def first_problem(error: pydantic.ValidationError, *above: str) -> str:
    """The first thing that does not validate: the field's path, below `above`, and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    return ": ".join(filter(None, (".".join(map(str, (*above, *first["loc"]))), plain_message(first["msg"]))))


def _problem(error: Any, node: yaml.Node | None) -> str:
    error_type, value = error["type"], error["input"]
    if error_type in {"missing", "union_tag_not_found"}:
        return "this key is required and missing"
    if error_type == "union_tag_invalid":
        tag, expected = error["ctx"]["tag"], error["ctx"]["expected_tags"].replace("'", "")
        hint = did_you_mean(nearest(tag, expected.split(", "))) or f"possible are {expected}"
        return f"there is no {tag!r}; {hint}"
    if error_type in {"string_type", "literal_error", "enum"} and isinstance(value, bool | int | float):
        read_as = str(value).lower() if isinstance(value, bool) else repr(value)
        written = node.value if isinstance(node, yaml.ScalarNode) else read_as
        was = "yes, no, on, off, true and false are booleans in YAML" if isinstance(value, bool) else "it is a number"
        return f'read as {_type_name(value)} {read_as}, but text is wanted ({was}): quote it, as in "{written}"'
    message = plain_message(error["msg"])
    says_all = error_type in {"value_error", "assertion_error", "unknown_key"}
    shown = "" if says_all else f" (got {shortened(repr(value), 80)})"
    return f"{message[:1].lower()}{message[1:]}{shown}"


def _covers(path: Sequence[str | int], keys: Sequence[str | int]) -> bool:
    return [str(k) for k in keys[: len(path)]] == [str(k) for k in path]


def _data_keys(location: Sequence[str | int], data: Any, missing: bool) -> tuple[str | int, ...]:
    """The part of pydantic's location that is keys of the data; the names of union members in it are left out."""
    keys: list[str | int] = []
    container = data
    for depth, part in enumerate(location):
        if isinstance(container, Mapping):
            mapping = cast("Mapping[Any, Any]", container)
            if part in mapping:
                keys.append(part)
                container = mapping[part]
            elif missing and depth == len(location) - 1:
                keys.append(part)
            elif part == "[key]" or depth == len(location) - 1:
                continue
        elif isinstance(container, list) and isinstance(part, int) and part < len(cast("list[Any]", container)):
            keys.append(part)
            container = container[part]
    return tuple(keys)


def _type_name(value: Any) -> str:
    names = {bool: "boolean", int: "number", float: "number", str: "text", list: "list", dict: "mapping"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
