"""Acceptance criteria of a ladder's candidates: the bar and the further requirements, evaluated on valid while
candidates are fitted and on test for the nominees, together with the current system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import Latency, RungOutcome, RungResult, Tested
from bedplate.adaptation.search.guards import GuardResult, guards_pass
from bedplate.adaptation.task.target_spec import CURRENT, TargetSpec
from bedplate.adaptation.verdict.requirements import (
    NO_PRICE,
    CallPrice,
    Priced,
    ReferenceLevel,
    RequirementResult,
    compared,
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
    """The bar of a target: a fixed value, or the estimate of a reference candidate. references: by split, the
    reference's evaluation."""

    target: TargetSpec
    scale: Scale
    references: dict[str, Priced] = field(default_factory=dict[str, Priced])

    def score(self, split: str) -> float:
        """The score that an estimate on this split must exceed. Without a fixed value: the reference's estimate, less
        the margin."""
        if self.target.value is not None:
            return self.scale.score(self.target.value)
        allowed = self.target.allowed / (self.scale.worst_usd or 1.0)
        return min(max(self.references[split].estimate - allowed, 0.0), 1.0)

    def judged(self, evaluation: Evaluation, price: CallPrice = NO_PRICE) -> Priced | ReferenceLevel:
        """An evaluation in the form that the gate bounds: the metric itself, or its difference from the reference."""
        priced = Priced(evaluation, price)
        return (
            priced
            if self.target.value is not None
            else ReferenceLevel(*compared(priced, self.references[evaluation.split]))
        )

    def price(self, result: RungResult, timing: Latency, usd_per_hour: float) -> CallPrice:
        """The price of a call with these timings; NO_PRICE where the task's score does not include it."""
        worst = self.scale.worst_usd
        if worst is None:
            return NO_PRICE
        usd = result.price(usd_per_hour, timing.mean)
        if result.usd_per_call is not None:
            return CallPrice.fixed(usd / worst)

        def bounds(confidence: float) -> tuple[float, float]:
            low, high = timing.mean_interval(2 * confidence - 1) or (timing.mean, timing.mean)
            return result.price(usd_per_hour, low) / worst, result.price(usd_per_hour, high) / worst

        return CallPrice(usd / worst, bounds)

    def requirements(self, evaluation: Evaluation, price: CallPrice = NO_PRICE) -> list[RequirementResult]:
        """The requirements of the target in addition to its bar."""
        return requirements_of(self.target, evaluation, price, self.references.get(evaluation.split))


@dataclass(frozen=True)
class NomineesOnTest:
    """The nominees' evaluations on test. score: the bar; judged: by nominee, the estimates to bound; shown: by nominee,
    the further requirements; conditions: the number of a nominee's guards and limits, which can also cause a FAIL."""

    score: float
    judged: Mapping[str, Priced | ReferenceLevel]
    shown: Mapping[str, Sequence[RequirementResult]]
    conditions: int = 0

    @property
    def claims(self) -> int:
        """The number of claims that a nominee misses the bar, a requirement, a guard or a limit; they share one error
        rate."""
        required = max((requirement.claims for shown in self.shown.values() for requirement in shown), default=1)
        return required + self.conditions

    def passes(self, name: str, guards: Sequence[GuardResult], confidence: float) -> bool:
        """Whether a nominee's guards and requirements are shown to hold at this confidence."""
        return guards_pass(guards, confidence) and all(
            requirement.is_shown(confidence) for requirement in self.shown[name]
        )

    def at(self, levels: Mapping[str, float]) -> dict[str, list[Requirement]]:
        """The report's rows of requirements, each nominee's at its own confidence; of nominees that have any."""
        return {
            name: [requirement.at(levels[name], self.conditions) for requirement in shown]
            for name, shown in self.shown.items()
            if shown
        }


