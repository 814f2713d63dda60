"""What becomes of a rung: planned or skipped with a reason, then done, with numbers, or failed; and what it leaves for
those that build on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from bedplate.adaptation.context.bases import TaskBase
from bedplate.core.processor import load_average
from bedplate.core.statistics.clusters import robust_mean
from bedplate.core.statistics.proportions import Side, independent_worth, quantile_bounds
from bedplate.evaluation.harness import Evaluation, Predicts

SLOW = 0.95
"""The percentile of single calls that budgets limit."""

FAR = 5.0
"""Standard deviations of log seconds under a limit at which slow changes of a machine are no matter."""

KEPT_WITHIN = 0.005
"""A shorter prompt keeps the score where it loses no more of the metric than this on valid."""

PACES = (0.25, 4.0)
"""Bounds of how much quicker or slower a rung is taken to be than it was expected to be."""


@dataclass(frozen=True)
class RungPlan:
    """settings: plain values that decide the outcome (with the context). seconds: expected. left_out: what a larger
    budget would add, as sentences. usd: what endpoints are expected to charge, beside the machine's time. pace: what
    the rung's own estimate was multiplied by, for work of this kind was seen to take so much longer here."""

    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seconds: float = 0.0
    left_out: tuple[str, ...] = ()
    usd: float = 0.0
    pace: float = 1.0


SkipKind = Literal["impossible", "budget", "rule"]


@dataclass(frozen=True)
class Skip:
    """Not climbed, because of `reason`. kind: "impossible" stays so; what a budget or a rule of thumb skips is climbed
    where the ladder is exhaustive. seconds: what the smallest version of it is expected to take, where there is no time
    for that. needs: keys of the task's budget, and the values that would let it in."""

    reason: str
    kind: SkipKind = "impossible"
    seconds: float | None = None
    needs: Mapping[str, float] = field(default_factory=dict[str, float])


def no_time(seconds: float) -> Skip:
    """What needs more seconds than the budget has left, in its smallest version. What is left is added where the rung
    is planned."""
    return Skip(f"it needs about {seconds:.0f} s", "budget", seconds)


def rows_left_out(rows: int, n: int, split: str = "train") -> str:
    """What a larger budget would add to a fit on so many of the n rows of a split."""
    return f"{n - rows} of {n} {split} rows were left out: no time"


class OutOfTime(Exception):
    """The hard stop of a fit when its time is over. seconds: what it needs, by what it had done."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)  # as it travels between processes
        self.seconds = seconds

    def __str__(self) -> str:
        return f"it needs about {self.seconds:.0f} s"


@dataclass(frozen=True)
class Latency:
    """Seconds of single calls through the engine, one at a time. seconds: of each call, in the order in which they were
    made; load: of the machine in the minute before the last (runnable processes), where it tells. rows: different rows
    among the calls, None for as many. spread: seconds from the first call to the last, with what ran between them."""

    mean: float
    p50: float
    p95: float
    calls: int
    seconds: tuple[float, ...] = ()
    load: float | None = None
    rows: int | None = None
    spread: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", tuple(self.seconds))  # JSON has lists

    def worth(self, limit: float | None = None) -> float:
        """How many independent calls these are worth beside a limit in seconds (None: p95): by the autocorrelation of
        being over it, and of what they took where that comes near it; and no more than rows."""
        seconds = np.maximum(self.seconds, 1e-9)
        if not seconds.size:
            return 0.0
        limit = max(self.p95 if limit is None else limit, 1e-9)
        logs, worth = np.log(seconds), independent_worth(seconds > limit)
        if math.log(limit) - float(logs.mean()) < FAR * float(logs.std()):
            worth = min(worth, independent_worth(seconds))
        return min(worth, float(self.rows or seconds.size))

    def p95_bounds(self, confidence: float, limit: float | None = None) -> tuple[float | None, float | None]:
        """One-sided bounds of the 95th percentile by order statistics, with the calls' worth; None where the calls are
        too few."""
        return quantile_bounds(self.seconds, SLOW, confidence, self.worth(limit))

    def mean_interval(self, confidence: float) -> tuple[float, float] | None:
        """Two-sided t interval of a call's mean seconds; None for fewer than two calls."""
        if len(self.seconds) < 2:
            return None
        from scipy.special import stdtrit

        estimate = robust_mean(self.seconds, range(len(self.seconds)))
        half = estimate.se * float(stdtrit(estimate.freedom, 1 - (1 - confidence) / 2))
        return max(0.0, estimate.mean - half), estimate.mean + half

    def scaled(self, times: float) -> Latency:
        """The latency if each call took so many times as long."""
        seconds = tuple(times * duration for duration in self.seconds)
        mean, p50, p95 = (times * value for value in (self.mean, self.p50, self.p95))
        return replace(self, mean=mean, p50=p50, p95=p95, seconds=seconds)


