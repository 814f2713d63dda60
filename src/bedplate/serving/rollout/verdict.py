"""Online verdict on a version of a route, from delayed outcomes; it is valid at any number of looks.

A call is counted once `wait_minutes` have passed since it was answered: by then it has an outcome (a user's feedback),
or it counts as missing. Younger calls are pending even with feedback, because complaints come sooner than praise.
Bounds are those of `core.statistics.betting`, over the calls that were judged; worst-case bounds also cover the missing
calls, whatever their outcomes (Manski 1989, Journal of Human Resources 24:343).
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bedplate.core.statistics.betting import lower_bound, upper_bound
from bedplate.core.statistics.clusters import robust_mean
from bedplate.core.statistics.paired import paired_difference, sign_flip
from bedplate.core.statistics.proportions import wilson
from bedplate.core.statistics.unequal import enough_groups
from bedplate.serving.settings.server_config import JUDGED_WRONG, RouteVerdict

CONFIDENCE = 0.95
_RESAMPLES = 5000
MAX_TIMED_PAIRS = 1000
"""Number of latest pairs over which latencies are compared."""

Json = dict[str, Any]


def answer_digest(text: str) -> str:
    """A digest that is equal for equal answers, apart from surrounding whitespace."""
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()[:16]


WRONG = answer_digest(JUDGED_WRONG)


@dataclass(frozen=True)
class AnsweredCall:
    """One model's answers to one call. seconds: latency for the caller; compute: seconds, its share of engine steps."""

    answers: tuple[str, ...]
    """A digest for each choice."""
    seconds: float
    compute: float


@dataclass(frozen=True)
class ShadowPair:
    """One call, answered by the version that served its caller, and by the shadow."""

    id: str
    tenant: str
    version: str
    ours: AnsweredCall
    shadow: AnsweredCall

    @property
    def agrees(self) -> bool:
        return self.ours.answers == self.shadow.answers


def rate(hits: int, n: int) -> Json | None:
    """A share with its Wilson interval; None for n = 0."""
    if n == 0:
        return None
    low, high = wilson(hits, n, CONFIDENCE)
    return {"rate": hits / n, "n": n, "interval": [low, high], "confidence": CONFIDENCE}


def compare(pairs: Sequence[ShadowPair], targets: Mapping[str, str | None]) -> Json:
    """The comparison of the pairs. targets: call id → digest of the right answer, None where ours was rated good.

    Calls count as independent, unless there are enough tenants to group by (`unit` names the unit).
    """
    judged = [pair for pair in pairs if pair.id in targets]
    # Where ours was only rated wrong, it is unknown whether another answer is right.
    judged = [p for p in judged if targets[p.id] != WRONG or p.ours.answers[0] == p.shadow.answers[0]]
    return {
        "compared": len(pairs),
        "agreement": rate(sum(pair.agrees for pair in pairs), len(pairs)),
        "seconds": _times([(p.ours.seconds, p.shadow.seconds, p.tenant) for p in pairs[-MAX_TIMED_PAIRS:]]),
        "compute_seconds": _times([(p.ours.compute, p.shadow.compute, p.tenant) for p in pairs[-MAX_TIMED_PAIRS:]]),
        "correctness": _correctness(judged, targets),
    }


def _groups(tenants: Sequence[str]) -> tuple[str, Sequence[Hashable]]:
    """Groups by tenant where there are enough tenants, else one group for every call."""
    return ("tenant", tenants) if enough_groups(tenants) else ("call", range(len(tenants)))


def _times(rows: Sequence[tuple[float, float, str]]) -> Json | None:
    """The shadow's time minus ours: mean, t interval (for tenants of any sizes), sign-flip p-value."""
    if len(rows) < 2:
        return None
    from scipy.special import stdtrit

    ours, shadow = [row[0] for row in rows], [row[1] for row in rows]
    differences = [b - a for a, b, _ in rows]
    unit, groups = _groups([tenant for _, _, tenant in rows])
    mean = robust_mean(differences, groups)
    half = mean.se * float(stdtrit(mean.freedom, 1 - (1 - CONFIDENCE) / 2))
    return {
        "version": math.fsum(ours) / len(ours),
        "shadow": math.fsum(shadow) / len(shadow),
        "difference": mean.mean,
        "interval": [mean.mean - half, mean.mean + half],
        "confidence": CONFIDENCE,
        "p_value": sign_flip(differences, groups, resamples=_RESAMPLES),
        "n": mean.n,
        "unit": unit,
    }


