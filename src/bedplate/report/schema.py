"""The schema of report.json as pydantic models: the source of its published JSON schema (docs/report.schema.json).

A new fact goes into the model of its part, beside the code that writes it. Other fields are refused, so that a field
that is written and not published fails the tests.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from bedplate.core.config import Strict
from bedplate.report import schema_parts as parts

SCHEMA_VERSION: Literal[2] = 2


class BudgetChange(parts.Part):
    """A key of the budget that kept a candidate out, and the value that would do."""

    rung: str
    key: str
    given: float
    needed: float
    estimate: float | None
    """The candidate's on valid; null where it was not tried."""


class Verdict(parts.Part):
    status: Literal["PASS", "FAIL", "INSUFFICIENT_DATA", "OUT_OF_BUDGET"]
    skin: str | None
    """Directory of the skin that passed, relative to the report's."""
    reason: str
    rung: str | None
    """The rung of the skin that passed."""
    exploratory: bool
    """Whether some of the test rows had served an earlier verdict: only fresh rows can confirm."""
    kept_out: tuple[BudgetChange, ...] = ()
    """What the budget kept out, those that look best first."""


class Seed(parts.Part):
    """One seed by itself; seeds are a spread and never pooled."""

    seed: int
    estimate: float
    interval: parts.Interval
    train_seconds: parts.Seconds
    chosen: bool
    """Whether this seed's skin is the rung's; chosen on valid."""
    prompt: str | None = None
    """The prompt that it was trained on: "chosen", as the base as it is chose it, or "bare", the inputs and the cue."""


class Row(parts.Part):
    """One candidate on one split."""

    rung: str
    """For another than the task's first base with `@` and the base behind it."""
    base: str | None
    """The base it stands on, as the task file gives it; null where it stands on none."""
    status: Literal["done", "skipped", "failed"]
    reason: str
    """How it was made, or why it was not."""
    split: parts.Split
    """The rows that `estimate` was made on."""
    estimate: float | None
    interval: parts.Interval | None
    """Two-sided, 95%, groups respected."""
    n: parts.Count
    groups: parts.Count
    coverage: Annotated[float, Field(ge=0, le=1)] | None
    """The share of rows on which the skin did not abstain."""
    answered: float | None
    """Mean row score among those."""
    seeds: tuple[Seed, ...]
    """On valid, of rungs that train with several."""
    usd_per_1k_calls: Annotated[float, Field(ge=0)] | None
    """Measured seconds of single calls at the machine's price."""
    p50_ms: Annotated[float, Field(ge=0)] | None
    p95_ms: Annotated[float, Field(ge=0)] | None
    usd_interval: tuple[float, float] | None = None
    """Two-sided, 95%: the price of 1,000 calls by the mean time of a call; null where what a call costs is charged."""
    p95_bounds_ms: tuple[float | None, float | None] | None = None
    """One-sided bounds, each at the target's confidence, by order statistics; null where the calls are too few."""
    p95_worth: Annotated[float, Field(ge=0)] | None = None
    """How many independent calls those bounds count the calls as."""
    calls: parts.Count | None = None
    """Single calls that were timed; `rows.calls` has their seconds."""
    load: Annotated[float, Field(ge=0)] | None = None
    """Load of the machine in the minute before the last of them: runnable processes, its own among them."""
    train_seconds: parts.Seconds | None
    skin: str | None
    """Directory of its skin, relative to the report's; null where it made none."""
    weights: str | None = None
    kernel: str | None = None
    """What it was judged and is served with; null without a base, for remote models and for cascades."""


class Confirmation(parts.Part):
    """A nominee on test; bounds are corrected for the number of nominees."""

    rung: str
    estimate: float
    lower: float | None
    lower_confidence: parts.Share
    upper: float | None
    upper_confidence: parts.Share
    passed: bool
    reached: bool = True
    """False where nominees are tested in a fixed order, and one before it did not pass."""
    expected: float | None = None
    """What its truth probably is: valid, drawn toward the other candidates, and test together; null in old reports."""
    needed_n: parts.Count | None
    """Test rows in all for 80% power at the next verdict, if `expected` is right; null where none are promised."""
    expected_low: float | None = None
    """The lower end of an 80% interval of `expected`, of costs the upper end; null where `needed_n` is."""
    power_at_low: parts.Share | None = None
    """The power of a verdict on `needed_n` rows if `expected_low` is the truth."""
    reason: str | None
    """Why its rows allow no bound; null where there is one."""


