"""`AnswerPlan`: the requests that answer a call. A base and a skin take one step; a cascade takes a second one for the
choices that its first skin left unsure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Protocol

from bedplate.core.values import TaskInput
from bedplate.inference.engine.answers import Answers
from bedplate.inference.engine.requests import LookupContext, Request, RequestTiming, Result, Usage
from bedplate.text.calls.reply_form import ReplyForm


class FurtherSteps(Protocol):
    """What follows on a step."""

    def is_unsure(self, result: Result) -> bool:
        """Whether a choice is asked again after this result."""
        ...

    def next_plan(self, inputs: Sequence[TaskInput], terms: LookupContext) -> AnswerPlan:
        """The next step, for choices with these inputs. It may take a while."""
        ...


@dataclass(frozen=True)
class AnswerPlan:
    """The first step: requests to one answerer, one for each choice of a reply in their order. followup: the steps
    after it, which need the choices' inputs. form: of the texts that come of them, None where all is content."""

    answerer: Answers
    requests: Sequence[Request]
    inputs: Sequence[TaskInput] = ()
    followup: FurtherSteps | None = None
    form: ReplyForm | None = None

    def on(self, terms: LookupContext) -> AnswerPlan:
        """The same on a caller's terms."""
        requests = [replace(request, tenant=terms.tenant, deadline=terms.deadline) for request in self.requests]
        return replace(self, requests=requests)

    def turns(self, max_choices: int) -> Iterator[AnswerPlan]:
        """The plan in parts of at most so many choices."""
        for start in range(0, len(self.requests), max_choices):
            part = slice(start, start + max_choices)
            yield replace(self, requests=self.requests[part], inputs=self.inputs[part])


@dataclass(frozen=True)
class PlanResult:
    """What came of one choice, step by step. Tokens and time are those of all its steps together."""

    steps: tuple[Result, ...]

    @property
    def last(self) -> Result:
        """The answer that counts."""
        return self.steps[-1]

    @cached_property
    def usage(self) -> Usage:
        return reduce(_both_usages, (step.usage for step in self.steps))

    @cached_property
    def timing(self) -> RequestTiming:
        return reduce(_one_after_the_other, (step.timing for step in self.steps))


def _both_usages(a: Usage, b: Usage) -> Usage:
    return Usage(
        a.prompt_tokens + b.prompt_tokens, a.completion_tokens + b.completion_tokens, a.cached_tokens + b.cached_tokens
    )


def _one_after_the_other(a: RequestTiming, b: RequestTiming) -> RequestTiming:
    return RequestTiming(a.queued + b.queued, a.total + b.first, a.total + b.total, a.compute + b.compute)


def compute_of(results: Sequence[PlanResult]) -> float:
    """Seconds of compute behind results, lookups for them included; the choices of one prompt count theirs once."""
    steps = [step for result in results for step in result.steps]
    looked_up = {id(step.looked_up): step.looked_up.compute for step in steps if step.looked_up is not None}
    return sum(step.timing.compute for step in steps) + sum(looked_up.values())
