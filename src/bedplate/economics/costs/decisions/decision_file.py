"""The decision file: one task's traffic and text, what must hold, and the options to choose from; and all numbers of it
and of its prices, one row each, so that any of them can be varied alone or drawn with the others.

Every number may carry a range. Text is counted once, in words or characters, and each option's own tokenizer turns it
into tokens: the same text is more tokens on one side than on the other. Draws: a Latin hypercube (McKay, Beckman &
Conover 1979), each number that has a range independently, as a triangle from low to high with its mode at the value.
Numbers without a range are the same in every draw.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bedplate.core.config import Strict, key_path
from bedplate.core.errors import ConfigError
from bedplate.core.quantities import DAYS_PER_MONTH
from bedplate.economics.numbers.formula import ZERO, Formula, call
from bedplate.economics.numbers.prices import (
    Amount,
    Factor,
    Growth,
    LocatedFile,
    NonNegative,
    PositiveShare,
    Prices,
    Quantity,
    Share,
)

Constraint = Literal[
    "regulatory_isolation", "data_may_not_leave", "highly_proprietary_data", "frontier_research", "latency"
]
Unit = Literal["words", "characters", "tokens"]
Method = Literal["prompted", "tuned", "classical"]
"""How an option's model is made to do the task: by its prompt, by weights, or without a base, by a bag of words."""

_NONE = NonNegative.exactly(0)


class CallsPerDay(Amount):
    """Searched for flips over a wide range: volume is what most answers turn on."""

    requirement = "a number above 0, up to 1e12"
    at_most = 1e12

    def search(self) -> tuple[float, float]:
        return self._clamp(min(self.low, self.value / 10, 1.0), max(self.high, self.value * 1000))


class Days(Amount):
    """Up to a century: growth over longer is no plan."""

    requirement = "a number above 0, up to 36,500"
    at_most = 36_500.0


class CaseTraffic(Strict):
    """calls_per_day (or calls_per_month): on the first day; they grow by growth_per_year, compounded. peak_to_mean: the
    busiest calls per second over the day's mean. waiting_share: of the calls, how many may wait for a batch price.
    cached_share: of the calls, how many find the repeated part of their prompt in a cache."""

    calls_per_day: CallsPerDay
    horizon_days: Days
    growth_per_year: Growth = Growth.exactly(0)
    peak_to_mean: Factor = Factor.exactly(1)
    waiting_share: Share = Share.exactly(0)
    cached_share: Share = Share.exactly(1)


class Text(Strict):
    """One call, in `unit`. instructions and examples are the same in every prompt: what tuning may save."""

    unit: Unit
    instructions: NonNegative = _NONE
    examples: NonNegative = _NONE
    input: Amount
    output: NonNegative = _NONE


class OptionText(Strict):
    """Where an option's text differs. With `unit: tokens`, counted by its own tokenizer, all four must be given."""

    unit: Literal["tokens"] | None = None
    instructions: NonNegative | None = None
    examples: NonNegative | None = None
    input: Amount | None = None
    output: NonNegative | None = None

    @model_validator(mode="after")
    def _whole_in_tokens(self) -> Self:
        if self.unit == "tokens" and None in (self.instructions, self.examples, self.input, self.output):
            raise ValueError("text counted in this option's own tokens needs instructions, examples, input and output")
        return self


class Knowledge(Strict):
    """What answers rest on changes every so often: then what is tuned without retrieval is tuned again."""

    changes_every_days: Amount


class QualityBar(Strict):
    """What an option must reach: its quality's low end, its latency's high end."""

    quality: Share | None = None
    p95_ms: Amount | None = None


class Value(Strict):
    """usd_per_call: revenue of a call, or of a right answer. margin: the share of it that is left after everything but
    this model. usd_per_wrong_answer: what a wrong answer costs elsewhere."""

    usd_per_call: Amount | None = None
    earned_by: Literal["call", "right_answer"] = "call"
    margin: PositiveShare = PositiveShare.exactly(1)
    usd_per_wrong_answer: Amount | None = None


class WorkSpec(Strict):
    """Once, before the first call. evaluation_labels: examples labelled to judge it by. usd: anything else."""

    hours: NonNegative = _NONE
    evaluation_labels: NonNegative = _NONE
    usd: NonNegative = _NONE


class Upkeep(Strict):
    """Every month. usd_per_month: anything but hours."""

    hours_per_month: NonNegative = _NONE
    usd_per_month: NonNegative = _NONE


class Refresh(Strict):
    """Tuning again: every so many days (by default as often as the knowledge changes), new labels, hours. The tuning
    itself costs what it cost the first time."""

    every_days: Amount | None = None
    labels: NonNegative = _NONE
    evaluation_labels: NonNegative = _NONE
    hours: NonNegative = _NONE


