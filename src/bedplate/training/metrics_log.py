"""The run's metrics: one JSON line a step, cut back to the resumed step."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bedplate.core.closing import Closing
from bedplate.core.errors import TrainingError


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
