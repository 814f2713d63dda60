"""What candidates are held against: the bar in scores, what the target is compared with, what has to hold beside."""

from __future__ import annotations

from dataclasses import dataclass, field

from bedplate.adaptation.context.outcome import Latency, Result
from bedplate.adaptation.task.target_spec import TargetSpec
from bedplate.adaptation.verdict.measured import NOTHING, Against, Level, Price, Priced
from bedplate.adaptation.verdict.requirements import Shown, requirements_of
from bedplate.evaluation.costs.scale import Scale
from bedplate.evaluation.evaluated import Evaluation


@dataclass
class Bar:
    """others: split → what the target is against, once it was estimated there."""

    target: TargetSpec
    scale: Scale
    others: dict[str, Priced] = field(default_factory=dict[str, Priced])

    def score(self, split: str) -> float:
        """What an estimate on this split has to be above. Of a target without a value: what it is against, less the
        margin."""
        if self.target.value is not None:
            return self.scale.score(self.target.value)
        allowed = self.target.allowed / (self.scale.worst_usd or 1.0)
        return min(max(self.others[split].estimate - allowed, 0.0), 1.0)

    def judged(self, evaluation: Evaluation, price: Price = NOTHING) -> Priced | Level:
        """An evaluation as the gate asks for it."""
        own = Priced(evaluation, price)
        return own if self.target.value is not None else Level(Against(own, self.others[evaluation.split]))

    def price(self, result: Result, timing: Latency, usd_per_hour: float) -> Price:
        """Of a call that is timed so, where it is a part of what is judged."""
        worst = self.scale.worst_usd
        if worst is None:
            return NOTHING
        usd = result.price(usd_per_hour, timing.mean)
        if result.usd_per_call is not None:
            return Price.known(usd / worst)

        def bounds(confidence: float) -> tuple[float, float]:
            low, high = timing.mean_interval(2 * confidence - 1) or (timing.mean, timing.mean)
            return result.price(usd_per_hour, low) / worst, result.price(usd_per_hour, high) / worst

        return Price(usd / worst, bounds)

    def requirements(self, evaluation: Evaluation, price: Price = NOTHING) -> list[Shown]:
        """What has to hold beside the bar."""
        return requirements_of(self.target, evaluation, price, self.others.get(evaluation.split))
