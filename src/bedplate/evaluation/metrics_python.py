"""Custom metric: a Python function named in the task file scores each row.

metric: {python: closeness.py:score}

def score(target, prediction) -> float      # in 0 to 1
"""

from __future__ import annotations

import importlib.util
import json
import numbers
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from bedplate.core.errors import ConfigError, DataError
from bedplate.core.files import sha256_file
from bedplate.evaluation.metrics import AnsweredRow, Scoring


@dataclass(frozen=True)
class PythonMetric:
    """`function(target, prediction)` scores a row in 0 to 1: two texts, or for JSON and several labels two values. What
    could not be parsed scores 0 unasked. `sha256`: of the function's file."""

    name: str
    function: Callable[[Any, Any], object]
    sha256: str
    values: bool
    scoring: Scoring = "real"

    def ready(self) -> None:
        """It was ready when it was read."""

    def score(self, rows: Sequence[AnsweredRow]) -> list[float]:
        """DataError naming the row for which the function fails, or gives no number in 0 to 1."""
        return [self._score(row) for row in rows]

    def _score(self, row: AnsweredRow) -> float:
        if row.prediction is None:
            return 0.0
        number = self.value(row)
        if not 0 <= number <= 1:  # not so for NaN either
            raise DataError(f"the metric {self.name} gives {number!r} for row {row.id}; a score must lie in 0 to 1")
        return number

    def value(self, row: AnsweredRow) -> float:
        """What the function gives for a row that has a prediction. DataError where it fails, or gives no number."""
        assert row.prediction is not None
        read: Callable[[str], Any] = json.loads if self.values else str
        try:
            score = self.function(read(row.target), read(row.prediction))
        except Exception as error:
            raise DataError(
                f"the metric {self.name} fails on row {row.id} ({type(error).__name__}: {error}); "
                f"its prediction is {row.prediction[:200]!r}"
            ) from error
        if not isinstance(score, numbers.Real):
            raise DataError(f"the metric {self.name} gives {score!r} for row {row.id}; a score must be a number")
        return float(score)


def python_metric(reference: str, directory: Path, *, values: bool) -> PythonMetric:
    """The metric that `path/to/file.py:function` names, the path relative to `directory`. ConfigError where there is no
    such file or function, or where the file cannot be run. values: whether the function gets JSON values."""
    file, _, name = reference.rpartition(":")
    path = directory / file
    if not file or not name.isidentifier():
        raise ConfigError(f"metric: python is {reference!r}; write it as path/to/file.py:function")
    if not path.is_file():
        raise ConfigError(f"metric: the Python file {path} does not exist; the path is relative to the task file")
    digest = sha256_file(path)
    function: object = getattr(_module(path, digest), name, None)
    if function is None:
        raise ConfigError(f"metric: {path} has no function {name!r}")
    if not callable(function):
        raise ConfigError(f"metric: {name!r} in {path} is not a function but {type(function).__name__}")
    return PythonMetric(f"{name} ({path.name}, {digest[:8]})", function, digest, values)


@lru_cache(maxsize=32)
def _module(path: Path, digest: str) -> object:
    spec = importlib.util.spec_from_file_location(f"bedplate_metric_{digest[:16]}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"metric: {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks up what its annotations mean
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[spec.name]
        if not isinstance(error, Exception):
            raise
        raise ConfigError(f"metric: {path} cannot be run ({type(error).__name__}: {error})") from error
    return module
