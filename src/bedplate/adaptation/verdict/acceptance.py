"""What the candidates of a ladder have to clear: their bar and requirements, on valid as they are climbed and on test,
and the system that runs today beside them; a bar that no model can be expected to reach against rows whose labels agree
no better; and all that one run has found out so far (`LadderRun`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import Latency, RungOutcome, RungResult, Tested
from bedplate.adaptation.search.guards import GuardResult, guards_pass
from bedplate.adaptation.task.target_spec import CURRENT, TargetSpec
from bedplate.adaptation.verdict.requirements import (
    NOTHING,
    CallPrice,
    Priced,
    ReferenceLevel,
    RequirementResult,
    requirements_of,
)
from bedplate.core.errors import DataError, UsageError
from bedplate.evaluation.costs import Scale
from bedplate.evaluation.evaluated import Evaluation
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import evaluate_predictions
from bedplate.evaluation.task import Task
from bedplate.report.schema_parts import Requirement


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
        return priced if self.target.value is not None else ReferenceLevel(priced, self.references[evaluation.split])

    def price(self, result: RungResult, timing: Latency, usd_per_hour: float) -> CallPrice:
        """The price of a call with these timings, where it is a part of what is judged."""
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


@dataclass(frozen=True)
class NomineesOnTest:
    """The nominees on test. score: the bar; judged: as the gate asks for them; shown: what else is required of each."""

    score: float
    judged: Mapping[str, Priced | ReferenceLevel]
    shown: Mapping[str, Sequence[RequirementResult]]

    @property
    def claims(self) -> int:
        """Claims that a nominee falls short, of the bar or of a requirement, which share one error."""
        return max((requirement.claims for shown in self.shown.values() for requirement in shown), default=1)

    def passes(self, name: str, guards: Sequence[GuardResult], confidence: float) -> bool:
        """Whether a nominee's guards and all that is required of it are shown to hold."""
        return guards_pass(guards, confidence) and all(
            requirement.is_shown(confidence) for requirement in self.shown[name]
        )

    def at(self, levels: Mapping[str, float]) -> dict[str, list[Requirement]]:
        """What the report says of the requirements, each nominee's at its own level; of those that have any."""
        return {
            name: [requirement.at(levels[name]) for requirement in shown] for name, shown in self.shown.items() if shown
        }


