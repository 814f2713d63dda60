"""What an adaptation ladder measured, read from its report.json (docs/report-json.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bedplate.core.errors import ConfigError, DataError
from bedplate.core.files import read_text
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.economics.bills.decisions.case import Evidence
from bedplate.economics.numbers.quantities import Share


@dataclass(frozen=True)
class MeasuredRung:
    """One rung on one split. seconds_per_call: of single calls on the machine of the report, None where its price was 0
    (the report has dollars only). confirmed: on rows that no choice had seen."""

    source: str
    quality: Share
    p95_ms: float | None
    seconds_per_call: float | None
    train_seconds: float | None
    confirmed: bool


def read_evidence(evidence: Evidence, path: Path, needed_by: str) -> MeasuredRung:
    """The rung's row. ConfigError for a file that is no report, a rung that is not there, skipped or failed."""
    report = _read(path, needed_by)
    rows = [row for row in _list(report.get("rungs")) if isinstance(row, Mapping)]
    named = [row for row in rows if row.get("rung") == evidence.rung]
    place = f"{needed_by}: {path}"
    target = report.get("target")
    if isinstance(target, Mapping) and target.get("lower_is_better"):
        raise ConfigError(
            f"{place}: the report's estimates are US dollars of a call, not shares of right answers; state the "
            "option's own quality and p95_ms without `report`"
        )
    if not named:
        names = list(dict.fromkeys(str(row.get("rung")) for row in rows))
        hint = did_you_mean(nearest(evidence.rung, names)) or f"it has {', '.join(names) or 'none'}"
        raise ConfigError(f"{place}: there is no rung {evidence.rung!r}; {hint}")
    undone = next((row for row in named if row.get("status") != "done"), None)
    if undone is not None:
        reason = undone.get("reason") or "no reason given"
        raise ConfigError(f"{place}: the rung {evidence.rung!r} was {undone.get('status')} ({reason}); choose another")
    by_split = {row.get("split"): row for row in named}
    split = evidence.split or ("test" if "test" in by_split else "valid")
    if split not in by_split:
        raise ConfigError(
            f"{place}: the rung {evidence.rung!r} was estimated on {', '.join(map(str, by_split))} only, not on {split}"
        )
    row = by_split[split]
    machine = report.get("machine")
    rate = machine.get("usd_per_hour") if isinstance(machine, Mapping) else None
    per_thousand = _number(row, "usd_per_1k_calls", place)
    seconds = None if per_thousand is None or not rate else per_thousand * 3.6 / float(rate)
    return MeasuredRung(
        source=f"{path.name}, {evidence.rung} on {split}",
        quality=_quality(row, place),
        p95_ms=_number(row, "p95_ms", place),
        seconds_per_call=seconds or None,
        train_seconds=_number(row, "train_seconds", place),
        confirmed=split == "test",
    )


def _read(path: Path, needed_by: str) -> Mapping[str, Any]:
    try:
        found = json.loads(read_text(path))
    except DataError as error:
        raise ConfigError(f"{needed_by}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{needed_by}: {path} is not JSON ({error}); give a ladder's report.json") from None
    if not isinstance(found, dict) or "rungs" not in found:
        raise ConfigError(f"{needed_by}: {path} is not a ladder's report: it has no `rungs`")
    return cast("dict[str, Any]", found)


def _list(value: Any) -> Sequence[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _number(row: Mapping[str, Any], key: str, place: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ConfigError(f"{place}: {key} is {value!r}; a number from 0 on is wanted")
    return float(value)


def _quality(row: Mapping[str, Any], place: str) -> Share:
    estimate, interval = _number(row, "estimate", place), _list(row.get("interval"))
    if estimate is None or len(interval) != 2:
        raise ConfigError(f"{place}: the rung has no estimate with an interval")
    try:
        return Share(value=estimate, low=float(interval[0]), high=float(interval[1]))
    except (TypeError, ValueError):
        raise ConfigError(f"{place}: estimate {estimate!r} with interval {interval!r} is not a share of 1") from None
