"""Parts of report.json: requirements, groups, labels, examples, learning curves; and of the climb: rules of thumb,
forecasts, what was not tried, guards of child bases, formats, the machine and the time (see `report.schema`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from bedplate.core.config import Strict

Interval = tuple[float, float]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Dollars = Milliseconds = Annotated[float, Field(ge=0)]
Split = Literal["train", "valid", "test"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Part(Strict):
    """A part of the report: its fields and no others; what stands under a field is published as its description."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Requirement(Part):
    """Something that a nominee has to be shown to fulfil on the test rows, beside the bar."""

    requirement: str
    """What is asked, in words."""
    metric: str
    slice: str | None
    """Only rows of this one, as "language: de"; null for all."""
    holds: bool | None
    """Null: undecided, so that the skin cannot pass."""
    value: float | None
    """Null where there is none. Of a comparison, the nominee minus what it is compared with."""
    lower: float | None
    upper: float | None
    """One-sided bounds, each at `confidence`; null where the rows allow none."""
    bar: float
    direction: Literal["at_least", "at_most"]
    """Which side of the bar the value, and so the bound on the other side of it, has to be shown to be on."""
    confidence: Share
    n: Count
    groups: Count
    needed_n: Count | None
    """Test rows in all for 80% power were `value` the truth; null where it is decided or none would do."""
    reason: str


class HiddenGroups(Part):
    """Rows that look as if they belonged together, beyond the groups that are declared."""

    kind: Literal["column", "near_duplicates", "order", "drift"]
    name: str
    """The column; `near_duplicates`; `order` for rows that stand beside each other."""
    strong: bool
    """Whether it stops a run that does not answer it."""
    rows: Count
    """Looked at: of declared groups one row each."""
    groups: Count
    worth: float
    """How many groups of one size these are as good as: (Σm)² / Σm²."""
    alike_targets: float | None = None
    alike_texts: float | None = None
    """Intra-class correlations; null where they were not or could not be measured."""
    p_value: Share | None = None
    """The lesser of the two, corrected (Holm) for all that was looked at; null where nothing is tested."""
    design_effect: float
    """By how much the variance of an estimate would grow if the scores were as alike."""
    effective_rows: float
    """What `rows` would be worth."""
    wider: float
    """How many times as far from the estimate its bound would lie."""
    says: str
    answer: str | None
    """Why it is no group, as the task file says; null where it does not."""


class Grouping(Part):
    """Which rows are kept together, and what was looked for before they were split."""

    columns: tuple[str, ...]
    """Rows that share a value of any of them are one group."""
    ungrouped_because: str | None
    found: tuple[HiddenGroups, ...]
    """Strong findings first."""
    limits: tuple[str, ...]
    """What was not looked at, because it is much."""

    @property
    def unanswered(self) -> tuple[HiddenGroups, ...]:
        """Strong findings that the task file says nothing of."""
        return tuple(finding for finding in self.found if finding.strong and finding.answer is None)


class SecondLabels(Part):
    """Rows with a second label, of all splits: how often the two agree, and what that leaves a perfect model."""

    column: str
    n: Count
    of: Count
    """Rows of all splits."""
    groups: Count
    agreement: Share | None = None
    agreement_interval: Interval | None = None
    """Two-sided, 95%, groups respected."""
    ceiling: Share | None = None
    """The score of a perfect model against one of the labels, were every row equally hard; null for other metrics."""
    ceiling_interval: Interval | None = None
    """Two-sided, 95%: from the agreement itself, were no model more often right than a second label, to the ceiling at
    the upper end of the agreement."""
    highest: Share | None = None
    """One-sided upper bound of the ceiling; a bar above it is refused."""
    confidence: Share | None = None
    reason: str | None = None
    """Why there is no ceiling, or no bound of it."""
    said: str | None = None
    """All of it as one line."""


class Look(Part):
    """Test rows were judged when so many of them had labels."""

    labels: Count
    """Test rows with a label, in the order that was fixed before."""
    share: Annotated[float, Field(gt=0, le=1)]
    """Share of the rows that the budget reaches to; by this the error is spent."""
    level: Share
    """What the bound of a single nominee is taken at, of the error that this verdict may spend."""
    rows: Sha256
    """SHA-256 of these rows, their targets and groups."""


class LabelBudget(Part):
    """Labels that were bought for this verdict."""

    budget: Count
    """At most so many."""
    bought: dict[str, Count]
    """By split."""
    given: dict[str, Count]
    """By split: rows that came with a label."""
    unlabelled: dict[str, Count]
    """By split: rows that have none yet."""
    skipped: Count
    """Rows that nobody could label; they are in no split."""
    planned: Count
    """Test rows that are judged at most."""
    looks: tuple[Look, ...]
    """The last is this one; those before it did not decide."""
    chosen: str
    """How the train rows were chosen."""
    usd_per_label: float | None = None
    said: str