class AcceptanceCriteria:
    """current: split → the system that runs today, where the task has its answers."""

    def __init__(self, context: Context) -> None:
        self.task, self.spec, self.seed = context.task, context.spec, context.seed
        self.bar = Bar(self.spec.target, self.task.scale)
        self.against = self.spec.target.against
        self.current: dict[str, Evaluation] = {}
        self._short: dict[tuple[str, str | None, bool], tuple[str, ...]] = {}
        self._answered(context.valid, "valid")

    @property
    def score(self) -> float:
        """The bar on valid; 0 until there is what it is to be compared with."""
        return self.bar.score("valid") if self._ready else 0.0

    def compare(self, results: Mapping[str, RungResult]) -> None:
        """Takes the candidate that the target is against, if it was climbed by now."""
        if self.against is not None and self.against in results:
            result = results[self.against]
            self.bar.references["valid"] = Priced(result.evaluation, self._price(result))

    def settle(self, outcomes: Mapping[str, RungOutcome]) -> None:
        """UsageError where the candidate that the target is against was not made: nothing can be decided then."""
        if self.against not in (None, CURRENT):
            self.compare({name: outcome.result for name, outcome in outcomes.items() if outcome.result is not None})
            if "valid" not in self.bar.references:
                reason = outcomes[self.against].reason if self.against in outcomes else "there is no such candidate"
                raise UsageError(
                    f"adapt.target.against: {self.against} was not made ({reason}), so there is nothing to compare "
                    "with; change that, or the target, and give the same command again: what is finished is kept"
                )

    def judged(self, result: RungResult) -> Priced | ReferenceLevel:
        """A candidate on valid, as the gate asks for it."""
        return self.bar.judged(result.evaluation, self._price(result)) if self._ready else Priced(result.evaluation)

    def short(self, result: RungResult) -> tuple[str, ...]:
        """What is required and not met by a candidate's estimates on valid."""
        key = (result.rung, result.skin_id, "valid" in self.bar.references)
        if key not in self._short:
            requirements = self.bar.requirements(result.evaluation, self._price(result))
            self._short[key] = tuple(requirement.words for requirement in requirements if not requirement.met)
        return self._short[key]

    def question_parts(self, hashes: Mapping[str, str]) -> dict[str, Any]:
        """What tells a verdict from another on the same rows, metric, target and skins: the files that answers,
        weights and slices are read from, where the task has any. hashes: of files and splits."""
        data = self.task.data
        if data.current is None and not data.sliced and not data.traffic.duplicates:
            return {}
        return {"files": {name: digest for name, digest in hashes.items() if name.startswith("file:")}}

    def open_test(
        self, examples: Sequence[Example], tested: Mapping[str, Tested], results: Mapping[str, RungResult]
    ) -> None:
        """What the nominees are compared with, on test."""
        self._answered(examples, "test")
        if self.against is not None and self.against in tested:
            self.bar.references["test"] = self._on_test(self.against, tested, results)

    def on_test(
        self, nominees: Sequence[str], tested: Mapping[str, Tested], results: Mapping[str, RungResult]
    ) -> NomineesOnTest:
        """The nominees, once test was opened for them."""
        priced_nominees = {name: self._on_test(name, tested, results) for name in nominees}
        return NomineesOnTest(
            self.bar.score("test" if nominees else "valid"),
            {name: self.bar.judged(priced.evaluation, priced.price) for name, priced in priced_nominees.items()},
            {name: self.bar.requirements(priced.evaluation, priced.price) for name, priced in priced_nominees.items()},
        )

    def priced(self, evaluation: Evaluation, result: RungResult, timing: Latency) -> Priced:
        """Any candidate's evaluation with the price of its calls."""
        return Priced(evaluation, self.bar.price(result, timing, self.spec.machine.usd_per_hour))

    def net(self, evaluation: Evaluation, result: RungResult, timing: Latency) -> Evaluation:
        """The evaluation with the price of a call taken off every row, to be compared."""
        priced = self.priced(evaluation, result, timing)
        if priced.price is NOTHING:
            return evaluation
        rows = tuple(replace(row, score=row.score - priced.price.share) for row in evaluation.rows)
        return replace(evaluation, rows=rows, estimate=priced.estimate, interval=priced.interval)

    def priced_current(self, split: str) -> Priced:
        """The system that runs today."""
        spec, worst = self.task.data.current, self.task.scale.worst_usd
        assert spec is not None
        usd = (spec.usd_per_1k_calls or 0.0) / 1000
        return Priced(self.current[split], NOTHING if worst is None else CallPrice.fixed(usd / worst))

    @property
    def _ready(self) -> bool:
        return self.spec.target.value is not None or "valid" in self.bar.references

    def _price(self, result: RungResult) -> CallPrice:
        return self.bar.price(result, result.latency, self.spec.machine.usd_per_hour)

    def _on_test(self, name: str, tested: Mapping[str, Tested], results: Mapping[str, RungResult]) -> Priced:
        return self.priced(tested[name].evaluation, results[name], tested[name].latency)

    def _answered(self, examples: Sequence[Example], split: str) -> None:
        if self.task.data.current is not None:
            answers = [example.current for example in examples]
            evaluation = evaluate_predictions(self.task, examples, answers, split=split, seed=self.seed)
            if split == "valid" and evaluation.unparsed == evaluation.n:  # before anything is made, and test is open
                raise DataError(_unusable(self.task, self.task.data.current.column, answers))
            self.current[split] = evaluation
            if self.against == CURRENT:
                self.bar.references[split] = self.priced_current(split)


def _unusable(task: Task, column: str, answers: Sequence[str | None]) -> str:
    sample_answer = next((answer for answer in answers if answer is not None), None)
    problem = "is empty" if sample_answer is None else f"holds no answer of this task (but {sample_answer!r}, for one)"
    labels_note = f"; the labels are {', '.join(task.labels)}" if task.labels else ""
    return (
        f"{task.path}: data.current: column {column!r} {problem} in all {len(answers)} rows of valid, so that every "
        f"skin would look better than it{labels_note}; correct the column, or take `current` out"
    )
