"""Parts of report.json about the climb: rules of thumb, forecasts, what was not tried, guards of child bases, formats,
the machine, and where the time went (see `report.schema`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from bedplate.report.schema_parts import Count, Part, Seconds, Share

Dollars = Annotated[float, Field(ge=0)]
Milliseconds = Annotated[float, Field(ge=0)]


class RulePrediction(Part):
    """What a rule of thumb said before the climb, and whether it held on this task."""

    rule: str
    prediction: str
    because: str
    favours: Literal["tuning", "prompting"]
    held: Literal["true", "false", "undecided", "not_tested"]
    """Not tested where one side was not run, or none of its rungs used the labels."""
    rests_on: str
    """What that is judged by."""


class Forecast(Part):
    """What a rung was expected to take before it started, and what it took."""

    rung: str
    expected_seconds: Seconds | None
    """Null where it was not planned."""
    expected_usd: Dollars | None
    """This machine's time at its price, and what endpoints charge."""
    seconds: Seconds
    usd: Dollars


class NotTried(Part):
    """A rung, or a part of one, that was left out."""

    rung: str
    what: Literal["rung", "part"]
    kind: Literal["impossible", "budget", "rule"]
    """`--exhaustive` climbs what a budget or a rule left out."""
    reason: str


class Guard(Part):
    """Something that a child base may not lose, against its parent."""

    guard: Literal["retention", "loss", "refusal"]
    holds: bool | None
    """Null: undecided, so that the skin cannot pass."""
    measure: str
    parent: float | None
    child: float | None
    drop: float | None
    """What has become worse."""
    lower: float | None
    upper: float | None
    """One-sided bounds of the drop; null where there is none."""
    limit: float
    """What the drop must be under."""
    confidence: Share
    n: Count
    groups: Count
    reason: str
    needed_n: Count | None
    """Rows for 80% power at the drop that was read; null where it is decided or none would do."""
    details: dict[str, Any]


class Limit(Part):
    """A nominee's p95 of single calls, as they were timed on test, against the budget."""

    limit: Literal["p95_ms"]
    holds: bool | None
    """Null: undecided, so that the skin cannot pass."""
    value: Milliseconds
    lower: Milliseconds | None
    upper: Milliseconds | None
    """One-sided bounds by order statistics; null where the calls are too few."""
    budget: Milliseconds
    confidence: Share
    calls: Count
    needed: Count
    """The least calls that can show it."""
    reason: str


class GuardRow(Part):
    """One item or document; for the loss, `parent` and `child` are sums over its tokens."""

    id: str
    group: str
    parent: float
    child: float
    tokens: Count | None = None


class TriedFormat(Part):
    """A skin in a format of quantised weights, beside itself in its own weights, on the same rows of valid."""

    weights: str
    kernel: str
    kept: bool
    reason: str
    """What the numbers say, in a sentence."""
    own_estimate: float
    estimate: float
    """In the format."""
    difference: float
    """In the format minus in its own weights."""
    lower: float | None
    """One-sided bound of the difference at `confidence`; null where there is none. A format is kept where this lies
    above -margin and its median call takes clearly less time."""
    confidence: Share
    margin: Share
    n: Count
    groups: Count
    changed: Count
    """Answers that are not the same."""
    needed_n: Count | None
    """Rows for 80% power at this difference; null where it is decided or none would do."""
    own_p50_ms: Milliseconds
    own_p95_ms: Milliseconds
    own_usd_per_1k_calls: Dollars
    """Single calls in its own weights, timed in turns with those in the format."""
    p50_ms: Milliseconds
    p95_ms: Milliseconds
    usd_per_1k_calls: Dollars


class FormatLeftOut(Part):
    """A format that was not tried."""

    weights: str
    kind: Literal["impossible", "budget"]
    reason: str


class Formats(Part):
    """The weights that a candidate is served in: looked at for nominees, before test was opened."""

    weights: str | None
    kernel: str | None
    """What it was climbed in; null where that is not one base of this machine, or no format could be."""
    kept: str | None
    """The format that it is judged on test and served in instead; null: none."""
    reason: str
    tried: tuple[TriedFormat, ...]
    left_out: tuple[FormatLeftOut, ...]


class Machine(Part):
    usd_per_hour: Dollars
    as_of: str
    processor: str
    cores: Count | None
    system: str
    python: str


class Timing(Part):
    """Where the time went. A rung's compute is its climb, its guards and its test."""

    seconds: Seconds
    """From the start until the report is put together; time of finished rungs that a resumed run found counts."""
    usd: Dollars
    rungs: dict[str, Seconds]
    guards: dict[str, Seconds]
    formats: dict[str, Seconds] = Field(default_factory=dict[str, float])
    """By candidate; empty in reports from before there were any."""
    tests: dict[str, Seconds]
    latency: dict[str, Seconds] = Field(default_factory=dict[str, float])
    """Calls of candidates that were timed once more before test."""
    reserved: Seconds | None = None
    """What the tests were expected to take when they began; null where there were none."""
    processor_seconds: Seconds
    """Processor time of this process, summed over its threads."""
    resumed: bool
    """Whether an earlier run had done some of the rungs, so that these times are not one run's."""