class CalibrationBin(Part):
    low: Share
    high: Share
    n: Count
    confidence: Share
    """Mean, of the rows in it."""
    accuracy: Share
    interval: Interval
    """Interval of the accuracy; 95%, groups respected."""


class Calibration(Part):
    bins: tuple[CalibrationBin, ...]
    """Without the empty ones."""
    of: Annotated[int, Field(ge=1)]
    """Bins of equal width between 0 and 1, empty ones included."""
    error: Share
    """Expected calibration error over these bins: mean |accuracy − confidence|, weighted by rows."""
    n: Count


class Slice(Part):
    by: str
    value: str
    n: Count
    groups: Count
    estimate: float
    """Mean row score."""
    interval: Interval


class Confusion(Part):
    """Rows by what was wanted (line) and answered (column); the last column is answers that were no label."""

    labels: tuple[str, ...]
    counts: tuple[tuple[Count, ...], ...]


class Focus(Part):
    """A closer look at the skin that the verdict is about."""

    rung: str
    split: Split
    calibration: Calibration | None
    """Null where answers carry no scores."""
    confusion: Confusion | None
    """Null for outputs without labels."""
    slices: tuple[Slice, ...]
    """Worst first."""


class ExampleRow(Part):
    """A valid row with its text and what every rung answered."""

    id: str
    why: Literal["wrong", "disagreement", "right"]
    """The judged skin's surest mistakes; rows where rungs disagree; some right answers."""
    text: str
    target: str
    answers: dict[str, str | None]
    """Rung → its answer; null: nothing usable."""
    scores: dict[str, float]
    """Rung → the row's score."""


class Examples(Part):
    rung: str | None
    """The judged rung."""
    split: Literal["valid"]
    """Test texts stay closed."""
    rows: tuple[ExampleRow, ...]
    disagreeing: Count
    """Valid rows on which not all rungs have the same score; the first of them are shown."""


Labels = float | Literal["below", "beyond"]
"""A number of labels; below: at the smallest size already; beyond: not with the labels there are."""


class Draw(Part):
    """One draw of the labels, by itself."""

    seed: int
    labels: Annotated[int, Field(ge=1)]
    """Rows that were trained on: whole groups, so rarely the size that was asked for."""
    estimate: float
    train_seconds: Annotated[float, Field(ge=0)]


class Flat(Part):
    """A rung that learns from no labels of train."""

    rung: str
    estimate: float
    """The mean over the draws, where there are several."""
    interval: Interval
    usd_per_1k_calls: Dollars
    train_usd: Dollars
    """What training (or searching) cost at the machine's price, on average."""


class Point(Flat):
    """One rung at one number of labels."""

    size: Annotated[int, Field(ge=1)]
    """Labels asked for."""
    labels: Annotated[float, Field(ge=1)]
    """Labels used: the mean over the draws."""
    draws: tuple[Draw, ...]


class Difference(Part):
    labels: float
    difference: float
    """Tuned minus prompted."""
    interval: Interval


class Crossover(Part):
    """From how many labels on the tuned rung stays above the prompted one, on this task. A number, or below: at the
    smallest size already; beyond: not with the labels there are."""

    tuned: str
    prompted: str
    labels: Labels
    interval: tuple[Labels, Labels] | None
    """Null where valid has too few groups for one."""
    crosses: Share
    """Share of the resamples in which tuning overtakes within the labels there are (at the smallest size, too)."""
    draws: Annotated[int, Field(ge=1)]
    differences: tuple[Difference, ...]


class BreakEven(Part):
    """From how many calls on tuning has paid for itself, at one size; costs at the machine's price, labels unpriced
    (both sides have the same)."""

    tuned: str
    prompted: str
    size: Annotated[int, Field(ge=1)]
    calls: float | None
    """0: from the first call; null: never."""
    reason: str


class Curve(Part):
    metric: str
    split: Literal["valid"]
    """Learning curves never see test."""
    confidence: Share
    asked: tuple[int, ...]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    points: tuple[Point, ...]
    flat: tuple[Flat, ...]
    crossovers: tuple[Crossover, ...]
    """Every tuned rung against every prompted one; the first is the one that is spoken of."""
    break_even: tuple[BreakEven, ...]
    left_out: tuple[str, ...]
    says: tuple[str, ...]
    """The crossover and the break-even in sentences."""
    method: str
    """How intervals were made, and what they leave out."""


# --- the climb


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
    """One-sided bounds by order statistics and what the calls are worth; null where these are too few."""
    budget: Milliseconds
    confidence: Share
    calls: Count
    worth: Annotated[float, Field(ge=0)] | None = None
    """How many independent calls the calls are counted as beside the budget."""
    needed: Count
    """The least independent calls that can show it; where it is undecided, about how many calls would decide."""
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
