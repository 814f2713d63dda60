"""Keeps measurements of this machine below BEDPLATE_HOME: each is made once, and again where other work disturbed
it."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from bedplate.core.errors import UsageError
from bedplate.core.files import atomic_write, bedplate_home, sha256_json
from bedplate.core.processor import is_busy, load_average
from bedplate.core.progress import Progress

T = TypeVar("T")
log = logging.getLogger("bedplate.core")


class Allowance:
    """Seconds that measuring may take in all, of which some are spent."""

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds, self.spent = seconds, 0.0
        self._running = False

    @property
    def left(self) -> float:
        return max(self.seconds - self.spent, 0.0)

    @contextmanager
    def spending(self) -> Generator[None]:
        """What is done inside is measuring; so may be a part of it."""
        outer, start = self._running, time.monotonic()
        self._running = True
        try:
            yield
        finally:
            self._running = outer
            self.spent += 0.0 if outer else time.monotonic() - start

    @contextmanager
    def applied(self) -> Generator[None]:
        """What measures the machine inside keeps within it."""
        token = _allowance.set(self)
        try:
            yield
        finally:
            _allowance.reset(token)


_UNLIMITED = Allowance()
_allowance: ContextVar[Allowance] = ContextVar("allowance", default=_UNLIMITED)


def patience(seconds: float) -> float:
    """How long a measurement may take here that takes so many seconds where there is time."""
    return min(seconds, _allowance.get().left)


def measured_once(
    name: str,
    key: Mapping[str, Any],
    measure: Callable[[], T],
    to_json: Callable[[T], Any],
    from_json: Callable[[Any], T],
    *,
    remeasure: bool = False,
    timed: bool = True,
) -> T:
    """What `measure` found earlier under the same key, or finds now. key: all that the numbers depend on, the processor
    included, since a home directory may be shared by machines of different kinds.

    remeasure: whatever was kept. timed: whether other work on the machine changes what is found: the load average is
    kept with it, and what was found beside much other work, or in a hurry, is measured again once most of that is gone.
    A file that is damaged or of another key is measured again; one that cannot be written costs a warning.
    """
    found = None if remeasure else kept_measurement(name, key, from_json, timed=timed)
    if found is not None:
        return found
    load = load_average() if timed else None
    allowance = _allowance.get()
    with Progress(f"measuring this machine ({name})", unit=""), allowance.spending():
        measurement = measure()
    values: dict[str, Any] = {"key": dict(key), "found": to_json(measurement)}
    if timed:
        averages = [average for average in (load, load_average()) if average is not None]
        values["load"] = max(averages, default=None) if allowance.left else math.inf
    try:
        atomic_write(_path(name, key), json.dumps(values, indent=1) + "\n", durable=False)
    except UsageError as error:
        log.warning("the measurement of this machine is not kept, and is made again next time: %s", error)
    return measurement


def kept_measurement(
    name: str, key: Mapping[str, Any], from_json: Callable[[Any], T], *, timed: bool = True
) -> T | None:
    """What `measured_once` would not measure again; None where there is none, or where it would."""
    load = load_average() if timed else None
    try:
        record = json.loads(_path(name, key).read_text("utf-8"))
        if record["key"] == json.loads(json.dumps(dict(key))) and not (timed and _was_disturbed(record, load)):
            return from_json(record["found"])
    except (OSError, ValueError, ArithmeticError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # none yet, or a damaged one
    return None


def _path(name: str, key: Mapping[str, Any]) -> Path:
    return bedplate_home() / "machine" / f"{name}-{sha256_json(dict(key))[:16]}.json"


def _was_disturbed(record: Mapping[str, Any], load: float | None) -> bool:
    """Whether a record was made beside other work, most of which is gone. Each is made again a few times at most, since
    the load average halves each time. load: the present one."""
    if load is None or is_busy(load):
        return False
    before = record["load"]
    return before is not None and is_busy(before) and load <= before / 2
