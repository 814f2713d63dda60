"""Compares two models on the same calls: agreement, latency, and correctness where users gave feedback."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bedplate.core.statistics.clusters import robust_mean
from bedplate.core.statistics.paired import paired_difference, sign_flip
from bedplate.core.statistics.proportions import wilson
from bedplate.core.statistics.unequal import enough_groups
from bedplate.serving.settings.route_config import JUDGED_WRONG

CONFIDENCE = 0.95
_RESAMPLES = 5000
MOST_TIMED = 1000
"""Latencies are compared over the last so many pairs."""

Json = dict[str, Any]


def answer_digest(text: str) -> str:
    """What is remembered of an answer: enough to tell whether another is the same."""
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()[:16]


WRONG = answer_digest(JUDGED_WRONG)


@dataclass(frozen=True)
class AnsweredCall:
    """One model's part of one call. seconds: as the caller waited; compute: its share of the engine's steps."""

    answers: tuple[str, ...]
    """A digest for each choice."""
    seconds: float
    compute: float


@dataclass(frozen=True)
class ShadowPair:
    """One call, answered by the version that its caller got, and by the shadow."""

    id: str
    tenant: str
    version: str
    ours: AnsweredCall
    shadow: AnsweredCall

    @property
    def agrees(self) -> bool:
        return self.ours.answers == self.shadow.answers


def rate(hits: int, n: int) -> Json | None:
    """A share with its Wilson interval; None of nothing."""
    if n == 0:
        return None
    low, high = wilson(hits, n, CONFIDENCE)
    return {"rate": hits / n, "n": n, "interval": [low, high], "confidence": CONFIDENCE}


def compare(pairs: Sequence[ShadowPair], targets: Mapping[str, str | None]) -> Json:
    """The comparison of the pairs. targets: call id → digest of the right answer, None where ours was called good.

    Calls count as independent, unless there are tenants enough to count by (`unit` says which).
    """
    return {
        "compared": len(pairs),
        "agreement": rate(sum(pair.agrees for pair in pairs), len(pairs)),
        "seconds": _times([(p.ours.seconds, p.shadow.seconds, p.tenant) for p in pairs[-MOST_TIMED:]]),
        "compute_seconds": _times([(p.ours.compute, p.shadow.compute, p.tenant) for p in pairs[-MOST_TIMED:]]),
        "correctness": _correctness([pair for pair in pairs if _is_judged(pair, targets)], targets),
    }


def _is_judged(pair: ShadowPair, targets: Mapping[str, str | None]) -> bool:
    """Whether both answers of a pair were judged: where ours was only called bad, nobody knows of another."""
    return pair.id in targets and (targets[pair.id] != WRONG or pair.ours.answers[0] == pair.shadow.answers[0])


def _groups(tenants: Sequence[str]) -> tuple[str, Sequence[Hashable]]:
    """By tenant where there are enough for it, else every call for itself."""
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
    """Over the calls that users judged. Whoever called an answer good had seen ours, which favours it."""
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
