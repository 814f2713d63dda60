"""The most frequent label of train, whatever the input: the floor under every other number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bedplate.adaptation.context import Context
from bedplate.adaptation.rungs.base import Latency, Plan, Result, Skip
from bedplate.evaluation.harness import Predicts, evaluate_predictions
from bedplate.inference.predict import Prediction


class Constant:
    """Answers every row with one label."""

    def __init__(self, label: str) -> None:
        self.label = label

    def predict(self, rows: Sequence[dict[str, str]], /) -> list[Prediction]:
        return [Prediction(self.label, self.label) for _ in rows]


class Majority:
    """A reference: no model is behind it."""

    name = "majority"
    reference = True

    def plan(self, context: Context) -> Plan | Skip:
        return Plan()

    def fit(self, context: Context, plan: Plan, directory: Path) -> Result:
        label = self._label(context)
        predictions = Constant(label).predict([e.inputs for e in context.valid])
        evaluation = evaluate_predictions(context.task, context.valid, predictions, seed=context.seed)
        reason = f"reference, never nominated: always answers {label!r}, the most frequent label of train"
        return Result(self.name, evaluation, Latency(0.0, 0.0, 0.0, 0), 0.0, reason, details={"label": label})

    def predictor(self, context: Context, result: Result) -> Predicts:
        return Constant(self._label(context))

    @staticmethod
    def _label(context: Context) -> str:
        counts = Counter(example.target for example in context.train)
        return max(context.labels, key=lambda label: counts[label])
