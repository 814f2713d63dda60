"""Nominees as an earlier look at test fixed them: whoever is judged there once is judged there to the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.outcome import RungResult
from bedplate.adaptation.verdict.gate import Nomination
from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import atomic_write, read_text


def fixed(path: Path, results: Mapping[str, RungResult]) -> Nomination:
    """The nomination that a run wrote down. DataError for a damaged file; UsageError where a nominee is gone."""
    try:
        read: Any = json.loads(read_text(path))
        names, reasons = tuple(map(str, read["nominees"])), {str(k): str(v) for k, v in read["reasons"].items()}
        nomination = Nomination(names, read["primary"], read["versus"], reasons)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); begin another run") from error
    missing = [name for name in names if name not in results or results[name].skin is None]
    if missing:
        raise UsageError(
            f"{path}: {', '.join(missing)} was judged at an earlier look and is not climbed now; give the command with "
            "the options of that time"
        )
    return nomination


def write(path: Path, nomination: Nomination, results: Mapping[str, RungResult], test: str) -> None:
    """The nomination, with the ids of its skins and the hash of the test rows that it is for."""
    skins = {name: results[name].skin_id for name in nomination.nominees}
    atomic_write(path, json.dumps({**nomination.to_json(), "skins": skins, "test": test}, indent=1) + "\n")
