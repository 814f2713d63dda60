"""From what a user calls a model to its architecture: a preset, a config.json, or a base's directory. Free of torch."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from bedplate.core.errors import DataError, UnsupportedModelError, UsageError
from bedplate.core.files import read_text
from bedplate.models.families import find_family
from bedplate.models.specs import Spec
from bedplate.models.specs.presets import PRESETS


def resolve(name: str) -> tuple[str, Spec]:
    """The name and the spec of a preset (in any case), of a config.json, or of a base's directory.

    Raises UsageError for what is none of them, with the nearest names; UnsupportedModelError for a config of a family
    or with a field that is not supported.
    """
    key = name.strip().lower()
    if key in PRESETS:
        return key, PRESETS[key].spec
    path = Path(name).expanduser()
    if path.exists():
        return str(path), _read(path)
    near = difflib.get_close_matches(key, PRESETS, 4, 0.5) or [known for known in PRESETS if key and key in known][:4]
    hint = f"near it are {', '.join(near)}" if near else f"there are {', '.join(PRESETS)}"
    raise UsageError(f"no model or path is called {name!r}; {hint}; or give the path of a config.json")


def _read(path: Path) -> Spec:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{path} has no config.json; give a base's directory in the Hugging Face layout")
    try:
        config = json.loads(read_text(file))
    except (ValueError, DataError) as error:
        raise UsageError(f"{file} is not a JSON file: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{file} must hold a JSON object, a model's config")
    try:
        return find_family("hf", config.get("model_type"), str(file)).to_spec(config)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UnsupportedModelError(f"{file}: a field has a value of the wrong kind ({error})") from error