class Nominees(parts.Part):
    """Who was fixed on valid, before test was opened."""

    nominees: tuple[str, ...]
    """Cheapest first."""
    primary: str | None
    """The best of them on valid."""
    versus: str | None
    """What the primary is compared with."""
    reasons: dict[str, str]
    """For every candidate, why it is in or out."""
    confirmations: tuple[Confirmation, ...]


class Comparison(parts.Part):
    """`a` minus `b` on the same test rows."""

    a: str
    b: str
    planned: bool
    """The one pair that was fixed before test was opened; its p-value needs no correction."""
    a_estimate: float
    b_estimate: float
    metric: str
    split: parts.Split
    difference: float
    interval: parts.Interval
    confidence: parts.Share
    p_value: parts.Share
    p_holm: parts.Share
    """Corrected (Holm) for all nominees."""
    test: str
    n: parts.Count
    groups: parts.Count


class Target(parts.Part):
    metric: str
    value: float
    """The bar. Where the target gives none, the estimate of what it is against on the same rows, less the margin."""
    value_given: bool = True
    """False where the target gives no value: `value` is then an estimate, and bounds are of the difference from it."""
    confidence: parts.Share
    against: str | None = None
    """What a skin is compared with: `current`, the system that runs today, or a candidate; null for nothing."""
    margin: float | None = None
    """A skin may be worse than that by less than this."""
    better_by: float | None = None
    """A skin has to be better than that by more than this."""
    lower_is_better: bool = False
    """Whether estimates are US dollars of a call: what answers cost, and in rows the price of the call as well."""
    worst_usd: float | None = None
    """Then a row's score is 1 - cost / worst_usd."""


class Tried(Strict):
    """One variant of a rung's search; a rung may add its own facts (`C`, `shots`)."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    name: str
    n: parts.Count
    split: parts.Split
    estimate: float | None = None
    failure: str | None = None
    """Why it could not be used, instead of an estimate."""


class Export(parts.Part):
    """The skin as read back from disk against the answers that it was chosen by."""

    rows: parts.Count
    equal: parts.Count
    difference: Annotated[float, Field(ge=0)]


class Ledger(parts.Part):
    verdict_id: parts.Sha256
    number: Annotated[int, Field(ge=1)]
    """This is the number-th verdict on some of these rows."""
    alpha: parts.Share
    """The error that it may spend."""
    notes: tuple[str, ...] = ()
    """What is wrong with the ledgers, or lacking where one should be: they are at home and beside the data."""


class Lengths(parts.Part):
    """Characters of all inputs of a row: deciles, from the shortest to the longest."""

    deciles: Annotated[tuple[parts.Count, ...], Field(min_length=11, max_length=11)]


class Suspect(parts.Part):
    """A valid row whose label several rungs agree against, each surely: perhaps the label is wrong."""

    id: str
    text: str
    target: str
    answer: str
    rungs: tuple[str, ...]
    confidence: parts.Share
    """The mean over those rungs."""


class DataCard(parts.Part):
    """What the rows are like. Test appears where it was opened."""

    labels: dict[parts.Split, dict[str, parts.Count]] | None
    """Rows of each label; null for outputs without labels."""
    lengths: dict[parts.Split, Lengths]
    suspects: tuple[Suspect, ...]
    suspect_count: parts.Count
    """All there are; `suspects` has the surest."""


class Data(parts.Part):
    counts: dict[str, parts.Count]
    """Rows read, dropped (by reason: duplicates, contradictory, empty_text, …) and in each split."""
    hashes: dict[str, str]
    """sha256 of files (`file:…`) and of splits."""
    notes: tuple[str, ...]
    licences: tuple[str, ...]
    test_openings: tuple[str, ...]
    """Why test was opened, each time in this run."""
    grouping: parts.Grouping | None = None
    """Which rows are kept together, and what was looked for before that; null in reports from before it was."""
    card: DataCard
    second_labels: parts.SecondLabels | None = None
    """Where the task names a column of second labels."""


class BaseUsed(parts.Part):
    """A base of the task."""

    name: str
    """As the task file gives it."""
    source: str
    kind: Literal["decoder", "encoder"]
    family: str
    weights_id: str
    tokenizer_id: str
    template_id: str
    dtype: str
    weights: str
    kernel: str
    bytes: parts.Count
    """Bytes of its parameters, as they are held."""


class SkinMade(parts.Part):
    """What a rung left on disk."""

    directory: str
    skin_id: parts.Sha256
    kind: str
    seed: int | None
    parents: tuple[str, ...]
    """Ids of the skins that it was made from."""
    plan: dict[str, Any]
    """What decided how much was done: with data, base and seed all that is needed to make it again."""
    bases: dict[str, str]
    """Role (main, embedder) → weights_id, or an endpoint's model and address."""


