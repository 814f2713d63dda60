"""What of a run file may change between the times that one run is gone on with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bedplate.core.json import brief, flat
from bedplate.pretraining.runfile.file import RunFile

MAY = ("run", "checkpoints", "evaluation", "hardware", "parallel", "log_steps", "recompute")
"""What decides no weight: names, how often is saved and looked, what is counted with, who does which part."""


@dataclass(frozen=True)
class RunFileChange:
    """One value of the file. allowed: whether a run that has begun may go on with it."""

    key: str
    before: Any
    after: Any
    allowed: bool

    def __str__(self) -> str:
        return f"{self.key}: {brief(self.before)} before, {brief(self.after)} now"


def changes(before: RunFile, after: RunFile) -> list[RunFileChange]:
    """Every value in which two files differ, in the order of their keys."""
    old, new = flat(before.model_dump(mode="json")), flat(after.model_dump(mode="json"))
    return [
        RunFileChange(key, old.get(key), new.get(key), key.partition(".")[0] in MAY)
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
