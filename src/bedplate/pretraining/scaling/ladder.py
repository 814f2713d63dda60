"""A ladder of finished runs as the points of a law, the largest of them held out to check what the law says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bedplate.core.errors import UsageError
from bedplate.pretraining.run.directory import evaluations, read_record
from bedplate.pretraining.scaling.law import Form, Law, LossPrediction, ScalingPoint, fit


@dataclass(frozen=True)
class Ladder:
    """A law of all runs but the largest (`held_out`), what it predicts for that, and whether what was reached lies within
    the interval; and the same law's prediction for further sizes (`extrapolations`)."""

    points: tuple[ScalingPoint, ...]
    held_out: ScalingPoint
    law: Law
    prediction: LossPrediction
    inside: bool
    extrapolations: tuple[tuple[ScalingPoint, LossPrediction], ...]

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "runs": [asdict(point) for point in self.points],
            "held_out": asdict(self.held_out),
            "law": {
                "form": self.law.form,
                "constants": self.law.constants,
                "residual": self.law.residual,
                "degrees_of_freedom": self.law.degrees,
            },
            "prediction": asdict(self.prediction),
            "error": self.held_out.loss - self.prediction.loss,
            "inside": self.inside,
            "asked": [{**asdict(point), "prediction": asdict(prediction)} for point, prediction in self.extrapolations],
        }


def read_ladder(
    directories: Sequence[Path], form: Form | None = None, queries: Sequence[tuple[float, float]] = ()
) -> Ladder:
    """Fits all runs but the largest, by operations. queries: further (parameters, tokens), for which all runs are fitted.

    UsageError for a run that is not finished, runs that cannot be compared (of other texts or tokenizers), or too few.
    """
    keyed_points = sorted((read_point(path) for path in directories), key=lambda pair: pair[0].flops)
    first = keyed_points[0][1] if keyed_points else None
    mismatch = next((point.name for point, key in keyed_points if key != first), None)
    if mismatch is not None:
        raise UsageError(
            f"{mismatch} was judged on other texts, by another objective or with another tokenizer than {keyed_points[0][0].name}"
        )
    points = [point for point, _ in keyed_points]
    if len(points) < 4:
        raise UsageError(f"{len(points)} runs: at least 4 are needed: three to fit and one to hold out")
    *small, largest = points
    law = fit(small, form)
    prediction = law.predict(largest)
    whole = fit(points, law.form) if queries else law
    query_points = [ScalingPoint("asked", n, d, 6 * n * d, float("nan")) for n, d in queries]
    return Ladder(
        tuple(points),
        largest,
        law,
        prediction,
        prediction.low <= largest.loss <= prediction.high,
        tuple((point, whole.predict(point)) for point in query_points),
    )


def read_point(path: Path) -> tuple[ScalingPoint, Any]:
    """A finished run as a point, and what runs must have in common to be compared."""
    record, judged = read_record(path), evaluations(path)
    if record.get("status") != "finished" or not judged:
        raise UsageError(
            f"{path} holds no finished run ({record.get('status', 'no pretraining.json')}); finish it first"
        )
    learned = {name: score for name, score in judged[-1]["held_out"].items() if not score["general"]}
    if not learned:
        failed = "; ".join(judged[-1].get("errors", ())) or "all of its texts are general"
        raise UsageError(f"{path} was not judged at its end on any text that it learned ({failed}); leave it out")
    tokens = sum(score["tokens"] for score in learned.values())
    loss = sum(score["nats_per_token"] * score["tokens"] for score in learned.values()) / tokens
    body, train_tokens = float(record["body"]), float(record["tokens_seen"])
    key = [
        record.get("objective"),
        record["data"]["tokenizer"]["id"],
        {name: (score["documents"], score["bytes"]) for name, score in learned.items()},
    ]
    return ScalingPoint(str(path), body, train_tokens, 6 * body * train_tokens, loss), key