class Lineage(parts.Part):
    """From what to what: data → splits (`data.hashes`) → base → skins, under `settings`."""

    bases: tuple[BaseUsed, ...]
    """As the task file has them, its first in front."""
    skins: dict[str, SkinMade]
    """By rung."""


class Settings(parts.Part):
    seed: int
    budget: dict[str, int | float | None]
    """The task file's limits of a skin and of the ladder."""
    budget_seconds: parts.Seconds | None
    exhaustive: bool
    """Whether budgets and rules of thumb left nothing out."""
    rungs: tuple[str, ...]
    version: str
    """Bedplate's."""
    environment: dict[str, str]
    """Versions of the code (its sources' hash too) and of libraries, the processor, and torch's threads."""


class RowResult(parts.Part):
    """One row of an evaluation, so that anything can be recomputed."""

    id: str
    row_hash: parts.Sha256
    group: str
    target: str
    prediction: str | None
    score: float
    length: parts.Count
    scores: dict[str, float] | None
    """Log-scores of the labels."""
    seconds: parts.Seconds | None
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How much of the traffic it stands for: 1 on average, and 1 where it is not said."""
    slices: dict[str, str] | None = None
    """Column → value, of the columns that `data.slices` and `data.traffic` name."""


class Rows(parts.Part):
    valid: dict[str, tuple[RowResult, ...]]
    test: dict[str, tuple[RowResult, ...]]
    calls: dict[parts.Split, dict[str, tuple[parts.Seconds, ...]]] = Field(
        default_factory=dict[parts.Split, dict[str, tuple[float, ...]]]
    )
    """Seconds of the single calls that p50, p95 and the price were read off, in the order in which they were made."""
    guards: dict[str, dict[str, tuple[parts.GuardRow, ...]]]
    """Child base's candidate → guard → what it rests on."""


class ReportFile(parts.Part):
    """report.json, what `bedplate adapt` found."""

    schema_version: Literal[2]
    task: str
    verdict: Verdict
    rungs: tuple[Row, ...]
    nominees: Nominees
    comparisons: tuple[Comparison, ...]
    target: Target
    predictions: tuple[parts.RulePrediction, ...]
    """Made before the climb; they order it and decide nothing."""
    requirements: dict[str, tuple[parts.Requirement, ...]] = Field(
        default_factory=dict[str, tuple[parts.Requirement, ...]]
    )
    """For nominees, what the target asks for beside its bar."""
    guards: dict[str, tuple[parts.Guard, ...]]
    """For nominees that stand on a child base."""
    limits: dict[str, tuple[parts.Limit, ...]] = Field(default_factory=dict[str, tuple[parts.Limit, ...]])
    """For nominees, where the budget limits the time of a call."""
    formats: dict[str, parts.Formats] = Field(default_factory=dict[str, parts.Formats])
    """By candidate."""
    forecasts: tuple[parts.Forecast, ...]
    not_tried: tuple[parts.NotTried, ...]
    search: dict[str, tuple[Tried, ...]]
    """Rung → what it tried, and on which rows."""
    details: dict[str, dict[str, Any]]
    """Rung → its own facts."""
    export: dict[str, Export]
    ledger: Ledger | None
    """Null where test was not opened."""
    labels: parts.LabelBudget | None = None
    """Where labels were bought for this verdict."""
    data: Data
    focus: parts.Focus | None
    """Null where nothing was nominated."""
    examples: parts.Examples
    curve: parts.Curve | None
    """Null without `--curve`."""
    lineage: Lineage
    settings: Settings
    machine: parts.Machine
    timing: parts.Timing
    rows: Rows | None = None
    """Every example of every rung; the copies of the report in skins, and `adapt --json`, are without."""


def report_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of report.json."""
    schema = ReportFile.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
