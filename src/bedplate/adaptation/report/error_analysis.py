"""The skin that the verdict is about, seen close: calibration, confusion, slices, and rows with every rung's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from bedplate.adaptation.report.data_card import text_of
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Evaluation
from bedplate.evaluation.slices import calibration, confusion, slices
from bedplate.evaluation.task_row import GradedRow
from bedplate.report.schema_parts import ExampleRow, Examples, Focus, Split

SHOWN_WRONG, SHOWN_DISAGREEING, SHOWN_RIGHT = 8, 12, 4
Why = Literal["wrong", "disagreement", "right"]


def focus(rung: str, split: Split, evaluation: Evaluation) -> Focus:
    """Calibration, confusion and slices (worst first) on a split; what the output has no use for is None."""
    return Focus(
        rung=rung,
        split=split,
        calibration=calibration(evaluation),
        confusion=confusion(evaluation),
        slices=tuple(sorted(slices(evaluation), key=lambda part: part.estimate)),
    )


def examples(valid: Sequence[Example], answered: Mapping[str, Evaluation], judged: str | None) -> Examples:
    """Valid rows with their texts, each once: the judged rung's surest mistakes, then rows on which the rungs disagree
    (most evenly first), then some that it has right. Test texts stay closed. answered: rung → evaluation on valid."""
    rows = {rung: {row.id: row for row in evaluation.rows} for rung, evaluation in answered.items()}
    disagreeing = [e for e in valid if len({rows[rung][e.id].score for rung in rows}) > 1]
    chosen: dict[str, Why] = {}
    if judged is not None:
        surest = sorted(answered[judged].rows, key=lambda row: (-_sureness(row), row.id))
        chosen |= dict.fromkeys([row.id for row in surest if row.score < 1][:SHOWN_WRONG], "wrong")
    evenly = sorted(disagreeing, key=lambda e: (_unevenness([rows[rung][e.id].score for rung in rows]), e.id))
    chosen |= dict.fromkeys([e.id for e in evenly if e.id not in chosen][:SHOWN_DISAGREEING], "disagreement")
    if judged is not None:
        right = [row.id for row in answered[judged].rows if row.score == 1 and row.id not in chosen]
        chosen |= dict.fromkeys(right[:: max(1, len(right) // SHOWN_RIGHT)][:SHOWN_RIGHT], "right")
    by_id = {e.id: e for e in valid}
    shown = tuple(_shown(by_id[name], why, rows) for name, why in chosen.items())
    return Examples(rung=judged, split="valid", rows=shown, disagreeing=len(disagreeing))


def _shown(example: Example, why: Why, rows: Mapping[str, Mapping[str, GradedRow]]) -> ExampleRow:
    return ExampleRow(
        id=example.id,
        why=why,
        text=text_of(example),
        target=example.target,
        answers={rung: by_example[example.id].prediction for rung, by_example in rows.items()},
        scores={rung: by_example[example.id].score for rung, by_example in rows.items()},
    )


def _sureness(row: GradedRow) -> float:
    return max(row.scores.values()) if row.scores else 0.0


def _unevenness(scores: Sequence[float]) -> float:
    """0 where half of the rungs are right."""
    return round(abs(sum(scores) / len(scores) - 0.5), 9)
