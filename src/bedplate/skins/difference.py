"""Two skins file by file: what is the same, and by how much numbers differ where nothing else does."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open

from bedplate.core.files import sha256_file
from bedplate.skins.manifest import EXTRAS, SKIN_FILE
from bedplate.skins.skin import BaseReference, Skin

_IGNORED_KEYS = {
    SKIN_FILE: ("files", "provenance", "bases", "cascade.first", "cascade.second"),
    "adapter_config.json": ("base_model_name_or_path",),
}
"""The fields of JSON files in which two skins that do the same may differ: hashes are compared file by file,
bases by their ids, and where a base lies is no part of what a skin does."""


@dataclass(frozen=True)
class FileDifference:
    """One file of both skins, or the weights of a base. largest: the largest difference of a number, where nothing but
    numbers differs; None where they cannot be set against each other."""

    name: str
    equal: bool
    largest: float | None = None


def compare_skins(old: Skin, new: Skin) -> tuple[FileDifference, ...]:
    """Every file of two skins that were read from disk, their reports apart, and the bases that they stand on."""
    assert old.directory is not None
    assert new.directory is not None
    places = (old.directory, new.directory)
    names = {p.relative_to(place).as_posix() for place in places for p in place.rglob("*") if p.is_file()}
    parts = [compare_files(name, old.directory / name, new.directory / name) for name in sorted(names - set(EXTRAS))]
    for role in sorted(old.bases.keys() | new.bases.keys()):
        parts += _bases(role, old.bases.get(role), new.bases.get(role))
    return tuple(parts)


def compare_files(name: str, old: Path, new: Path) -> FileDifference:
    if not old.is_file() or not new.is_file():
        return FileDifference(f"{name} (only one has it)", False)
    if sha256_file(old) == sha256_file(new):
        return FileDifference(name, True, 0.0)
    if name.endswith(".safetensors"):
        return FileDifference(name, False, _of_tensors(old, new))
    if name.endswith(".json"):
        return _of_json(name, old, new)
    return FileDifference(name, False)


def _bases(role: str, old: Any, new: Any) -> list[FileDifference]:
    if not isinstance(old, BaseReference) or not isinstance(new, BaseReference):
        return [FileDifference(f"the {role} base", old == new)]
    identity_keys = ("family", "tokenizer_id", "template_id")
    if any(getattr(old, key) != getattr(new, key) for key in identity_keys):
        return [FileDifference(f"the {role} base", False)]
    if old.weights_id == new.weights_id:
        return [FileDifference(f"the {role} base", True, 0.0)]
    a, b = Path(old.name), Path(new.name)
    names = sorted({p.name for place in (a, b) if place.is_dir() for p in place.glob("*.safetensors")})
    parts = [compare_files(name, a / name, b / name) for name in names]
    return [FileDifference(f"the {role} base: {part.name}", part.equal, part.largest) for part in parts] or [
        FileDifference(f"the {role} base", False)
    ]


def _of_tensors(old: Path, new: Path) -> float | None:
    """None where their tensors have other names or shapes, or hold what is no number."""
    largest = 0.0
    with safe_open(old, "pt") as a, safe_open(new, "pt") as b:
        if set(a.keys()) != set(b.keys()):
            return None
        for name in a.keys():  # noqa: SIM118 (a file, no mapping)
            before, after = cast("torch.Tensor", a.get_tensor(name)), cast("torch.Tensor", b.get_tensor(name))
            if before.shape != after.shape:
                return None
            if before.numel():
                largest = max(largest, float((before.double() - after.double()).abs().nan_to_num(math.inf).max()))
    return largest if math.isfinite(largest) else None


def _of_json(name: str, old: Path, new: Path) -> FileDifference:
    ignored_keys = _IGNORED_KEYS.get(Path(name).name, ())
    a, b = (dict(_leaves(json.loads(path.read_bytes()))) for path in (old, new))
    under = tuple(f"{key}." for key in ignored_keys)
    a, b = ({key: v for key, v in leaves.items() if not f"{key}.".startswith(under)} for leaves in (a, b))
    if a == b:
        return FileDifference(name, True, 0.0)
    if a.keys() != b.keys():
        return FileDifference(name, False)
    differ = [(a[key], b[key]) for key in a if a[key] != b[key]]
    if not all(isinstance(old_value, float) and isinstance(new_value, float) for old_value, new_value in differ):
        return FileDifference(name, False)
    return FileDifference(name, False, max(abs(old_value - new_value) for old_value, new_value in differ))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in cast("dict[str, Any]", value).items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for number, inner in enumerate(cast("list[Any]", value)):
            yield from _leaves(inner, f"{path}.{number}")
    else:
        yield path, value
