"""What is kept of the time for what comes after the climb."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bedplate.adaptation.context.outcome import RungResult

JUDGED = 3
"""Skins that test is expected to be asked of at most: two nominees, and the base as it is."""

REPORT_SECONDS, REPORT_SHARE = 5.0, 0.05
"""What the report takes at most, and of a short budget."""

LATENCY_SECONDS, LATENCY_SHARE = 20.0, 0.02
"""What timing one skin takes at most, and of a short budget."""


def seconds_on_test(results: Sequence[RungResult], rows: int, alone: int, plain: float | None) -> float:
    """Expected seconds of test: of skins that there are as they were measured on valid, `alone` of the rows one call at
    a time; and `plain` for the next one, which is planned beside them (None where nothing follows)."""
    follows = plain if plain is not None and len(results) < JUDGED else 0.0
    return sum(_seconds(result, rows, alone) for result in results) + follows


def report_seconds(budget: float | None) -> float:
    """For the report."""
    return min(REPORT_SECONDS, REPORT_SHARE * (math.inf if budget is None else budget))


def latency_seconds(budget: float | None) -> float:
    """For timing one skin by single calls."""
    return min(LATENCY_SECONDS, LATENCY_SHARE * (math.inf if budget is None else budget))


def _seconds(result: RungResult, rows: int, alone: int) -> float:
    shares = [row.seconds for row in result.evaluation.rows if row.seconds is not None]
    share = min(sum(shares) / len(shares), result.latency.mean) if shares else result.latency.mean
    return (alone + 1) * result.latency.mean + max(0, rows - alone) * share
