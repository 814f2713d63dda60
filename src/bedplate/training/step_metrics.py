"""Metrics of training steps: left on the device by each step, read back together, written as one JSON line per step."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bedplate.core.closing import Closing
from bedplate.core.errors import TrainingError

LOSS = "loss/"
"""What the names of the losses begin with; a metric's begins with its term's."""
Values = Mapping[str, Tensor]
"""Scalars of one micro-batch, divided by their term's weight in the whole step, so that the step's are their sums."""


@dataclass
class UnreadStep:
    """One step. number: from 1. parts: ids and values of its micro-batches; norm: of its gradient, before clipping.
    skipped, stops: what the guard says of it, 0 or 1."""

    number: int
    learning_rate: float
    counts: Mapping[str, int]
    parts: Sequence[tuple[Sequence[str], Values]]
    norm: Tensor
    skipped: Tensor
    stops: Tensor

    @property
    def scalars(self) -> list[Tensor]:
        """Everything that is to be read."""
        return [*(value for _, values in self.parts for value in values.values()), self.norm, self.skipped, self.stops]

    def loss(self) -> Tensor:
        """The step's, of this rank: a scalar that is not read."""
        losses = [value for _, values in self.parts for name, value in values.items() if name.startswith(LOSS)]
        return torch.stack(losses).sum() if losses else torch.zeros_like(self.norm)

    def unsound(self) -> Tensor:
        """1 where not all of it is finite: a scalar that is not read."""
        return torch.stack(self.scalars).isfinite().all().logical_not().to(self.norm.dtype)


@dataclass(frozen=True)
class ReadStep:
    """values: summed over the micro-batches of this rank. broken: of each of them that is not finite, its ids and what
    it gave; ids: of all of them."""

    values: Mapping[str, float]
    norm: float
    skipped: bool
    stops: bool
    ids: Sequence[str]
    broken: Sequence[tuple[Sequence[str], str]]


def read_steps(steps: Sequence[UnreadStep]) -> list[ReadStep]:
    """Reads all of them at once."""
    numbers = iter(torch.stack([scalar for step in steps for scalar in step.scalars]).tolist())
    return [_read(step, numbers) for step in steps]


def _read(step: UnreadStep, numbers: Iterator[float]) -> ReadStep:
    values: dict[str, float] = {}
    broken: list[tuple[Sequence[str], str]] = []
    for ids, part in step.parts:
        part_values = {name: next(numbers) for name in part}
        if not all(map(math.isfinite, part_values.values())):
            broken.append((ids, f"the loss is {part_values}"))
        for name, value in part_values.items():
            values[name] = values.get(name, 0.0) + value
    norm, skipped, stops = (next(numbers) for _ in range(3))
    example_ids = [id for ids, _ in step.parts for id in ids]
    return ReadStep(values, norm, bool(skipped), bool(stops), example_ids, broken)


class MetricsLog(Closing):
    """Lines appended to `path`. `position()` is a byte count that a saved state keeps, and that `resume_at` cuts to.
    Where it is not `main`, another rank writes them."""

    def __init__(self, path: Path, resume_at: int = 0, main: bool = True) -> None:
        self._path, self._main = path, main
        if not main:
            path = Path(os.devnull)
            resume_at = 0
        size = path.stat().st_size if path.exists() else 0
        if size < resume_at:
            raise TrainingError(
                f"{path} is shorter ({size} bytes) than when the state was saved ({resume_at}); put the file back, or "
                "delete the saved state to start anew"
            )
        self._file = path.open("ab")
        if main:
            self._file.truncate(resume_at)

    def close(self) -> None:
        self._file.close()

    def write(self, row: dict[str, Any]) -> None:
        self._file.write((json.dumps(row, allow_nan=False) + "\n").encode())
        self._file.flush()

    def position(self) -> int:
        """Bytes written so far, made safe on disk."""
        if not self._main:
            return 0
        os.fsync(self._file.fileno())
        return self._file.tell()
