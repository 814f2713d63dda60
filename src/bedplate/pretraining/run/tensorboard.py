"""Scalars of a run for TensorBoard, where it is installed. The run does not depend on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bedplate.core.closing import Closing
from bedplate.pretraining.page.page import measure_of

logger = logging.getLogger("bedplate.pretraining")
Row = Mapping[str, Any]


class TensorBoard(Closing):
    """Writes from the step at which a run resumes; what an earlier process wrote stays. A failure is reported once, and
    nothing is written from then on."""

    def __init__(self, directory: Path, first: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._writer = None
            return
        self._writer = SummaryWriter(str(directory), purge_step=first + 1 if first else None)

    def row(self, row: Row) -> None:
        """Writes a line of metrics."""

        def write(writer: Any) -> None:
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    writer.add_scalar(name if "/" in name else f"train/{name}", value, row["step"])

        self._attempt(write)

    def judged(self, row: Row) -> None:
        """Writes the evaluation of a checkpoint."""

        def write(writer: Any) -> None:
            for name, score in row["held_out"].items():
                measure, value = measure_of(score)
                writer.add_scalar(f"held_out/{name}/{measure.replace(' a ', '_per_')}", value, row["step"])
            for name, suite in row["suites"].items():
                writer.add_scalar(f"suites/{name}", suite["value"], row["step"])
            for number, sample in enumerate(row["samples"]):
                writer.add_text(f"sample {number}", f"{sample['prompt']}{sample['text']}", row["step"])
            writer.flush()

        self._attempt(write)

    def close(self) -> None:
        self._attempt(lambda writer: writer.close())

    def _attempt(self, write: Callable[[Any], None]) -> None:
        if self._writer is not None:
            try:
                write(self._writer)
            except Exception as error:
                self._writer = None
                logger.warning("TensorBoard no longer follows the run: %s", error)