def _correctness(pairs: Sequence[ShadowPair], targets: Mapping[str, str | None]) -> Json | None:
    """Correctness over the calls that users judged. They rated our answer, not the shadow's, which favours ours."""
    if not pairs:
        return None
    ours: list[float] = []
    shadow: list[float] = []
    for pair in pairs:
        target = targets[pair.id]
        right = pair.ours.answers[0] if target is None else target
        ours.append(float(pair.ours.answers[0] == right))
        shadow.append(float(pair.shadow.answers[0] == right))
    unit, groups = _groups([pair.tenant for pair in pairs])
    comparison = paired_difference(shadow, ours, groups, CONFIDENCE)
    return {
        "version": rate(int(sum(ours)), len(ours)),
        "shadow": rate(int(sum(shadow)), len(shadow)),
        "difference": comparison.difference,
        "interval": list(comparison.interval),
        "confidence": CONFIDENCE,
        "p_value": comparison.p_value,
        "test": comparison.test,
        "n": comparison.n,
        "unit": unit,
    }


MAX_PENDING = 100_000
"""Maximum number of calls that wait for an outcome; beyond it the oldest are settled early, which is reported."""

Status = Literal["PASS", "FAIL", "INSUFFICIENT_DATA"]


class Digests:
    """Digests of the right answers by call id, from users' feedback."""

    def __init__(self, targets: Mapping[str, str | None]) -> None:
        self._targets = targets

    def of(self, id: str) -> tuple[bool, str | None]:
        """Whether the call has feedback, and the right answer's digest; None where its own answer was rated good."""
        try:
            target = self._targets[id]
        except KeyError:
            return False, None
        return True, None if target is None else answer_digest(target)


@dataclass(frozen=True, slots=True)
class OutcomeCall:
    """One call: of the version under judgment, of the one that it is compared with, or of both (a shadow's). ours: the
    digest of the answer that the caller received; shadow: of the shadow's answer."""

    id: str
    at: float
    version: str
    ours: str
    shadow: str | None = None


@dataclass
class _Arm:
    """Outcomes of one version, or of pairs: the count of each value, and the number of calls without an outcome."""

    values: Counter[float] = field(default_factory=Counter[float])
    missing: int = 0

    @property
    def judged(self) -> int:
        return self.values.total()

    @property
    def mean(self) -> float | None:
        return sum(value * count for value, count in self.values.items()) / self.judged if self.judged else None

    def bounds(self, confidence: float, unseen: float | None = None) -> tuple[float, float]:
        """One-sided bounds, each at the confidence. unseen: the value of calls without an outcome in the lower bound;
        in the upper bound it is 1 - unseen. None: they are left out."""
        low, high = (Counter(self.values) for _ in range(2))
        if unseen is not None:
            low[unseen] += self.missing
            high[1 - unseen] += self.missing
        return lower_bound(low, confidence), upper_bound(high, confidence)


