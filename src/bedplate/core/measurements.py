"""Keeps measurements of this machine below BEDPLATE_HOME: each is made once, and again where other work disturbed
it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from bedplate.core.errors import UsageError
from bedplate.core.files import atomic_write, bedplate_home, sha256_json
from bedplate.core.processor import is_busy, load_average
from bedplate.core.progress import Progress

T = TypeVar("T")
log = logging.getLogger("bedplate.core")


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
    kept with it, and what was found beside much other work is measured again once most of that is gone. A file that is
    damaged or of another key is measured again; one that cannot be written costs a warning.
    """
    path = bedplate_home() / "machine" / f"{name}-{sha256_json(dict(key))[:16]}.json"
    load = load_average() if timed else None
    try:
        record = {} if remeasure else json.loads(path.read_text("utf-8"))
        if record["key"] == json.loads(json.dumps(dict(key))) and not (timed and _was_disturbed(record, load)):
            return from_json(record["found"])
    except (OSError, ValueError, ArithmeticError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # none yet, or a damaged one
    with Progress(f"measuring this machine ({name})", unit=""):
        measurement = measure()
    values: dict[str, Any] = {"key": dict(key), "found": to_json(measurement)}
    if timed:
        values["load"] = max((average for average in (load, load_average()) if average is not None), default=None)
    try:
        atomic_write(path, json.dumps(values, indent=1) + "\n", durable=False)
    except UsageError as error:
        log.warning("the measurement of this machine is not kept, and is made again next time: %s", error)
    return measurement


def _was_disturbed(record: Mapping[str, Any], load: float | None) -> bool:
    """Whether a record was made beside other work, most of which is gone. Each is made again a few times at most, since
    the load average halves each time. load: the present one."""
    if load is None or is_busy(load):
        return False
    before = record["load"]
    return before is not None and is_busy(before) and load <= before / 2