class TuningSpec(Strict):
    """labels: examples labelled to tune on. On a machine of the price file the time is stated (machine_hours), follows
    from tokens_per_second, or is the report's."""

    labels: NonNegative
    epochs: Amount = Amount.exactly(3)
    hours: NonNegative = _NONE
    machine: str | None = None
    machine_hours: NonNegative | None = None
    tokens_per_second: Amount | None = None
    refresh: Refresh | None = None


class RetrievalSpec(Strict):
    """passages: text added to every prompt, different each time; counted as the option's text is. corpus: all text that
    is embedded, of which changed_per_month (a share, above 1 where it changes more than once) is embedded again.
    embedder: a hosted one of the price file; without it the option's machine embeds, at embed_tokens_per_second.
    usd_per_month: the index."""

    passages: Amount
    corpus: NonNegative = _NONE
    changed_per_month: NonNegative = _NONE
    embedder: str | None = None
    embed_tokens_per_second: Amount | None = None
    usd_per_month: NonNegative = _NONE


class TrainingRun(Strict):
    """The final run, as for `bedplate plan train`, on `devices` devices of a machine of the price file that names its
    device."""

    model: str
    tokens: Amount
    machine: str
    devices: Annotated[int, Field(ge=1)]


class Pretraining(Strict):
    """A base of one's own. usd: the final run's compute, or `run` to plan it. runs: all runs (failed, small, repeated)
    over the final one. data_usd: getting and curating the corpus. features: how many share the base, and its cost."""

    usd: Amount | None = None
    run: TrainingRun | None = None
    runs: Factor = Factor.exactly(1)
    data_usd: NonNegative = _NONE
    hours: NonNegative = _NONE
    features: Factor = Factor.exactly(1)

    @model_validator(mode="after")
    def _one_cost(self) -> Self:
        if (self.usd is None) == (self.run is None):
            raise ValueError("give either `usd` or `run`: the final run's price, or what it is planned from")
        return self

    def unpaid(self, upkeep: Upkeep) -> list[str]:
        """Which costs that a base of one's own has are stated nowhere."""
        stated = {
            "staff (pretraining.hours)": self.hours.high,
            "data (pretraining.data_usd)": self.data_usd.high,
            "upkeep": upkeep.hours_per_month.high + upkeep.usd_per_month.high,
        }
        return [name for name, amount in stated.items() if not amount]


class MeasuredEngine(Strict):
    """An engine of the machine's machine.json: base and weights as there, batch: sequences at once, by default as in
    `bedplate plan serve`."""

    base: str
    weights: str | None = None
    batch: Annotated[int, Field(ge=1)] | None = None


class DataSheetDecoder(Strict):
    """A decoder on the devices of the machine, by their data sheet, with the range of what engines reach of it. model:
    as for `bedplate plan serve`; batch: sequences at once, by default as many as there."""

    model: str
    weights: Literal["float32", "bfloat16", "float16", "fp8", "int8", "int4"] = "bfloat16"
    batch: Annotated[int, Field(ge=1)] | None = None


class MachineUse(Strict):
    """Where open or own weights run. How long a call keeps the machine: seconds_per_call, or both speeds (of all
    sequences together, at a batch that meets the latency), or `measured`, or `planned` (as `bedplate plan serve` says
    of a full machine), or the report.

    paid: `reserved` machines are paid day and night, as many as the peak wants; `by_use` is a share of machines that
    others keep busy too. utilisation: of the reserved ones, the most that queueing allows at the peak; of the shared
    ones, how busy they are over the day. It divides what the machine can do; idle time is paid either way.
    """

    name: str
    seconds_per_call: Amount | None = None
    prefill_tokens_per_second: Amount | None = None
    decode_tokens_per_second: Amount | None = None
    measured: MeasuredEngine | None = None
    planned: DataSheetDecoder | None = None
    paid: Literal["reserved", "by_use"] = "reserved"
    utilisation: PositiveShare
    at_least: Factor = Factor.exactly(1)

    @model_validator(mode="after")
    def _one_speed(self) -> Self:
        if (self.prefill_tokens_per_second is None) != (self.decode_tokens_per_second is None):
            raise ValueError("prefill_tokens_per_second and decode_tokens_per_second are given together")
        speeds = (self.seconds_per_call, self.prefill_tokens_per_second, self.measured, self.planned)
        if sum(speed is not None for speed in speeds) > 1:
            raise ValueError("give one of seconds_per_call, the two tokens_per_second, measured or planned")
        return self