class OnlineVerdict:
    """The outcomes of one route's calls, and the verdict on them. `record` is fast enough for the event loop.

    clock: the time in seconds; tests replace it.
    """

    def __init__(self, config: RouteVerdict, shadow: str | None, clock: Callable[[], float] = time.time) -> None:
        self.config, self._clock = config, clock
        self.paired = config.of == shadow
        self._waiting: deque[OutcomeCall] = deque()
        self._arms: dict[str, _Arm] = {"of": _Arm(), "against": _Arm()}
        self._early = 0
        self._lock = threading.Lock()

    def record(self, id: str, version: str, ours: str, shadow: str | None, targets: Digests) -> None:
        """Records an answered call, or, with `shadow`, a pair."""
        if (shadow is not None) != self.paired or not (self.paired or version in (self.config.of, self.config.against)):
            return
        if self.paired and self.config.against not in (None, version):
            return
        with self._lock:
            self._waiting.append(OutcomeCall(id, self._clock(), version, ours, shadow))
            self._settle(targets)

    def _settle(self, targets: Digests) -> None:
        before = self._clock() - 60 * self.config.wait_minutes
        while self._waiting and (self._waiting[0].at <= before or len(self._waiting) > MAX_PENDING):
            answer_record = self._waiting.popleft()
            self._early += answer_record.at > before
            arm = self._arms["of" if self.paired or answer_record.version == self.config.of else "against"]
            has_target, target = targets.of(answer_record.id)
            if has_target and not (target == WRONG and answer_record.shadow not in (None, answer_record.ours)):
                arm.values[self._value(answer_record, target)] += 1
            else:  # no feedback, or only that ours is wrong, where the shadow's differs
                arm.missing += 1

    def _value(self, answer_record: OutcomeCall, target: str | None) -> float:
        """The call's value in [0, 1]; for a pair compared with the version, (1 + difference) / 2."""
        right = answer_record.ours if target is None else target
        if answer_record.shadow is None:
            return float(answer_record.ours == right)
        theirs = float(answer_record.shadow == right)
        return theirs if self.config.against is None else (theirs - float(answer_record.ours == right) + 1) / 2

    # --- the report

    def report(self, targets: Digests) -> dict[str, Any]:
        """The current verdict, with its evidence."""
        with self._lock:
            self._settle(targets)
            of, against = (_Arm(Counter(arm.values), arm.missing) for arm in self._arms.values())
            pending, early = len(self._waiting), self._early
        config = self.config
        needed = config.at_least if config.against is None else -config.margin
        assert needed is not None
        low, high = self._bounds(of, against, worst=False)
        worst_low, worst_high = self._bounds(of, against, worst=True)
        status, worst = _status(low, high, needed), _status(worst_low, worst_high, needed)
        judged, missing = of.judged + against.judged, of.missing + against.missing
        compared = {} if config.against is None or self.paired else {config.against: against}
        versions = {config.of: of, **compared}
        return {
            "of": config.of,
            "against": config.against,
            "status": status,
            "needed": needed,
            "estimate": self._estimate(of.mean, against.mean),
            "lower": low,
            "upper": high,
            "confidence": config.confidence,
            "judged": {name: arm.judged for name, arm in versions.items()},
            "missing": {name: arm.missing for name, arm in versions.items()},
            "pending": pending,
            "settled_early": early,
            "worst_case": {"status": worst, "lower": worst_low, "upper": worst_high},
            "reason": _reason(config, status, worst, (low, high), (worst_low, worst_high), judged, missing)
            + (f" {pending:,} calls are pending." if pending else "")
            + (f" {early:,} were settled before their time: there are too many." if early else ""),
        }

    def _estimate(self, of: float | None, against: float | None) -> float | None:
        if self.config.against is None or of is None:
            return of
        if self.paired:
            return 2 * of - 1
        return None if against is None else of - against

    def _bounds(self, of: _Arm, against: _Arm, *, worst: bool) -> tuple[float, float]:
        """Bounds of the version's share of right answers, or of its difference; two versions share the error."""
        confidence, unseen = self.config.confidence, 0.0 if worst else None
        if self.config.against is None:
            return of.bounds(confidence, unseen)
        if self.paired:
            low, high = of.bounds(confidence, unseen)
            return 2 * low - 1, 2 * high - 1
        half = 1 - (1 - confidence) / 2
        (low, high), (their_low, their_high) = (arm.bounds(half, unseen) for arm in (of, against))
        return low - their_high, high - their_low


def _status(low: float, high: float, needed: float) -> Status:
    return "PASS" if low >= needed else "FAIL" if high < needed else "INSUFFICIENT_DATA"


def _reason(
    config: RouteVerdict,
    status: Status,
    worst: Status,
    bounds: tuple[float, float],
    at_worst: tuple[float, float],
    judged: int,
    missing: int,
) -> str:
    if config.against is None:
        subject, requirement = f"{config.of} is right in", f"the bar is {config.at_least:g}"
    else:
        subject = f"{config.of} minus {config.against} is"
        requirement = f"it may lose {config.margin:g}"
    low, high = bounds
    reason = f"{subject} {low:.3f} to {high:.3f} by {judged:,} judged calls ({config.confidence:.0%} each side); "
    reason += f"{requirement}."
    if not missing:
        return reason
    reason += (
        f" Calls without feedback are left out, as if they were like the judged ones: {missing:,}; whatever "
        f"they were, it is {at_worst[0]:.3f} to {at_worst[1]:.3f}"
    )
    return f"{reason}, which decides the same." if worst == status else f"{reason}, which alone is {worst}."
