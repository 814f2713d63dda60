"""A checkpoint's JSON files, read with errors that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bedplate.core.errors import CheckpointError, DataError
from bedplate.core.files import read_text


def read_object(path: Path) -> dict[str, Any]:
    """The object that a file holds. CheckpointError for one that is missing or holds something else."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; download the checkpoint again")
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError, DataError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return value
