"""The skin that the verdict is about, seen close: calibration, confusion, slices, and rows with every rung's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bedplate.adaptation.report.data_card import text_of
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Evaluation
from bedplate.evaluation.slices import calibration, confusion, slices
from bedplate.evaluation.task_row import RowResult

SHOWN_WRONG, SHOWN_DISAGREEING, SHOWN_RIGHT = 8, 12, 4


def focus(rung: str, evaluation: Evaluation) -> dict[str, Any]:
    """Calibration, confusion and slices (worst first) as plain values; what the output has no use for is None."""
    measured, confused = calibration(evaluation), confusion(evaluation)
    return {
        "rung": rung,
        "split": evaluation.split,
        "calibration": None if measured is None else asdict(measured),
        "confusion": None if confused is None else asdict(confused),
        "slices": [asdict(part) for part in sorted(slices(evaluation), key=lambda part: part.estimate)],
    }


def examples(valid: Sequence[Example], answered: Mapping[str, Evaluation], judged: str | None) -> dict[str, Any]:
    """Valid rows with their texts, each once: the judged rung's surest mistakes, then rows on which the rungs disagree
    (most evenly first), then some that it has right. Test texts stay closed. answered: rung → evaluation on valid."""
    rows = {rung: {row.id: row for row in evaluation.rows} for rung, evaluation in answered.items()}
    disagreeing = [e for e in valid if len({rows[rung][e.id].score for rung in rows}) > 1]
    chosen: dict[str, str] = {}
    if judged is not None:
        surest = sorted(answered[judged].rows, key=lambda row: (-_sureness(row), row.id))
        chosen |= dict.fromkeys([row.id for row in surest if row.score < 1][:SHOWN_WRONG], "wrong")
    evenly = sorted(disagreeing, key=lambda e: (_unevenness([rows[rung][e.id].score for rung in rows]), e.id))
    chosen |= dict.fromkeys([e.id for e in evenly if e.id not in chosen][:SHOWN_DISAGREEING], "disagreement")
    if judged is not None:
        right = [row.id for row in answered[judged].rows if row.score == 1 and row.id not in chosen]
        chosen |= dict.fromkeys(right[:: max(1, len(right) // SHOWN_RIGHT)][:SHOWN_RIGHT], "right")
    by_id = {e.id: e for e in valid}
    return {
        "rung": judged,
        "split": "valid",
        "rows": [_shown(by_id[name], why, rows) for name, why in chosen.items()],
        "disagreeing": len(disagreeing),
    }


def _shown(example: Example, why: str, rows: Mapping[str, Mapping[str, RowResult]]) -> dict[str, Any]:
    return {
        "id": example.id,
        "why": why,
        "text": text_of(example),
        "target": example.target,
        "answers": {rung: found[example.id].prediction for rung, found in rows.items()},
        "scores": {rung: found[example.id].score for rung, found in rows.items()},
    }


def _sureness(row: RowResult) -> float:
    return max(row.scores.values()) if row.scores else 0.0


def _unevenness(scores: Sequence[float]) -> float:
    """0 where half of the rungs are right."""
    return round(abs(sum(scores) / len(scores) - 0.5), 9)