class AcceptanceCriteria:
    """The bar and requirements of one run. current: by split, the evaluation of the current system, where the task has
    its answers."""

    def __init__(self, context: Context) -> None:
        self.task, self.spec, self.seed = context.task, context.spec, context.seed
        self.bar = Bar(self.spec.target, self.task.scale)
        self.against = self.spec.target.against
        self.current: dict[str, Evaluation] = {}
        self._unmet: dict[tuple[str, str | None, bool], tuple[str, ...]] = {}
        self._evaluate_current(context.valid, "valid")

    @property
    def score(self) -> float:
        """The bar on valid; 0 until its reference candidate is evaluated."""
        return self.bar.score("valid") if self._ready else 0.0

    def compare(self, results: Mapping[str, RungResult]) -> None:
        """Sets the reference on valid, if the candidate that the target is against has been evaluated."""
        if self.against is not None and self.against in results:
            result = results[self.against]
            self.bar.references["valid"] = Priced(result.evaluation, self._price(result))

    def settle(self, outcomes: Mapping[str, RungOutcome]) -> None:
        """Sets the reference once all candidates have run. UsageError where the one that the target is against has no
        result."""
        if self.against not in (None, CURRENT):
            self.compare({name: outcome.result for name, outcome in outcomes.items() if outcome.result is not None})
            if "valid" not in self.bar.references:
                reason = outcomes[self.against].reason if self.against in outcomes else "there is no such candidate"
                raise UsageError(
                    f"adapt.target.against: {self.against} has no result to compare with ({reason}); change that, or "
                    "the target, and run the same command again: finished work is kept"
                )

    def judged(self, result: RungResult) -> Priced | ReferenceLevel:
        """A candidate's evaluation on valid, in the form that the gate bounds."""
        return self.bar.judged(result.evaluation, self._price(result)) if self._ready else Priced(result.evaluation)

    def unmet_requirements(self, result: RungResult) -> tuple[str, ...]:
        """The requirements that a candidate's estimates on valid do not meet."""
        key = (result.rung, result.skin_id, "valid" in self.bar.references)
        if key not in self._unmet:
            requirements = self.bar.requirements(result.evaluation, self._price(result))
            self._unmet[key] = tuple(requirement.words for requirement in requirements if not requirement.met)
        return self._unmet[key]

    def question_parts(self, hashes: Mapping[str, str]) -> dict[str, Any]:
        """The parts of this verdict's question in the ledger in addition to rows, metric, target and skins: hashes of
        the files that contain current answers, weights and slices. hashes: of files and splits."""
        data = self.task.data
        if data.current is None and not data.sliced and not data.traffic.duplicates:
            return {}
        return {"files": {name: digest for name, digest in hashes.items() if name.startswith("file:")}}

    def open_test(
        self, examples: Sequence[Example], tested: Mapping[str, Tested], results: Mapping[str, RungResult]
    ) -> None:
        """Evaluates on test the current system and the reference, with which nominees are compared."""
        self._evaluate_current(examples, "test")
        if self.against is not None and self.against in tested:
            self.bar.references["test"] = self._on_test(self.against, tested, results)

    def on_test(
        self,
        nominees: Sequence[str],
        tested: Mapping[str, Tested],
        results: Mapping[str, RungResult],
        guards: Mapping[str, Sequence[GuardResult]],
    ) -> NomineesOnTest:
        """The nominees' evaluations, after `open_test`. guards: of nominees that change their base."""
        priced_nominees = {name: self._on_test(name, tested, results) for name in nominees}
        return NomineesOnTest(
            self.bar.score("test" if nominees else "valid"),
            {name: self.bar.judged(priced.evaluation, priced.price) for name, priced in priced_nominees.items()},
            {name: self.bar.requirements(priced.evaluation, priced.price) for name, priced in priced_nominees.items()},
            max((len(guards.get(name, ())) for name in nominees), default=0) + (self.spec.budget.p95_ms is not None),
        )

    def priced(self, evaluation: Evaluation, result: RungResult, timing: Latency) -> Priced:
        """A candidate's evaluation with the price of its calls."""
        return Priced(evaluation, self.bar.price(result, timing, self.spec.machine.usd_per_hour))

    def net(self, evaluation: Evaluation, result: RungResult, timing: Latency) -> Evaluation:
        """The evaluation with the price of a call subtracted from every row, for comparisons."""
        priced = self.priced(evaluation, result, timing)
        if priced.price is NO_PRICE:
            return evaluation
        rows = tuple(replace(row, score=row.score - priced.price.share) for row in evaluation.rows)
        return replace(evaluation, rows=rows, estimate=priced.estimate, interval=priced.interval)

    def priced_current(self, split: str) -> Priced:
        """The current system's evaluation with the price of its calls."""
        spec, worst = self.task.data.current, self.task.scale.worst_usd
        assert spec is not None
        usd = (spec.usd_per_1k_calls or 0.0) / 1000
        return Priced(self.current[split], NO_PRICE if worst is None else CallPrice.fixed(usd / worst))

    @property
    def _ready(self) -> bool:
        return self.spec.target.value is not None or "valid" in self.bar.references

    def _price(self, result: RungResult) -> CallPrice:
        return self.bar.price(result, result.latency, self.spec.machine.usd_per_hour)

    def _on_test(self, name: str, tested: Mapping[str, Tested], results: Mapping[str, RungResult]) -> Priced:
        return self.priced(tested[name].evaluation, results[name], tested[name].latency)

    def _evaluate_current(self, examples: Sequence[Example], split: str) -> None:
        if self.task.data.current is not None:
            answers = [example.current for example in examples]
            evaluation = evaluate_predictions(self.task, examples, answers, split=split, seed=self.seed)
            if split == "valid" and evaluation.unparsed == evaluation.n:  # reported before any candidate is fitted
                raise DataError(_unusable(self.task, self.task.data.current.column, answers))
            self.current[split] = evaluation
            if self.against == CURRENT:
                self.bar.references[split] = self.priced_current(split)


def _unusable(task: Task, column: str, answers: Sequence[str | None]) -> str:
    sample_answer = next((answer for answer in answers if answer is not None), None)
    problem = "is empty" if sample_answer is None else f"has no answer of this task (for example {sample_answer!r})"
    labels_note = f"; the labels are {', '.join(task.labels)}" if task.labels else ""
    return (
        f"{task.path}: data.current: column {column!r} {problem} in all {len(answers)} rows of valid, so every skin "
        f"would look better{labels_note}; correct the column, or remove `current`"
    )
