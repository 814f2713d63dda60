"""How a metric's numbers are said. Scores lie in 0 to 1 and more is better; where they stand for costs, 1 is a call
that costs nothing, 0 one that costs the most, and what is said are US dollars of a call, of which less is better."""

from __future__ import annotations

from dataclasses import dataclass

from bedplate.core.display import chosen


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
