"""What a server counted: its /metrics in Prometheus' text format, and its access log as JSON lines.

Text format: https://prometheus.io/docs/instrumenting/exposition_formats/. Counters only rise; one that fell was
restarted, and what it had counted before is lost to whoever reads the second snapshot alone.
"""

from __future__ import annotations

import datetime
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from bedplate.core.errors import DataError
from bedplate.core.files import read_text

PREFIX = "bedplate:"
NO_TENANT = "(no key)"

Labels = tuple[tuple[str, str], ...]
Samples = dict[str, dict[Labels, float]]
"""By family name without the prefix, then by labels."""

_COUNTED = ("prompt_tokens_total", "generation_tokens_total", "request_cost_usd_total")
_CALLS = ("e2e_request_latency_seconds_count", "request_success_total")  # the second counts a call's choices
_BUSY = "engine_step_seconds_total"
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


@dataclass(frozen=True)
class CountedUse:
    """Of one skin or tenant. calls: answered ones. cost_usd: at the server's own price, None where none was set."""

    calls: float = 0.0
    prompt_tokens: float = 0.0
    generation_tokens: float = 0.0
    cost_usd: float | None = None

    @property
    def tokens(self) -> float:
        return self.prompt_tokens + self.generation_tokens

    def __add__(self, other: CountedUse) -> CountedUse:
        costs = [usage.cost_usd for usage in (self, other) if usage.cost_usd is not None]
        return CountedUse(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.generation_tokens + other.generation_tokens,
            sum(costs) if costs else None,
        )


@dataclass(frozen=True)
class Counted:
    """Between two snapshots of a server. busy_seconds: of its engines' steps, None where they are not there."""

    by_skin: Mapping[str, CountedUse]
    busy_seconds: float | None
    warnings: tuple[str, ...] = ()


# --- /metrics


def read_metrics(path: Path) -> Samples:
    """The families of /metrics that are Bedplate's. DataError names the line that is not in the format."""
    samples: Samples = defaultdict(dict)
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, labels, value = _sample(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}; save the text of /metrics as it comes") from None
        if name.startswith(PREFIX):
            samples[name.removeprefix(PREFIX)][labels] = value
    if not samples:
        raise DataError(f"{path}: there is no metric of Bedplate's in it (their names begin with {PREFIX})")
    return dict(samples)


def _sample(line: str) -> tuple[str, Labels, float]:
    """`name{label="value", …} number [timestamp]`."""
    brace = line.find("{")
    space = line.find(" ")
    labels: list[tuple[str, str]] = []
    if brace >= 0 and (space < 0 or brace < space):
        name, at = line[:brace], brace + 1
        while line[at : at + 1] != "}":
            equals = line.find('="', at)
            if equals < 0:
                raise ValueError("labels without an end")
            key, (value, at) = line[at:equals].strip(" ,"), _quoted(line, equals + 2)
            labels.append((key, value))
            at += len(line[at:]) - len(line[at:].lstrip(" ,"))
        fields = line[at + 1 :].split()
    else:
        name, fields = line[:space], line[space:].split()
    if not name or space < 0 or not 1 <= len(fields) <= 2:
        raise ValueError(f"{line[:60]!r} is not a sample")
    return name.strip(), tuple(labels), float(fields[0])


def _quoted(line: str, at: int) -> tuple[str, int]:
    """A label's value that begins at `at`, and where it ends, after its quote."""
    out: list[str] = []
    while at < len(line):
        pair = line[at : at + 2]
        if pair in _ESCAPES:
            out.append(_ESCAPES[pair])
            at += 2
        elif line[at] == '"':
            return "".join(out), at + 1
        else:
            out.append(line[at])
            at += 1
    raise ValueError("a label's value without an end")