def latency(seconds: Sequence[float], rows: int | None = None, spread: float | None = None) -> Latency:
    """Mean, median and 95th percentile (nearest rank) of single calls that were just made, of so many different rows
    (None: one each) in so many seconds."""
    ordered = sorted(seconds)
    rank = max(0, -(-95 * len(ordered) // 100) - 1)
    middle = ordered[len(ordered) // 2]
    mean, calls = sum(ordered) / len(ordered), len(ordered)
    return Latency(mean, middle, ordered[rank], calls, tuple(seconds), load_average(), rows, spread)


@dataclass(frozen=True)
class ExportCheck:
    """The skin as read back from disk against the answers that it was chosen by: rows asked again, equal answers, and
    the largest difference of a label's log-probability. In bfloat16 these differ a little between batch sizes, and
    where they do, written text goes another way from there on."""

    rows: int
    equal: int
    difference: float


@dataclass(frozen=True)
class RungResult:
    """A finished rung. `evaluation` is on valid. `skin`: directory, relative to the run's. `seeds`: one row each, with
    its own estimate; never pooled. `search`: what was tried on valid. `details`: facts for the report. `child`: the
    base that the rung made, a directory relative to the run's. `parts`: the candidates that it is made of. `usd`: what
    endpoints charged. `usd_per_call`: what a call costs, where that is not the machine's time alone. `settings`: the
    plan's as far as they were carried out, where the time ended the fit."""

    rung: str
    evaluation: Evaluation
    latency: Latency
    train_seconds: float
    reason: str
    skin: str | None = None
    skin_id: str | None = None
    prompt_tokens: int = 0
    seeds: tuple[Mapping[str, Any], ...] = ()
    search: tuple[Mapping[str, Any], ...] = ()
    left_out: tuple[str, ...] = ()
    export: ExportCheck | None = None
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    child: str | None = None
    parts: tuple[str, ...] = ()
    usd: float = 0.0
    usd_per_call: float | None = None
    settings: Mapping[str, Any] | None = None

    def price(self, usd_per_hour: float, seconds: float) -> float:
        """US dollars of a call that takes so many seconds of a machine at this price."""
        return seconds * usd_per_hour / 3600 if self.usd_per_call is None else self.usd_per_call


@dataclass(frozen=True)
class RungOutcome:
    """What became of a rung: done (with a result), skipped or failed (with the reason), and the seconds it took. plan:
    what had been planned; skip: what kind of reason it was left out for, and `needs` the keys of the budget with values
    that would let it in; reused: whether an earlier run had done it."""

    rung: str
    status: str
    reason: str
    result: RungResult | None = None
    seconds: float = 0.0
    plan: RungPlan | None = None
    skip: SkipKind | None = None
    needs: Mapping[str, float] = field(default_factory=dict[str, float])
    reused: bool = False

    @property
    def pace(self) -> float | None:
        """Seconds that it took for each that the rung itself had expected, within PACES; None where it was not done."""
        plan = self.plan
        if self.result is None or plan is None or plan.seconds <= 0 or self.seconds <= 0:
            return None
        return min(PACES[1], max(PACES[0], plan.pace * self.seconds / plan.seconds))


@dataclass(frozen=True)
class Tested:
    """A rung on test. latency: of single calls. too_long: rows that did not fit the context and count as wrong."""

    evaluation: Evaluation
    latency: Latency
    too_long: int = 0


@dataclass(frozen=True)
class Climbed:
    """A candidate that was climbed. result: as the report has it, under the candidate's name; rung_result: as the rung
    left it, below `out`; parent: the base it was climbed on; opened: a predictor of its skin, from what is on disk."""

    name: str
    result: RungResult
    rung_result: RungResult
    out: Path
    parent: TaskBase
    opened: Callable[[], Predicts]

    @property
    def directory(self) -> Path:
        assert self.rung_result.skin is not None
        return self.out / self.rung_result.skin

    @property
    def child(self) -> Path | None:
        """The directory of the base that the rung made, and its skin stands on."""
        return None if self.rung_result.child is None else self.out / self.rung_result.child

    @property
    def base(self) -> TaskBase:
        """What its skin stands on."""
        return self.parent if self.child is None else self.parent.child(self.child)


class BoundedEstimate(Protocol):
    """An estimate, what its variance follows from, and its one-sided bounds. These raise InsufficientGroups where the
    rows allow none."""

    @property
    def estimate(self) -> float: ...
    @property
    def n(self) -> int: ...
    @property
    def design_effect(self) -> float: ...
    @property
    def row_variance(self) -> float | None: ...
    def bound(self, confidence: float, side: Side = "lower") -> float: ...


@dataclass(frozen=True)
class Resting:
    """What is judged by an evaluation's rows, with a number or bounds of its own."""

    evaluation: BoundedEstimate

    @property
    def n(self) -> int:
        return self.evaluation.n

    @property
    def design_effect(self) -> float:
        return self.evaluation.design_effect

    @property
    def row_variance(self) -> float | None:
        return self.evaluation.row_variance
