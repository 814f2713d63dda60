"""The most frequent answer of train, whatever the input: the floor under every other number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import Latency, RungPlan, RungResult, Skip
from bedplate.adaptation.rungs.rung import Rung, Traits
from bedplate.core.values import Values
from bedplate.evaluation.harness import Predicts, evaluate_predictions
from bedplate.inference.predict.predictor import Prediction

SHOWN = 60
"""Characters of a long answer that the reason quotes."""


class Constant:
    """Answers every row alike."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def predict(self, rows: Sequence[Values], /) -> list[Prediction]:
        return [Prediction(self.answer, self.answer) for _ in rows]


class Majority(Rung):
    """A reference: no model is behind it."""

    name = "majority"
    traits = Traits(
        side="reference", needs="nothing", own_prompt=True, no_curve="it says how often the most frequent label occurs"
    )

    def plan(self, context: Context) -> RungPlan | Skip:
        return RungPlan()

    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        answer, count = self._answer(context)
        predictions = Constant(answer).predict([e.inputs for e in context.valid])
        evaluation = evaluate_predictions(context.task, context.valid, predictions, seed=context.seed)
        noun = "label" if context.labels else "answer"
        shown = answer if len(answer) <= SHOWN else f"{answer[:SHOWN]}…"
        reason = f"reference, never nominated: always answers {shown!r}, the most frequent {noun} of train"
        reason += "" if context.labels else f" ({count} of {len(context.train)} rows)"
        details = {"label": answer} if context.labels else {"answer": answer, "rows": count}
        return RungResult(self.name, evaluation, Latency(0.0, 0.0, 0.0, 0), 0.0, reason, details=details)

    def predictor(self, context: Context, result: RungResult) -> Predicts:
        return Constant(self._answer(context)[0])

    @staticmethod
    def _answer(context: Context) -> tuple[str, int]:
        """The answer and how many rows of train have it; of equally frequent ones the first label, or the first text in
        alphabetical order."""
        counts = Counter(example.target for example in context.train)
        answer = max(context.labels or sorted(counts), key=lambda target: counts[target])
        return answer, counts[answer]
