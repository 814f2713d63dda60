"""A ladder of finished runs as the points of a law, the largest of them held out to check what the law says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bedplate.core.errors import UsageError
from bedplate.pretraining.run.directory import evaluations, read_record
from bedplate.pretraining.scaling.law import Form, Law, Point, Prediction, fit


@dataclass(frozen=True)
class Ladder:
    """A law of all runs but the largest (`held`), what it predicts for that, and whether what was reached lies within
    the interval; and the same law's prediction for further sizes (`asked`)."""

    points: tuple[Point, ...]
    held: Point
    law: Law
    prediction: Prediction
    inside: bool
    asked: tuple[tuple[Point, Prediction], ...]

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "runs": [asdict(point) for point in self.points],
            "held_out": asdict(self.held),
            "law": {
                "form": self.law.form,
                "constants": self.law.constants,
                "residual": self.law.residual,
                "degrees_of_freedom": self.law.degrees,
            },
            "prediction": asdict(self.prediction),
            "error": self.held.loss - self.prediction.loss,
            "inside": self.inside,
            "asked": [{**asdict(point), "prediction": asdict(found)} for point, found in self.asked],
        }


def read_ladder(
    directories: Sequence[Path], form: Form | None = None, asked: Sequence[tuple[float, float]] = ()
) -> Ladder:
    """Fits all runs but the largest, by operations. asked: further (parameters, tokens), for which all runs are fitted.

    UsageError for a run that is not finished, runs that cannot be compared (of other texts or tokenizers), or too few.
    """
    found = sorted((read_point(path) for path in directories), key=lambda one: one[0].flops)
    first = found[0][1] if found else None
    other = next((point.name for point, key in found if key != first), None)
    if other is not None:
        raise UsageError(
            f"{other} was judged on other texts, by another objective or with another tokenizer than {found[0][0].name}"
        )
    points = [point for point, _ in found]
    if len(points) < 4:
        raise UsageError(f"{len(points)} runs: at least 4 are needed: three to fit and one to hold out")
    *small, held = points
    law = fit(small, form)
    prediction = law.predict(held)
    whole = fit(points, law.form) if asked else law
    further = [Point("asked", n, d, 6 * n * d, float("nan")) for n, d in asked]
    return Ladder(
        tuple(points),
        held,
        law,
        prediction,
        prediction.low <= held.loss <= prediction.high,
        tuple((point, whole.predict(point)) for point in further),
    )


def read_point(path: Path) -> tuple[Point, Any]:
    """A finished run as a point, and what runs must have in common to be compared."""
    record, judged = read_record(path), evaluations(path)
    if record.get("status") != "finished" or not judged:
        raise UsageError(
            f"{path} holds no finished run ({record.get('status', 'no pretraining.json')}); finish it first"
        )
    learned = {name: held for name, held in judged[-1]["held_out"].items() if not held["general"]}
    if not learned:
        failed = "; ".join(judged[-1].get("errors", ())) or "all of its texts are general"
        raise UsageError(f"{path} was not judged at its end on any text that it learned ({failed}); leave it out")
    tokens = sum(held["tokens"] for held in learned.values())
    loss = sum(held["nats_per_token"] * held["tokens"] for held in learned.values()) / tokens
    body, seen = float(record["body"]), float(record["tokens_seen"])
    key = [
        record.get("objective"),
        record["data"]["tokenizer"]["id"],
        {name: (held["documents"], held["bytes"]) for name, held in learned.items()},
    ]
    return Point(str(path), body, seen, 6 * body * seen, loss), key
