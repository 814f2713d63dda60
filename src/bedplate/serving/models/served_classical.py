"""A served bag-of-words skin, which needs no base: it answers while its call is prepared."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from bedplate.core.errors import RequestError
from bedplate.core.values import TaskInput
from bedplate.inference.engine.answers import Facts
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Classification, LookupContext, Request, Result, Stream
from bedplate.inference.predict.classical import ClassicalPredictor
from bedplate.inference.predict.predictor import Prediction
from bedplate.serving.models.answer_plan import AnswerPlan
from bedplate.serving.models.served import PLAIN, TextReading
from bedplate.serving.models.served_skin import ServedSkin
from bedplate.serving.schemas.request_fields import TOKEN_LIMIT
from bedplate.skins.card import Card, card_of
from bedplate.skins.skin import Skin
from bedplate.text.tokenizer import Tokenizer

_serial = itertools.count(1)


@dataclass(frozen=True)
class ImmediateAnswer(Request):
    """A request whose result is there. tokens: one for each word, all of them the request's own number, so that no two
    are taken for the same prompt."""

    result: Classification


class ImmediateAnswers:
    """The answerer of requests that are answered already. facts: of the model whose name they are asked under."""

    alive = True

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def submit(self, request: Request) -> Stream:
        """A stream that has ended."""
        stream = Stream(request)
        stream.finish(cast(ImmediateAnswer, request).result)
        return stream

    def run(self, requests: Sequence[Request]) -> list[Result]:
        return [cast(ImmediateAnswer, request).result for request in requests]

    def tokenize(self, text: str) -> list[int]:
        """UsageError: there is no tokenizer."""
        return self._facts.need_tokenizer().encode_prompt(text)

    def describe(self) -> Facts:
        return self._facts


class ServedClassical(ServedSkin):
    """A bag-of-words model, which needs no base. context_length: the most words of a conversation that it is shown."""

    def __init__(self, source: Card | Skin, context_length: int, *, name: str | None = None) -> None:
        self.card = source if isinstance(source, Card) else card_of(source)
        self.name = self.card.name if name is None else name
        self.answerer = ImmediateAnswers(Facts(self.name, frozenset({"classify"}), context_length))
        self._in_memory = source if isinstance(source, Skin) else None
        self.warnings: list[str] = []
        self._resident: ClassicalPredictor | None = None

    @property
    def adapted_on(self) -> Engine | None:
        return None

    @property
    def tokenizer(self) -> Tokenizer:
        raise RequestError(f"{self.name!r} counts words and has no tokenizer; name a base", param="model")

    @property
    def fingerprint(self) -> str:
        return self.card.id

    @property
    def dimensions(self) -> int:
        return TOKEN_LIMIT  # it has no vectors, which `embed` says

    # In memory or not

    def check(self) -> None:
        ClassicalPredictor(self._in_memory or self._read_registered())

    def load(self) -> None:
        self._resident = ClassicalPredictor(self._in_memory or self._read_registered())

    def unload(self) -> None:
        self._resident = None

    @property
    def is_warm(self) -> bool:
        return True

    def warm(self) -> None:
        """There is nothing that its prompts share."""

    # Asking

    def classify(self, inputs: Sequence[TaskInput], terms: LookupContext, reading: TextReading = PLAIN) -> AnswerPlan:
        self._refuse(reading)
        classifications = [
            self._classifier.classified(self._input(raw_input) if isinstance(raw_input, str) else raw_input)
            for raw_input in inputs
        ]
        numbered = [
            ((next(_serial),) * classification.usage.prompt_tokens, classification)
            for classification in classifications
        ]
        return AnswerPlan(
            self.answerer,
            [ImmediateAnswer(tokens, skin=self.name, result=classification) for tokens, classification in numbered],
        )

    def read(self, result: Result) -> Prediction:
        return self._classifier.read(cast(Classification, result))

    @property
    def _classifier(self) -> ClassicalPredictor:
        if self._resident is None:
            raise RuntimeError(f"the skin {self.name!r} is not in memory; hold a lease on it")
        return self._resident

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "base": None}
