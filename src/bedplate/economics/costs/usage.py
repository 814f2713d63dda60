"""What a server counted: its /metrics in Prometheus' text format, and its access log as JSON lines.

Text format: https://prometheus.io/docs/instrumenting/exposition_formats/. Counters only rise; one that fell was
restarted, and what it had counted before is lost to whoever reads the second snapshot alone.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from bedplate.core.errors import DataError
from bedplate.core.files import read_text

PREFIX = "bedplate:"
NO_TENANT = "(no key)"

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]  # by family name without the prefix, then by labels

_COUNTERS = ("prompt_tokens_total", "generation_tokens_total", "request_cost_usd_total")
_CALLS = ("e2e_request_latency_seconds_count", "request_success_total")  # the second counts a call's choices
_BUSY = "engine_step_seconds_total"
_LABEL = re.compile(r'\s*(\w+)="((?:[^"\\]|\\.)*)"\s*,?')
_SAMPLE = re.compile(
    r'(?P<name>[\w:]+)\s*(?:\{(?P<labels>(?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?\s+(?P<value>\S+)(?:\s+\S+)?\s*'
)
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


@dataclass(frozen=True)
class MeteredUse:
    """What one skin or tenant used. calls: answered ones. cost_usd: at the server's own price, None where none was
    set."""

    calls: float = 0.0
    prompt_tokens: float = 0.0
    generation_tokens: float = 0.0
    cost_usd: float | None = None

    @property
    def tokens(self) -> float:
        return self.prompt_tokens + self.generation_tokens

    def __add__(self, other: MeteredUse) -> MeteredUse:
        costs = [usage.cost_usd for usage in (self, other) if usage.cost_usd is not None]
        return MeteredUse(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.generation_tokens + other.generation_tokens,
            sum(costs) if costs else None,
        )


def _nobody() -> dict[str, MeteredUse]:
    """What each name used, nothing until it is added to."""
    return defaultdict(MeteredUse)


@dataclass
class Use:
    """Between two snapshots of a server, or in a period of its access log, which alone knows tenants. busy_seconds: of
    its engines' steps, None where they are not there. outside: calls of the log before or after the period."""

    by_skin: dict[str, MeteredUse] = field(default_factory=_nobody)
    by_tenant: dict[str, MeteredUse] = field(default_factory=_nobody)
    busy_seconds: float | None = None
    warnings: tuple[str, ...] = ()
    outside: int = 0


def read_metrics(path: Path) -> Samples:
    """The families of /metrics that are Bedplate's. DataError names the line that is not in the format."""
    samples: Samples = defaultdict(dict)
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _SAMPLE.fullmatch(line)
        try:
            if match is None:
                raise ValueError(f"{line[:60]!r} is not a sample")
            name, value = match["name"], float(match["value"])
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}; save the text of /metrics as it comes") from None
        if name.startswith(PREFIX):
            labels = tuple((label, _unescaped(text)) for label, text in _LABEL.findall(match["labels"] or ""))
            samples[name.removeprefix(PREFIX)][labels] = value
    if not samples:
        raise DataError(f"{path}: there is no metric of Bedplate's in it (their names begin with {PREFIX})")
    return dict(samples)


def _unescaped(text: str) -> str:
    return re.sub(r"\\.", lambda pair: _ESCAPES.get(pair[0], pair[0]), text)


def use_between(before: Path | str | None, after: Path) -> Use:
    """What was counted from one snapshot to the next; without `before`, since the server began."""
    later, earlier = read_metrics(after), read_metrics(Path(before)) if before else Samples()
    calls = next((name for name in _CALLS if name in later), _CALLS[0])
    restarted = False
    growth = {name: defaultdict[str, float](float) for name in (calls, *_COUNTERS, _BUSY)}
    for name, by_model in growth.items():
        old, new = earlier.get(name, {}), later.get(name, {})
        restarted |= any(new.get(labels, -math.inf) < value for labels, value in old.items())
        for labels, value in new.items():
            since = old.get(labels, 0.0)
            by_model[dict(labels).get("model_name", "")] += value - since if since <= value else value
    *counters, busy = growth.values()
    use = Use(busy_seconds=sum(busy.values()) if _BUSY in later else None)
    for name in sorted(set[str]().union(*counters)):
        answered, prompt, generated, usd = (counter.get(name, 0.0) for counter in counters)
        use.by_skin[name] = MeteredUse(answered, prompt, generated, usd if counters[-1] else None)
    if restarted:
        use.warnings = (f"{after}: the server was restarted after {before}: what it counted in between is missing",)
    return use


def combine(uses: Iterable[Use]) -> Use:
    """The use of several servers."""
    uses, whole = list(uses), Use()
    for use in uses:
        for name, usage in use.by_skin.items():
            whole.by_skin[name] += usage
        whole.warnings += use.warnings
    busy = [use.busy_seconds for use in uses if use.busy_seconds is not None]
    whole.busy_seconds = sum(busy) if len(busy) == len(uses) else None
    return whole


def read_access_logs(paths: Iterable[Path], begins: datetime.datetime, ends: datetime.datetime) -> Use:
    """Calls from `begins` until before `ends`. DataError where a log is text: only JSON says whose a value is."""
    logged = Use()
    for path in paths:
        calls = [
            fields for fields in map(_fields, read_text(path).split("\n")) if {"model", "completion"} <= fields.keys()
        ]
        if not calls:
            raise DataError(
                f"{path}: there is no answered model call in it; it must be the access log as JSON lines "
                "(`logs: {format: json}` in the server's file)"
            )
        for fields in calls:
            try:
                inside = begins <= utc(datetime.datetime.fromisoformat(str(fields.get("time")))) < ends
            except ValueError:  # a call whose time cannot be read counts
                inside = True
            logged.outside += not inside
            if inside:
                prompt, completion, usd = (_number(fields.get(name)) for name in ("prompt", "completion", "cost_usd"))
                usage = MeteredUse(1.0, prompt or 0.0, completion or 0.0, usd)
                logged.by_tenant[str(fields.get("tenant") or fields.get("key") or NO_TENANT)] += usage
                logged.by_skin[str(fields["model"])] += usage
    return logged


def _fields(line: str) -> dict[str, Any]:
    """A line's JSON object; empty where it is none."""
    try:
        fields = json.loads(line)
    except ValueError:
        return {}
    return cast("dict[str, Any]", fields) if isinstance(fields, dict) else {}


def utc(moment: datetime.datetime) -> datetime.datetime:
    """A time without a zone is taken as UTC."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        return None
    return float(value)
