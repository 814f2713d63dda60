"""A served cascade: the first skin is asked, and where it is unsure the second, within the same call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bedplate.core.errors import RequestError, SkinError
from bedplate.core.values import TaskInput
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import LookupContext, Result
from bedplate.inference.predict.callable_skin import is_unsure
from bedplate.serving.models.answer_plan import AnswerPlan, PlanResult
from bedplate.serving.models.served import PLAIN, Answer, TextReading
from bedplate.serving.models.served_skin import ServedSkin
from bedplate.serving.schemas.openai_fields import ChatRequest, CompletionRequest
from bedplate.skins.card import Card


class ServedCascade(ServedSkin):
    """Two served skins under one name. In memory means both are; either can be on any of the server's engines."""

    def __init__(self, card: Card, first: ServedSkin, second: ServedSkin, *, name: str | None = None) -> None:
        """SkinError for a card that is no cascade's."""
        if "cascade" not in card.parts:
            raise SkinError(f"skin {card.name!r} of kind {card.kind!r} is not a cascade")
        self.card, self.name = card, card.name if name is None else name
        self.first, self.second = first, second
        # A bag-of-words model, which comes first, has no tokenizer: the other one stands for the cascade then.
        self.answerer = first.answerer if first.answerer.describe().tokenizer else second.answerer
        self.warnings = [*first.warnings, *second.warnings]
        self._threshold: float | None = None

    @property
    def fingerprint(self) -> str:
        return self.first.fingerprint

    @property
    def dimensions(self) -> int:
        return self.second.dimensions

    @property
    def adapted_on(self) -> Engine | None:
        return self.second.adapted_on or self.first.adapted_on

    def check(self) -> None:
        self._read_registered()
        self.first.check()
        self.second.check()

    def load(self) -> None:
        # Its two skins read their own weights, and give them to their engines: nothing else of it is kept.
        cascade = self._read_registered().cascade
        assert cascade is not None
        self._threshold = cascade.threshold
        del cascade
        self.first.load()
        try:
            self.second.load()
        except BaseException:
            self.first.unload()
            raise

    def unload(self) -> None:
        self.first.unload()
        self.second.unload()

    @property
    def is_warm(self) -> bool:
        first = self.first.is_warm
        return self.second.is_warm and first

    def warm(self) -> None:
        self.first.warm()
        self.second.warm()

    def classify(self, inputs: Sequence[TaskInput], terms: LookupContext, reading: TextReading = PLAIN) -> AnswerPlan:
        self._refuse(reading)
        input_values = [self._input(raw_input) if isinstance(raw_input, str) else raw_input for raw_input in inputs]
        return replace(self.first.classify(input_values, terms), inputs=input_values, followup=self)

    def embed(self, inputs: Sequence[str | tuple[int, ...]], reading: TextReading = PLAIN) -> AnswerPlan:
        raise RequestError(f"{self.name!r} is a skin and has no embeddings; ask a base", param="model")

    def _plan(self, texts: Sequence[str], body: ChatRequest | CompletionRequest, terms: LookupContext) -> AnswerPlan:
        self.first.refuse_settings(body)
        return self.classify(texts, terms)

    def is_unsure(self, result: Result) -> bool:
        """Whether the second skin is to be asked after this result of the first."""
        assert self._threshold is not None
        return is_unsure(self._threshold, self.first.read(result))

    def next_plan(self, inputs: Sequence[TaskInput], terms: LookupContext) -> AnswerPlan:
        """The second skin is asked."""
        return self.second.classify(inputs, terms)

    def answer(self, plan_result: PlanResult) -> Answer:
        passed_on = len(plan_result.steps) > 1
        answer = (self.second if passed_on else self.first).answer(plan_result)
        return replace(answer, usage=plan_result.usage, extension={**(answer.extension or {}), "passed_on": passed_on})