class LadderEvidence(Strict):
    """A rung of an adaptation ladder's report.json, beside this file: quality with its interval, latency, seconds of a
    call, tuning time. split: test where the rung was confirmed there, otherwise valid. What the option states itself
    goes before. despite: why the report is used although its verdict is not a PASS that holds for this rung."""

    file: str
    rung: str
    split: Literal["valid", "test"] | None = None
    despite: Annotated[str, Field(min_length=1)] | None = None


class Option(Strict):
    """One way to do it: a hosted `model`, or weights on a `machine` (open ones, or with `pretraining` one's own);
    prompted, and with these blocks tuned or given retrieval. tokens_per_unit: of its tokenizer, for the text's unit.
    pad_prompt: a repeated prompt that is shorter than what a hosted model caches at least is padded to that, where that
    costs less."""

    model: str | None = None
    pad_prompt: bool = True
    machine: MachineUse | None = None
    tokens_per_unit: Amount | None = None
    text: OptionText = OptionText()
    report: LadderEvidence | None = None
    quality: Share | None = None
    p95_ms: Amount | None = None
    setup: WorkSpec = WorkSpec()
    upkeep: Upkeep = Upkeep()
    tuning: TuningSpec | None = None
    retrieval: RetrievalSpec | None = None
    pretraining: Pretraining | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.model is None) == (self.machine is None):
            raise ValueError("give either `model` (hosted) or `machine` (open or own weights)")
        if self.pretraining is not None and self.machine is None:
            raise ValueError("what is pretrained here runs on a `machine`, not on a hosted model")
        return self

    @property
    def weights(self) -> Literal["hosted", "open", "own"]:
        """Who made the weights: a host, others who published them, or this team."""
        return "hosted" if self.model is not None else "open" if self.pretraining is None else "own"

    def describe(self, method: Method, retrieves: bool) -> str:
        """What is done, as the answer words it: `tune open weights with retrieval`."""
        weights = {"hosted": "a hosted model", "open": "open weights", "own": "a base pretrained from scratch"}
        verbs = {"tuned": f"tune {weights[self.weights]}", "prompted": f"prompt {weights[self.weights]}"}
        return f"{verbs.get(method, 'train a classical model')}{' with retrieval' if retrieves else ''}"

    def label(self, method: Method, retrieves: bool) -> str:
        """The same for a table: `open, tuned, retrieval`."""
        weights = "own" if method == "classical" else self.weights
        return f"{weights}, {method}{', retrieval' if retrieves else ''}"


