"""From what a user calls a model to its architecture: a preset, a size, or a base's own files. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bedplate.core.errors import CheckpointError, DataError, UnsupportedModelError, UsageError
from bedplate.core.files import MODEL_JSON_BYTES, read_text
from bedplate.core.json import load_model_json
from bedplate.core.quantities import count_of
from bedplate.core.suggestions import did_you_mean, nearest, path_hint
from bedplate.models.families import find_family
from bedplate.models.families.claims import claimed_family
from bedplate.models.families.fields import located
from bedplate.models.families.multimodal import find_multimodal
from bedplate.models.gguf_header import read_header
from bedplate.models.specs import Spec
from bedplate.models.specs.dial import SIZES, shape_for

_SIZE = re.compile(r"\d+(?:\.\d+)?[mbt]")
_VOCABULARY, _CONTEXT = 32_000, 8192
_SMALL, _SMALL_VOCABULARY = 20e6, 4096
"""Smaller models would be little else than a table of 32,000 tokens."""
_UNTIED = 1e9
"""Smaller models use the token table as their head."""


def resolve(name: str) -> tuple[str, Spec]:
    """The name and the spec of a preset (in any case), of a size such as 7b or `small` (a dense decoder), or of a path:
    a config.json, a .gguf file, a base's directory.

    Raises UsageError for what is none of them, with the nearest names; CheckpointError for damaged files;
    UnsupportedModelError for a family or a field that is not supported.
    """
    from bedplate.models.specs.presets import PRESETS  # which the architecture of a base's own file has no need of

    key = name.strip().lower()
    if key in PRESETS:
        return key, PRESETS[key]
    path = Path(name).expanduser()
    if key and path.exists():
        return str(path), _read(path)
    if key in SIZES or _SIZE.fullmatch(key):
        parameters = SIZES.get(key) or count_of(key) or 0.0
        tied, vocabulary = parameters < _UNTIED, _VOCABULARY if parameters >= _SMALL else _SMALL_VOCABULARY
        shape = shape_for(parameters, vocabulary, tied)
        config = {"vocab_size": vocabulary, "max_position_embeddings": _CONTEXT, "tie_word_embeddings": tied}
        return key, find_family("hf", "llama", name).to_spec({**config, **shape.config()})
    suggestions = nearest(key, PRESETS, 4) or [preset for preset in PRESETS if key and key in preset][:4]
    hint = did_you_mean(suggestions, show=str) or f"there are {', '.join(PRESETS)}."
    hint = path_hint(path) if "/" in name else hint
    other = "a size such as 7b or small, or the path of a config.json or .gguf file"
    raise UsageError(f"no model or path is called {name!r}; {hint} Or give {other}")


def _read(path: Path) -> Spec:
    file = path
    if path.is_dir():  # what tells a base's architecture: its config.json, or its only .gguf file
        file, ggufs = path / "config.json", sorted(path.glob("*.gguf"))
        if not file.is_file() and len(ggufs) != 1:
            note = f"{len(ggufs)} .gguf files: name one of them" if ggufs else "no .gguf file: give a base's directory"
            raise UsageError(f"{path} has no config.json and {note}")
        file = file if file.is_file() else ggufs[0]
    if file.suffix == ".gguf":
        return spec_of("gguf", read_header(file).fields(), file)
    try:
        config = load_model_json(read_text(file, MODEL_JSON_BYTES))
    except (ValueError, DataError) as error:
        raise CheckpointError(f"{file} is not a JSON file: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} must hold a JSON object, a model's config")
    return spec_of("hf", config, file)


def spec_of(format_: str, config: Mapping[str, Any], file: Path) -> Spec:
    """What a config.json, or a GGUF's header, says of an architecture: of a multimodal checkpoint that of the text
    model, which is what is loaded of it. Raises as `resolve` does."""
    outer = find_multimodal(config) if format_ == "hf" else None
    try:
        config = config if outer is None else outer.text_config(config, str(file))
        if format_ == "gguf":
            return find_family(format_, config.get("general.architecture"), str(file)).to_spec(config)
        return claimed_family(config, str(file)).to_spec(config)
    except UnsupportedModelError as error:
        raise located(error, str(file)) from error
    except KeyError as error:
        raise CheckpointError(f"{file} has no {error}; it is not a whole model") from error
    except (TypeError, ValueError, ArithmeticError, AttributeError, IndexError, RecursionError) as error:
        raise UnsupportedModelError(f"{file}: a field has a value of the wrong kind ({error})") from error
