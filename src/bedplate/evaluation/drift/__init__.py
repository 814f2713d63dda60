"""Drift: whether new rows differ from those a skin was made from, and whether it keeps its promised quality on them.

shifts.py            inputs, lengths and labels: bets against rows that stay as they are
promised_quality.py  the metric against the bound that the verdict showed, and against the bar
drift_decision.py    what to do, in one sentence
"""

from __future__ import annotations

from bedplate.evaluation.drift.drift_decision import Drift, Levels, decide
from bedplate.evaluation.drift.promised_quality import Promise, Quality, quality
from bedplate.evaluation.drift.shifts import Sample, Shift, parts, shifts

__all__ = ["Drift", "Levels", "Promise", "Quality", "Sample", "Shift", "decide", "parts", "quality", "shifts"]
