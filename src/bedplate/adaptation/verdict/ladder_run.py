"""The state of one run of the ladder: its inputs, and the results that its steps add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bedplate.adaptation.context.clock import Stopwatch
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungOutcome, RungResult, Tested
from bedplate.adaptation.labels.label_plan import Looking
from bedplate.adaptation.search.candidates import Candidate
from bedplate.adaptation.search.guards import GuardResult
from bedplate.adaptation.verdict.acceptance import AcceptanceCriteria
from bedplate.adaptation.verdict.decision import GateVerdict
from bedplate.adaptation.verdict.rules_of_thumb import Expectation
from bedplate.evaluation.examples import TaskData
from bedplate.evaluation.ledger import Opening
from bedplate.report.schema_parts import Formats


@dataclass
class LadderRun:
    """One run of the ladder: filled step by step by `adaptation.ladder`, read by `report`.

    Inputs: contexts (one for each base, the task's first base first), data, candidates, acceptance criteria,
    expectations (rules of thumb), looking (a label budget's rows) and watch.

    Results: outcomes of all candidates; results of those that were fitted, in the weights to serve; formats tried for
    nominees; guards of nominees on child bases; tested, by candidate; the opening of test, with the seconds reserved
    for it and the error rate (alpha) that it may spend; and the verdict.
    """

    contexts: Sequence[Context]
    data: TaskData
    candidates: dict[str, Candidate]
    criteria: AcceptanceCriteria
    expectations: Sequence[Expectation]
    looking: Looking | None
    watch: Stopwatch
    outcomes: dict[str, RungOutcome] = field(default_factory=dict[str, RungOutcome])
    results: dict[str, RungResult] = field(default_factory=dict[str, RungResult])
    formats: dict[str, Formats] = field(default_factory=dict[str, Formats])
    guards: dict[str, list[GuardResult]] = field(default_factory=dict[str, list[GuardResult]])
    tested: dict[str, Tested] = field(default_factory=dict[str, Tested])
    opening: Opening | None = None
    reserved: float | None = None
    alpha: float = 0.0
    verdict: GateVerdict = field(init=False)

    @property
    def context(self) -> Context:
        """The context of the task's first base."""
        return self.contexts[0]

    def take_results(self) -> None:
        """Sets `results` from the outcomes so far, in the weights that candidates were fitted with."""
        self.results = {name: o.result for name, o in self.outcomes.items() if o.result is not None}

    @property
    def served(self) -> dict[str, RungOutcome]:
        """The outcomes, with the results in the weights to serve."""
        return {name: replace(outcome, result=self.results.get(name)) for name, outcome in self.outcomes.items()}
