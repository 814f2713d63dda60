"""Metrics in US dollars: a matrix of what each wrong answer costs, or a Python function, and how they are displayed.

metric: {costs: {spam: {ham: 0.40}, ham: {spam: 5.00}}}      # right answer → given answer → dollars
metric: {cost: dear.py:usd, worst_usd: 20}                   # usd(target, prediction) → dollars, from 0 to 20

A row scores 1 - cost / worst, so that it lies in 0 to 1 and more is better, as of every other metric; the expected cost
is what is shown (`Scale`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bedplate.core.display import chosen
from bedplate.core.errors import DataError
from bedplate.core.files import sha256_json
from bedplate.evaluation.metrics import AnsweredRow, Scoring

if TYPE_CHECKING:
    from bedplate.evaluation.metrics_python import PythonMetric


@dataclass(frozen=True)
class Scale:
    """worst_usd: what a call costs at worst, where scores stand for costs; None for every other metric."""

    worst_usd: float | None = None

    @property
    def lower_is_better(self) -> bool:
        return self.worst_usd is not None

    def value(self, score: float) -> float:
        """A score as it is said."""
        return score if self.worst_usd is None else self.worst_usd * (1 - score)

    def score(self, value: float) -> float:
        """The score that is said so."""
        return value if self.worst_usd is None else 1 - value / self.worst_usd

    def difference(self, score_difference: float) -> float:
        """A difference of scores as one of what is said."""
        return score_difference if self.worst_usd is None else -self.worst_usd * score_difference

    def ends(self, low: float, high: float) -> tuple[float, float]:
        """Ends of an interval of scores, the lower first."""
        return (low, high) if self.worst_usd is None else (self.value(high), self.value(low))

    def format_score(self, score: float) -> str:
        return f"{score:.3f}" if self.worst_usd is None else f"${self.value(score):.4f}"

    def bar(self, score: float) -> str:
        """What a target asks for, without digits that say nothing."""
        return chosen(score) if self.worst_usd is None else f"${chosen(self.value(score))}"

    @property
    def lower_phrase(self) -> str:
        """What a lower bound of a score is called."""
        return "at most" if self.lower_is_better else "at least"

    @property
    def upper_phrase(self) -> str:
        return "at least" if self.lower_is_better else "at most"

    @property
    def lower_bound(self) -> str:
        """The bound of what is said that a lower bound of a score is."""
        return "upper bound" if self.lower_is_better else "lower bound"

    @property
    def upper_bound(self) -> str:
        return "lower bound" if self.lower_is_better else "upper bound"


PLAIN = Scale()


@dataclass(frozen=True)
class CostMetric:
    """Costs by a matrix `costs`, right label → answer → dollars, where the right answer costs nothing unless it is
    said; or of a `function`. worst_usd: no answer costs more. An answer that cannot be used costs as much as the worst
    for its row (the matrix) or as the worst of all (the function)."""

    name: str
    worst_usd: float
    costs: Mapping[str, Mapping[str, float]] | None = None
    function: PythonMetric | None = None
    scoring: Scoring = "real"

    def ready(self) -> None:
        """It was ready when it was read."""

    def score(self, rows: Sequence[AnsweredRow]) -> list[float]:
        """DataError naming the row for which the function fails, or gives no number from 0 to `worst_usd`."""
        return [1 - self.cost(row) / self.worst_usd for row in rows]

    def cost(self, row: AnsweredRow) -> float:
        """US dollars."""
        if self.costs is not None:
            costs = self.costs[row.target]
            worst = max(costs.values())
            return worst if row.prediction is None else costs.get(row.prediction, 0.0)
        if row.prediction is None:
            return self.worst_usd
        assert self.function is not None
        usd = self.function.value(row)
        if not (math.isfinite(usd) and 0 <= usd <= self.worst_usd):
            raise DataError(
                f"the cost {self.name} is {usd!r} for row {row.id}; it must lie in 0 to worst_usd, ${self.worst_usd:g}"
            )
        return usd


def matrix_metric(costs: Mapping[str, Mapping[str, float]]) -> CostMetric:
    """The metric of a matrix that fits its task (`check_costs`)."""
    worst = max(cost for line in costs.values() for cost in line.values())
    digest = sha256_json({right: dict(sorted(line.items())) for right, line in sorted(costs.items())})
    return CostMetric(f"usd_per_call ({digest[:8]})", worst, costs)


def function_metric(function: PythonMetric, worst_usd: float) -> CostMetric:
    """The metric of a Python function."""
    return CostMetric(f"usd_per_call: {function.name}, at most {worst_usd:g}", worst_usd, function=function)


def check_costs(costs: Mapping[str, Mapping[str, float]], labels: Sequence[str], abstain: str | None) -> None:
    """Raises ValueError unless each wrong answer, and abstaining where the task has it, has a cost for every label."""
    answers = (*labels, *([abstain] if abstain is not None else []))
    unknown = [answer for answer in costs if answer not in labels]
    unknown += [answer for line in costs.values() for answer in line if answer not in answers]
    if unknown:
        raise ValueError(f"costs: {unknown[0]!r} is no answer of this task; there are {', '.join(answers)}")
    for right in labels:
        for answer in answers:
            if answer != right and answer not in costs.get(right, {}):
                raise ValueError(
                    f"costs: say what it costs to answer {answer!r} where {right!r} is right: {right}: {{{answer}: …}}"
                )
    if not any(cost > 0 for line in costs.values() for cost in line.values()):
        raise ValueError("costs: every answer costs nothing, so there is nothing to choose by")
