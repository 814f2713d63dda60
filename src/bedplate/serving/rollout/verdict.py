"""Online verdict on a version of a route, from outcomes that come late; it holds whenever one looks.

A call is counted once `wait_minutes` have passed since it was answered: by then it has an outcome (what a user said of
it), or it is missing. Younger calls are pending, whatever was said of them, because complaints come sooner than praise.
Bounds are those of `core.statistics.betting`. They are of the calls that were judged; beside them stand the bounds
that hold whatever the others were (Manski 1989, Journal of Human Resources 24:343).
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bedplate.core.statistics.betting import lower_bound, upper_bound
from bedplate.serving.rollout.shadow_comparison import WRONG, answer_digest
from bedplate.serving.settings.route_config import RouteVerdict

MOST_PENDING = 100_000
"""Calls that wait for their outcome; more settle the oldest before their time, which is said."""

Status = Literal["PASS", "FAIL", "INSUFFICIENT_DATA"]


class Digests:
    """Right answers by call id, as users gave them, each as its digest."""

    def __init__(self, targets: Mapping[str, str | None]) -> None:
        self._targets = targets

    def of(self, id: str) -> tuple[bool, str | None]:
        """Whether anything was said of the call, and the digest of the right answer, None where its own was called
        good."""
        missing = object()
        target = self._targets.get(id, missing)  # pyright: ignore[reportArgumentType, reportCallIssue]
        has_target = target is not missing
        return has_target, None if not has_target or target is None else answer_digest(str(target))


@dataclass(frozen=True, slots=True)
class OutcomeCall:
    """One call, of the version that is judged or of the one that it is held against, or of both (a shadow's). ours:
    the digest of what the caller got; shadow: of the copy's answer."""

    id: str
    at: float
    version: str
    ours: str
    shadow: str | None = None


@dataclass
class _Arm:
    """Outcomes of one version, or of pairs: how often each value came, and how many calls had none."""

    values: Counter[float] = field(default_factory=Counter[float])
    missing: int = 0

    @property
    def judged(self) -> int:
        return self.values.total()

    @property
    def mean(self) -> float | None:
        return sum(value * count for value, count in self.values.items()) / self.judged if self.judged else None

    def bounds(self, confidence: float, unseen: float | None = None) -> tuple[float, float]:
        """One-sided, each at the confidence. unseen: a value for those without an outcome on the lower side; on the
        upper side they have 1 - unseen."""
        low, high = (Counter(self.values) for _ in range(2))
        if unseen is not None:
            low[unseen] += self.missing
            high[1 - unseen] += self.missing
        return lower_bound(low, confidence), upper_bound(high, confidence)


class OnlineVerdict:
    """What was seen of the calls of one route. It may be told from the event loop: a call takes no time.

    clock: seconds; tests turn it.
    """

    def __init__(self, config: RouteVerdict, shadow: str | None, clock: Callable[[], float] = time.time) -> None:
        self.config, self._clock = config, clock
        self._paired = config.of == shadow
        self._waiting: deque[OutcomeCall] = deque()
        self._arms: dict[str, _Arm] = {"of": _Arm(), "against": _Arm()}
        self._early = 0
        self._lock = threading.Lock()

    def record(self, id: str, version: str, ours: str, shadow: str | None, targets: Digests) -> None:
        """An answered call, or with `shadow` a pair."""
        if (shadow is not None) != self._paired or not (
            self._paired or version in (self.config.of, self.config.against)
        ):
            return
        if self._paired and self.config.against not in (None, version):
            return
        with self._lock:
            self._waiting.append(OutcomeCall(id, self._clock(), version, ours, shadow))
            self._settle(targets)

    def _settle(self, targets: Digests) -> None:
        """Counts calls whose time is over."""
        before = self._clock() - 60 * self.config.wait_minutes
        while self._waiting and (self._waiting[0].at <= before or len(self._waiting) > MOST_PENDING):
            answer_record = self._waiting.popleft()
            self._early += answer_record.at > before
            arm = self._arms["of" if self._paired or answer_record.version == self.config.of else "against"]
            has_target, target = targets.of(answer_record.id)
            if has_target and not (target == WRONG and answer_record.shadow not in (None, answer_record.ours)):
                arm.values[self._value(answer_record, target)] += 1
            else:  # nothing was said, or only that ours is bad, where the shadow's differs
                arm.missing += 1

    def _value(self, answer_record: OutcomeCall, target: str | None) -> float:
        """In 0 to 1. Of a pair against the version: half of one more than the difference."""
        right = answer_record.ours if target is None else target
        if answer_record.shadow is None:
            return float(answer_record.ours == right)
        theirs = float(answer_record.shadow == right)
        return theirs if self.config.against is None else (theirs - float(answer_record.ours == right) + 1) / 2

    # --- what came of it

    def report(self, targets: Digests) -> dict[str, Any]:
        """The verdict by now, with all that it rests on."""
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
        versions = (
            {config.of: of} if config.against is None or self._paired else {config.of: of, config.against: against}
        )
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
        if self._paired:
            return 2 * of - 1
        return None if against is None else of - against

    def _bounds(self, of: _Arm, against: _Arm, *, worst: bool) -> tuple[float, float]:
        """Bounds of the version's share of right answers, or of its difference to the other version's. Two versions
        that answer different calls share the error."""
        confidence, unseen = self.config.confidence, 0.0 if worst else None
        if self.config.against is None:
            return of.bounds(confidence, unseen)
        if self._paired:
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
        f" {missing:,} calls of which nothing was said are left out, as if they were like the judged ones; whatever "
        f"they were, it is {at_worst[0]:.3f} to {at_worst[1]:.3f}"
    )
    return f"{reason}, which decides the same." if worst == status else f"{reason}, which alone is {worst}."