class Case(LocatedFile):
    """A decision file."""

    case: Annotated[str, Field(min_length=1)]
    prices: str | None = None  # the price file, beside this one
    traffic: CaseTraffic
    text: Text
    knowledge: Knowledge | None = None
    bar: QualityBar = QualityBar()
    value: Value = Value()
    constraints: dict[Constraint, str] = Field(default_factory=dict[Constraint, str])  # each with why it holds here
    staff: str = "engineer"
    labelling: str = "example"  # the entries of the price file that hours and labels are paid at
    options: Annotated[dict[str, Option], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def place(self) -> str:
        """What errors name it by."""
        return str(self._path or self.case)


def load_case(path: Path | str, prices: Path | None = None, overrides: Sequence[str] = ()) -> tuple[Case, Prices]:
    """A decision file and its price file; `prices` replaces the one that the file names.

    Overrides go before both files; those of prices begin with `prices.`, as in
    prices.hosted.NAME.usd_per_million_input=2. ConfigError.
    """
    of_prices = [override.removeprefix("prices.") for override in overrides if override.startswith("prices.")]
    case = Case.load(path, [override for override in overrides if not override.startswith("prices.")])
    if prices is None and case.prices is None:
        raise ConfigError(f"{path}: no price file is named; add `prices: FILE.yaml`, or give --prices FILE.yaml")
    try:
        return case, Prices.load(prices or case.resolve_path(case.prices or ""), of_prices)
    except ConfigError as error:
        message = str(error)
        for override in of_prices:  # as it was given
            message = message.replace(f"override {override!r}", f"override {'prices.' + override!r}")
        raise ConfigError(message) from error


DAYS_PER_YEAR = 365.0
_RESIZINGS = 4  # times over the horizon that the number of reserved machines is set, where calls grow
_NO_GROWTH = 1e-30  # added to a growth of 0, for which (e^x - 1) / x is not defined; it is lost in any other


@dataclass(frozen=True)
class Input:
    """One number. name: where it stands, as an override spells it. low, high: the stated range. search: where a
    flipping point is looked for. source: which file it is from."""

    name: str
    value: float
    low: float
    high: float
    search: tuple[float, float]
    source: str

    @property
    def exact(self) -> bool:
        """Whether no range was stated."""
        return self.low == self.high


class DecisionInputs:
    """The inputs of a case, by place and by name; adding a name again gives the input that is there."""

    def __init__(self) -> None:
        self.rows: list[Input] = []
        self._places: dict[str, int] = {}

    def place(self, name: str, quantity: Quantity, source: str) -> int:
        """The place of an input, which is added where it is new."""
        if name not in self._places:
            self._places[name] = len(self.rows)
            self.rows.append(Input(name, quantity.value, quantity.low, quantity.high, quantity.search(), source))
        return self._places[name]

    def add(self, name: str, quantity: Quantity | None, source: str) -> Formula:
        """The input as a formula. What is not stated, or is exactly zero, is a part that the case does not have."""
        if quantity is None or (quantity.exact and quantity.value == 0):
            return ZERO
        return Formula.input(self.place(name, quantity, source))

    @property
    def values(self) -> list[float]:
        """As stated."""
        return [row.value for row in self.rows]

    def draws(self, count: int, seed: int) -> dict[int, list[float]]:
        """`count` draws of each input that has a range, by its place. They depend on the seed and the input's own name
        and range alone, so that two cases that differ in one number are compared on the same draws of the others."""
        draws: dict[int, list[float]] = {}
        for place, row in enumerate(self.rows):
            if row.exact:
                continue
            rng = random.Random(f"{seed} {row.name}")
            strata = [(i + rng.random()) / count for i in range(count)]
            rng.shuffle(strata)
            draws[place] = [triangle(u, row.low, row.value, row.high) for u in strata]
        return draws


def triangle(u: float, low: float, mode: float, high: float) -> float:
    """The inverse of the triangular distribution's function, at u from 0 to 1."""
    width = high - low
    if u * width < mode - low:
        return low + math.sqrt(u * width * (mode - low))
    return high - math.sqrt((1 - u) * width * (high - mode))


class CaseInputs(DecisionInputs):
    """Every number of a case and its prices, and what all options share: calls, days and prices."""

    def __init__(self, case: Case, prices: Prices) -> None:
        super().__init__()
        self.case, self.prices = case, prices
        self.used_prices: list[tuple[str, str]] = []
        self.source = case.path.name if case.path is not None else case.case
        traffic, value, bar = case.traffic, case.value, case.bar
        self.calls_place = self.place("traffic.calls_per_day", traffic.calls_per_day, self.source)
        self.days_place = self.place("traffic.horizon_days", traffic.horizon_days, self.source)
        self.calls_per_day, self.days = Formula.input(self.calls_place), Formula.input(self.days_place)
        growth = self._add("traffic.growth_per_year", traffic.growth_per_year)
        rate = call("log1p", growth + _NO_GROWTH) / DAYS_PER_YEAR
        self.calls = self.calls_per_day * (call("expm1", rate * self.days) / rate)
        self.busiest_days = (self.calls_per_day,)
        """Calls of the busiest day in each part of the horizon for which machines are reserved."""
        if growth != ZERO:
            grown = [
                self.calls_per_day * (growth + 1.0) ** (self.days * (part / _RESIZINGS / DAYS_PER_YEAR))
                for part in range(_RESIZINGS + 1)
            ]
            self.busiest_days = tuple(call("max", begin, end) for begin, end in pairwise(grown))
        self.months = self.days / DAYS_PER_MONTH
        self.cached_share = self._add("traffic.cached_share", traffic.cached_share)
        self.waiting_share = self._add("traffic.waiting_share", traffic.waiting_share)
        self.peak = self._add("traffic.peak_to_mean", traffic.peak_to_mean)
        self.wrong_answer = self._add("value.usd_per_wrong_answer", value.usd_per_wrong_answer)
        self.revenue = ZERO
        if value.usd_per_call is not None:
            self.revenue = self._add("value.usd_per_call", value.usd_per_call) * self._add("value.margin", value.margin)
        self.bar_quality = None if bar.quality is None else self.place("bar.quality", bar.quality, self.source)
        self.bar_p95_ms = None if bar.p95_ms is None else self.place("bar.p95_ms", bar.p95_ms, self.source)

    def _add(self, name: str, quantity: Quantity | None) -> Formula:
        return self.add(name, quantity, self.source)

    def price(self, section: str, name: str, field: str, needed_by: str) -> Formula:
        """A field of the price file's entry `name`. ConfigError where there is no such entry."""
        entry = self.prices.find(section, name, needed_by)
        self.used_prices.append((section, name))
        quantity: Quantity = entry  # pyright: ignore[reportAssignmentType]
        for part in field.split("."):
            quantity = getattr(quantity, part)
        file = self.prices.path.name if self.prices.path is not None else "prices"
        return self.add(key_path(["prices", section, name, *field.split(".")]), quantity, f"{file}, {entry.as_of}")
