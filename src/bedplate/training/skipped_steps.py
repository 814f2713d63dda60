"""What is said of steps that were not applied: on their line, and when there were too many of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bedplate.core.errors import TrainingError
from bedplate.training.config import GuardConfig
from bedplate.training.ranks import Ranks
from bedplate.training.step_metrics import ReadStep

_SHOWN_IDS, _SHOWN_STEPS = 8, 8


class Skipped:
    """The steps of this process's part of the run that were not applied."""

    def __init__(self, guard: GuardConfig) -> None:
        self._guard = guard
        self._steps: list[tuple[int, str]] = []

    def add(self, number: int, reading: ReadStep, ranks: Ranks) -> dict[str, Any]:
        """What the step's line says: why it was not applied, and the examples in it, of all ranks."""
        local_report = {"broken": [[list(ids), problem] for ids, problem in reading.broken], "ids": list(reading.ids)}
        everyone = ranks.gather(local_report)
        broken = [(ids, problem) for report in everyone for ids, problem in report["broken"]]
        ids = [id for report in everyone for id in report["ids"]]
        if broken:
            ids, why = broken[0]
        elif not math.isfinite(reading.norm):
            why = f"the gradient's norm is {reading.norm}"
        else:
            why = f"a spike of the loss or of the gradient, whose norm is {reading.norm:.4g}"
        self._steps.append((number, f"step {number}: {why}, on the examples {_shown(ids)}"))
        return {"skipped": why, "skipped_examples": ids}

    def error(self) -> TrainingError:
        """Of the last one, after which the run stops, and those shortly before it."""
        guard, last = self._guard, self._steps[-1][0]
        recent = [message for number, message in self._steps if number > last - guard.window]
        allowed = f" {guard.allowed} such steps are allowed among {guard.window}." if guard.allowed else ""
        return TrainingError(
            f"{'; '.join(recent[-_SHOWN_STEPS:])}.{allowed} The state before this step is kept; "
            "lower the learning rate, or look at these examples"
        )


def _shown(ids: Sequence[str]) -> str:
    remainder = f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
    return ", ".join(ids[:_SHOWN_IDS]) + remainder
