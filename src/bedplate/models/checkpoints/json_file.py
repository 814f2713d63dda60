"""A checkpoint's JSON files, read with errors that name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bedplate.core.errors import CheckpointError, DataError
from bedplate.core.files import MODEL_JSON_BYTES, read_text
from bedplate.core.json import load_model_json


def read_object(path: Path) -> dict[str, Any]:
    """The object that a file holds. CheckpointError for one that is missing or holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return value


def read_json(path: Path, max_bytes: int = MODEL_JSON_BYTES) -> Any:
    """What a file of at most so many bytes holds. CheckpointError for one that is missing or no JSON."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; download the checkpoint again")
    try:
        return load_model_json(read_text(path, max_bytes))
    except DataError as error:
        raise CheckpointError(str(error)) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error


def is_file_name(name: str) -> bool:
    """Whether what a file says is the name of another beside it, and no path."""
    return Path(name).name == name and name != ".." and 0 < len(name) < 256 and "\0" not in name
