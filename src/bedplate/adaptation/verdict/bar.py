"""What candidates are held against: the bar in scores, what the target is compared with, what has to hold beside."""

from __future__ import annotations

from dataclasses import dataclass, field

from bedplate.adaptation.context.outcome import Latency, RungResult
from bedplate.adaptation.task.target_spec import TargetSpec
from bedplate.adaptation.verdict.estimates import NOTHING, CallPrice, Priced, ReferenceComparison, ReferenceLevel
from bedplate.adaptation.verdict.requirements import RequirementResult, requirements_of
from bedplate.evaluation.costs import Scale
from bedplate.evaluation.evaluated import Evaluation


@dataclass
class Bar:
    """references: split → what the target is against, once it was estimated there."""

    target: TargetSpec
    scale: Scale
    references: dict[str, Priced] = field(default_factory=dict[str, Priced])

    def score(self, split: str) -> float:
        """What an estimate on this split has to be above. Of a target without a value: what it is against, less the
        margin."""
        if self.target.value is not None:
            return self.scale.score(self.target.value)
        allowed = self.target.allowed / (self.scale.worst_usd or 1.0)
        return min(max(self.references[split].estimate - allowed, 0.0), 1.0)

    def judged(self, evaluation: Evaluation, price: CallPrice = NOTHING) -> Priced | ReferenceLevel:
        """An evaluation as the gate asks for it."""
        priced = Priced(evaluation, price)
        return (
            priced
            if self.target.value is not None
            else ReferenceLevel(ReferenceComparison(priced, self.references[evaluation.split]))
        )

    def price(self, result: RungResult, timing: Latency, usd_per_hour: float) -> CallPrice:
        """Of a call that is timed so, where it is a part of what is judged."""
        worst = self.scale.worst_usd
        if worst is None:
            return NOTHING
        usd = result.price(usd_per_hour, timing.mean)
        if result.usd_per_call is not None:
            return CallPrice.fixed(usd / worst)

        def bounds(confidence: float) -> tuple[float, float]:
            low, high = timing.mean_interval(2 * confidence - 1) or (timing.mean, timing.mean)
            return result.price(usd_per_hour, low) / worst, result.price(usd_per_hour, high) / worst

        return CallPrice(usd / worst, bounds)

    def requirements(self, evaluation: Evaluation, price: CallPrice = NOTHING) -> list[RequirementResult]:
        """What has to hold beside the bar."""
        return requirements_of(self.target, evaluation, price, self.references.get(evaluation.split))
