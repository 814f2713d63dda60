"""Follows a run's metrics log for TensorBoard. Whoever follows may fail or come late without harm to the run."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bedplate.core.errors import UsageError
from bedplate.pretraining.page.page import measure_of

logger = logging.getLogger("bedplate.pretraining")
Row = Mapping[str, Any]
_INTERVAL = 1.0


class Follower:
    """As a context: gives every new line of a metrics log to each of `takers`, in a thread of its own; what is there
    already is given first. A step is given once, also where the log is cut back to a saved state and grows again. A
    taker that fails is reported once and left out."""

    def __init__(self, path: Path, takers: Sequence[Callable[[Row], None]], interval: float = _INTERVAL) -> None:
        self._path, self._takers, self._interval = path, list(takers), interval
        self._position = self._step = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bedplate-follow", daemon=True)

    def __enter__(self) -> Self:
        if self._takers:
            self._thread.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._takers:
            self._stop.set()
            self._thread.join()
            self._read()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._read()

    def _read(self, retried: bool = False) -> None:
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            size = file.seek(0, 2)
            if size < self._position:  # cut back to a saved state
                self._position = 0
            file.seek(self._position)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                if retried:
                    raise
                self._position = 0  # the log was cut back, and has grown past this place since
                self._read(retried=True)
                return
            if row["step"] > self._step:
                self._step = row["step"]
                self._deliver(row)

    def _deliver(self, row: Row) -> None:
        for taker in list(self._takers):
            try:
                taker(row)
            except Exception as error:
                self._takers.remove(taker)
                logger.warning("%s no longer follows the run: %s", type(taker).__name__, error)


class TensorBoard:
    """Scalars for TensorBoard, from the step on that a run goes on at (what an earlier process wrote stays). UsageError
    where it is not installed."""

    def __init__(self, directory: Path, first: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError("TensorBoard is not installed: pip install 'bedplate[data]'") from error
        self._writer = SummaryWriter(str(directory), purge_step=first + 1 if first else None)
        self._first = first

    @classmethod
    def where_installed(cls, directory: Path, first: int) -> TensorBoard | None:
        """One, or None where TensorBoard is not installed: the run's own page shows the same."""
        try:
            return cls(directory, first)
        except UsageError:
            return None

    def __call__(self, row: Row) -> None:
        if row["step"] <= self._first:
            return
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(_tag(name), value, row["step"])

    def judged(self, row: Row) -> None:
        """What a checkpoint was judged to be."""
        for name, score in row["held_out"].items():
            measure, value = measure_of(score)
            tag = f"held_out/{name}/{measure.replace(' a ', '_per_')}"
            self._writer.add_scalar(tag, value, row["step"])
        for name, suite in row["suites"].items():
            self._writer.add_scalar(f"suites/{name}", suite["value"], row["step"])
        for number, sample in enumerate(row["samples"]):
            self._writer.add_text(f"sample {number}", f"{sample['prompt']}{sample['text']}", row["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _tag(name: str) -> str:
    return name if "/" in name else f"train/{name}"
