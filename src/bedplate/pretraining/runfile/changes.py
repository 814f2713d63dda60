"""What of a run file may change between the times that one run is gone on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bedplate.pretraining.runfile.file import RunFile

MAY = ("run", "checkpoints", "evaluation", "hardware", "log_steps", "recompute")
"""What decides no weight: names, how often is saved and looked, what is counted with."""


@dataclass(frozen=True)
class Change:
    """One value of the file. allowed: whether a run that has begun may go on with it."""

    key: str
    before: Any
    now: Any
    allowed: bool

    def __str__(self) -> str:
        return f"{self.key}: {_short(self.before)} before, {_short(self.now)} now"


def changes(before: RunFile, now: RunFile) -> list[Change]:
    """Every value in which two files differ, in the order of their keys."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    return [
        Change(key, old.get(key), new.get(key), key.partition(".")[0] in MAY)
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}".strip(".")).items()}
    return {prefix: value}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
