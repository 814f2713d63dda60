"""What was measured of this machine, kept below BEDPLATE_HOME so that it is measured once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from bedplate.core.errors import UsageError
from bedplate.core.files import atomic_write, bedplate_home, sha256_json
from bedplate.core.progress import Progress

T = TypeVar("T")
log = logging.getLogger("bedplate.core")


def measured_once(
    kind: str,
    key: Mapping[str, Any],
    measure: Callable[[], T],
    to_json: Callable[[T], Any],
    from_json: Callable[[Any], T],
    *,
    again: bool = False,
) -> T:
    """What `measure` found earlier under the same key, or finds now. key: all that the numbers depend on, the processor
    included, since a home directory may be shared by machines of different kinds.

    again: whatever was kept. A file that is damaged or of another key is measured again; one that cannot be written
    costs a warning.
    """
    path = bedplate_home() / "machine" / f"{kind}-{sha256_json(dict(key))[:16]}.json"
    try:
        record = {} if again else json.loads(path.read_text("utf-8"))
        if record["key"] == json.loads(json.dumps(dict(key))):
            return from_json(record["found"])
    except (OSError, ValueError, ArithmeticError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # none yet, or a damaged one
    with Progress(f"measuring this machine ({kind})", unit=""):
        found = measure()
    try:
        atomic_write(path, json.dumps({"key": dict(key), "found": to_json(found)}, indent=1) + "\n")
    except UsageError as error:
        log.warning("the measurement of this machine is not kept, and is made again next time: %s", error)
    return found