def count_between(before: Path | None, after: Path) -> Counted:
    """What was counted from one snapshot to the next; without `before`, since the server began."""
    later = read_metrics(after)
    earlier: Samples = {} if before is None else read_metrics(before)
    restarted = False

    def grown(name: str) -> dict[Labels, float]:
        nonlocal restarted
        old, growth = earlier.get(name, {}), dict[Labels, float]()
        for labels, value in later.get(name, {}).items():
            fell = value < old.get(labels, 0.0)
            restarted |= fell
            growth[labels] = value if fell else value - old.get(labels, 0.0)
        restarted |= any(labels not in later.get(name, {}) for labels in old)
        return growth

    prompt, generated, cost = (_by_model(grown(name)) for name in _COUNTED)
    calls = _by_model(grown(next((name for name in _CALLS if name in later), _CALLS[0])))
    names = sorted({*prompt, *generated, *cost, *calls})
    priced = "request_cost_usd_total" in later and bool(cost)
    by_skin = {
        name: CountedUse(
            calls.get(name, 0.0),
            prompt.get(name, 0.0),
            generated.get(name, 0.0),
            cost.get(name, 0.0) if priced else None,
        )
        for name in names
    }
    busy = sum(grown(_BUSY).values()) if _BUSY in later else None
    warnings = [f"{after}: the server was restarted after {before}: what it counted in between is missing"]
    return Counted(by_skin, busy, tuple(warnings) if restarted else ())


def _by_model(samples: Mapping[Labels, float]) -> dict[str, float]:
    totals: defaultdict[str, float] = defaultdict(float)
    for labels, value in samples.items():
        totals[dict(labels).get("model_name", "")] += value
    return dict(totals)


def together(counted: Iterable[Counted]) -> Counted:
    """Of several servers."""
    by_skin: dict[str, CountedUse] = {}
    busy: list[float | None] = []
    warnings: list[str] = []
    for server in counted:
        for name, usage in server.by_skin.items():
            by_skin[name] = by_skin.get(name, CountedUse()) + usage
        busy.append(server.busy_seconds)
        warnings += server.warnings
    measured_seconds = [seconds for seconds in busy if seconds is not None]
    return Counted(by_skin, sum(measured_seconds) if len(measured_seconds) == len(busy) else None, tuple(warnings))


# --- the access log


@dataclass
class Logged:
    """Answered model calls of an access log. outside: calls before or after the period; skipped: all other lines."""

    by_tenant: dict[str, CountedUse] = field(default_factory=dict[str, CountedUse])
    by_skin: dict[str, CountedUse] = field(default_factory=dict[str, CountedUse])
    outside: int = 0
    skipped: int = 0


def read_access_logs(paths: Iterable[Path], begins: datetime.datetime, ends: datetime.datetime) -> Logged:
    """Calls from `begins` until before `ends`. DataError where a log is text: only JSON says whose a value is."""
    logged = Logged()
    for path in paths:
        calls = 0
        for line in read_text(path).split("\n"):
            if not line.strip():
                continue
            fields = _fields(line)
            if fields is None or "model" not in fields or "completion" not in fields:
                logged.skipped += 1
                continue
            calls += 1
            moment = _time(fields.get("time"))
            if moment is not None and not begins <= moment < ends:
                logged.outside += 1
                continue
            usage = CountedUse(
                1.0, _count(fields, "prompt"), _count(fields, "completion"), _cost(fields.get("cost_usd"))
            )
            tenant = str(fields.get("tenant") or fields.get("key") or NO_TENANT)
            model = str(fields["model"])
            logged.by_tenant[tenant] = logged.by_tenant.get(tenant, CountedUse()) + usage
            logged.by_skin[model] = logged.by_skin.get(model, CountedUse()) + usage
        if not calls:
            raise DataError(
                f"{path}: there is no answered model call in it; it must be the access log as JSON lines "
                "(`logs: {format: json}` in the server's file)"
            )
    return logged


def _fields(line: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return cast("dict[str, Any]", fields) if isinstance(fields, dict) else None


def _time(value: object) -> datetime.datetime | None:
    try:
        moment = datetime.datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)


def _count(fields: Mapping[str, Any], name: str) -> float:
    value = fields.get(name)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return float(cast("float", value)) if usable else 0.0


def _cost(value: object) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return float(cast("float", value)) if usable else None
