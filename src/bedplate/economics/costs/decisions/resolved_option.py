"""An option, resolved: a function from the sheet's values to its bill."""

from __future__ import annotations

from dataclasses import dataclass

from bedplate.economics.costs.decisions.bill import Bill, Volume, merged
from bedplate.economics.costs.decisions.calls import SECONDS_PER_DAY, HostedCalls, MachineCalls, TokenCounts
from bedplate.economics.costs.decisions.case import How, Option
from bedplate.economics.costs.decisions.evidence import MeasuredRung
from bedplate.economics.costs.decisions.sheet import Values
from bedplate.economics.costs.decisions.work import PretrainingWork, RetrievalWork, SetupWork, TuningWork


@dataclass(frozen=True)
class CasePlaces:
    """Places of the numbers that all options share."""

    calls: int
    days: int
    growth: int
    wrong: int | None
    revenue: int | None
    margin: int | None
    by_right_answer: bool
    bar_quality: int | None
    bar_p95_ms: int | None

    def volume(self, v: Values) -> Volume:
        return Volume(v[self.calls], v[self.growth], v[self.days])

    def wrong_usd(self, v: Values, quality: float | None) -> float:
        """USD that one call's wrong answers cost, on average."""
        return 0.0 if self.wrong is None or quality is None else v[self.wrong] * (1 - quality)

    def earned(self, v: Values, quality: float | None) -> float:
        """USD that one call brings in after its margin."""
        if self.revenue is None or self.margin is None:
            return 0.0
        right = 1.0 if not self.by_right_answer or quality is None else quality
        return v[self.revenue] * v[self.margin] * right


@dataclass(frozen=True)
class Ranged:
    """A number in the sheet that keeps the width of its range where the number itself is varied."""

    place: int
    below: float
    above: float

    def low(self, v: Values) -> float:
        return v[self.place] - self.below

    def high(self, v: Values) -> float:
        return v[self.place] + self.above


@dataclass(frozen=True)
class Resolved:
    """One option. quality, p95_ms: None where nothing is known. uses: the places of every number that its bill or its
    feasibility depends on. notes: what was taken for granted; doubts: what its report's verdict has against it.
    how, retrieves: what is done, as the option says, or else the skin of its report."""

    name: str
    option: Option
    tokens: TokenCounts
    calls: HostedCalls | MachineCalls
    setup: SetupWork
    tuning: TuningWork | None
    retrieval: RetrievalWork | None
    pretraining: PretrainingWork | None
    quality: Ranged | None
    p95_ms: Ranged | None
    case: CasePlaces
    uses: frozenset[int]
    notes: tuple[str, ...]
    doubts: tuple[str, ...]
    how: How
    retrieves: bool

    @property
    def method(self) -> str:
        """What is done, in the words of the answer."""
        return self.option.method(self.how, self.retrieves)

    @property
    def method_in_short(self) -> str:
        """As `open, tuned, retrieval`."""
        return self.option.method_in_short(self.how, self.retrieves)

    def bill(self, v: Values) -> Bill:
        """At these values."""
        tokens, days = self.tokens.of(v), v[self.case.days]
        fixed, recurring = self.setup.fixed(v), self.setup.monthly(v, days)
        per_call = self.calls.lines(v, tokens)
        if self.tuning is not None:
            fixed += self.tuning.fixed(v, tokens)
            recurring += self.tuning.recurring(v, tokens, days)
        if self.retrieval is not None:
            fixed.append(("embedding the corpus", self.retrieval.corpus_usd(v)))
            recurring += self.retrieval.recurring(v, days)
            per_call.append(("query embedding", self.retrieval.query_usd(v, tokens)))
        if self.pretraining is not None:
            fixed += self.pretraining.fixed(v)
        quality = None if self.quality is None else v[self.quality.place]
        return Bill(
            fixed=merged(fixed),
            recurring=merged(recurring),
            per_call=merged(per_call),
            fleet=self.calls.fleet(v, tokens) if isinstance(self.calls, MachineCalls) else None,
            quality=quality,
            wrong_usd=self.case.wrong_usd(v, quality),
            earned_usd=self.case.earned(v, quality),
        )

    def busy_share(self, v: Values) -> float | None:
        """How much of the reserved machines' time they compute, over the horizon; None where none are reserved."""
        fleet = self.bill(v).fleet
        if fleet is None or not isinstance(self.calls, MachineCalls):
            return None
        volume = self.case.volume(v)
        seconds = volume.calls * self.calls.busy_seconds(v, self.tokens.of(v))
        return seconds / (fleet.machine_days(volume, volume.calls_per_day) * SECONDS_PER_DAY)


def what_is_done(option: Option, measured: MeasuredRung | None) -> tuple[How, bool]:
    """How the option's model is made to do the task, and whether it looks passages up."""
    retrieves = option.retrieval is not None or (measured is not None and measured.retrieves)
    if option.tuning is not None:
        return "tuned", retrieves
    return (measured and measured.how) or "prompted", retrieves


def taken_for_granted(option: Option, measured: MeasuredRung | None) -> tuple[str, ...]:
    """What an option leaves unsaid, and what its report's verdict says of its quality."""
    notes: list[str] = []
    if measured is not None and option.quality is None:
        notes += measured.verdict_notes
    if option.tuning is not None and option.tuning.refresh is None:
        notes.append("it is tuned once and never again")
    if option.tuning is None and measured is not None and measured.how in ("tuned", "classical"):
        description = "tuned" if measured.how == "tuned" else "a model trained on labels"
        notes.append(
            f"it is {description} ({measured.source}), and the option has no `tuning`: labels, time and hours of that are not "
            "in its bill"
        )
    return tuple(notes)
