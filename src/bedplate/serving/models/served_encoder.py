"""Served encoders: they give vectors, or the labels of their classification head, and generate nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from bedplate.core.errors import RequestError
from bedplate.core.values import TaskInput
from bedplate.inference.engine.requests import Classification, LookupContext
from bedplate.inference.predict.text_reading import gives_numbers, label_requests, label_scores
from bedplate.models.specs.transformer import Classifier
from bedplate.serving.models.answer_plan import AnswerPlan, PlanResult
from bedplate.serving.models.served import PLAIN, Answer, ServedBase, TextReading
from bedplate.serving.schemas.openai_fields import ChatRequest, CompletionRequest
from bedplate.text.tokenizer import TextOrPair

PAIR = ("text", "text_pair")
"""The fields of a pair of texts, as transformers' pipelines call them."""


class ServedEncoder(ServedBase):
    """An encoder without a head of its own: it gives vectors, and nothing else."""

    def chat(self, body: ChatRequest, terms: LookupContext) -> AnswerPlan:
        raise self._cannot()

    def complete(self, body: CompletionRequest, terms: LookupContext) -> AnswerPlan:
        raise self._cannot()

    def classify(self, inputs: Sequence[TaskInput], terms: LookupContext, reading: TextReading = PLAIN) -> AnswerPlan:
        raise self._cannot()

    def answer(self, plan_result: PlanResult) -> Answer:
        raise self._cannot()

    def _cannot(self) -> RequestError:
        return RequestError(f"{self.name!r} embeds texts and does nothing else; use /v1/embeddings", param="model")

    def describe(self) -> dict[str, Any]:
        base = self.engine.base
        prompts = {} if base.sentence is None else {"prompts": dict(base.sentence.spec.prompts)}
        return {**super().describe(), "architecture": "encoder", "dimensions": self.dimensions, **prompts}


class ServedClassifier(ServedEncoder):
    """An encoder with labels of its own: a classifier, or with one label a cross-encoder."""

    @property
    def _head(self) -> Classifier:
        head = self.engine.base.spec.classifier
        assert head is not None
        return head

    def embed(self, inputs: Sequence[str | tuple[int, ...]], reading: TextReading = PLAIN) -> AnswerPlan:
        raise self._cannot()

    def classify(self, inputs: Sequence[TaskInput], terms: LookupContext, reading: TextReading = PLAIN) -> AnswerPlan:
        return self._plan([self._pair(raw_input) for raw_input in inputs], reading)

    def rerank(
        self, query: str, documents: Sequence[str], terms: LookupContext, reading: TextReading = PLAIN
    ) -> AnswerPlan:
        if len(self._head.labels) > 1:
            raise RequestError(
                f"{self.name!r} tells {len(self._head.labels)} labels apart and ranks nothing; use /v1/classify, or "
                "ask a cross-encoder (of one label) or an embedder",
                param="model",
            )
        return self._plan([(query, document) for document in documents], reading)

    def relevances(self, plan_results: Sequence[PlanResult]) -> list[float]:
        return [self._scores(plan_result)[0] for plan_result in plan_results]

    def answer(self, plan_result: PlanResult) -> Answer:
        head, scores = self._head, self._scores(plan_result)
        named = dict(zip(head.labels, scores, strict=True))
        label = max(head.labels, key=lambda candidate: named[candidate])
        if gives_numbers(head):
            return Answer(label, "stop", plan_result.usage, extension={"label": label, "numbers": named})
        extension: dict[str, Any] = {"label": label, "probabilities": named}
        if head.problem == "any":
            chosen = [candidate for candidate in head.labels if named[candidate] >= 0.5]
            label, extension = json.dumps(chosen, ensure_ascii=False), {"labels": chosen, "probabilities": named}
        return Answer(label, "stop", plan_result.usage, extension=extension)

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        del described["dimensions"]
        return described | {"labels": list(self._head.labels)}

    def _plan(self, inputs: Sequence[TextOrPair], reading: TextReading) -> AnswerPlan:
        return AnswerPlan(self.answerer, label_requests(self.engine.base, inputs, truncate=reading.truncate))

    def _scores(self, plan_result: PlanResult) -> list[float]:
        return label_scores(self._head, cast(Classification, plan_result.last).scores)

    def _pair(self, raw_input: TaskInput) -> TextOrPair:
        if isinstance(raw_input, str):
            return raw_input
        fields = raw_input if isinstance(raw_input, Mapping) else {}
        first, second = (fields.get(name) for name in PAIR)
        if set(fields) != set(PAIR) or not isinstance(first, str) or not isinstance(second, str):
            raise RequestError(
                f"{self.name!r} takes a text, or a pair of texts as an object of {' and '.join(PAIR)}", param="input"
            )
        return first, second

    def _cannot(self) -> RequestError:
        ability = "judges pairs of texts" if len(self._head.labels) == 1 else "classifies texts"
        return RequestError(
            f"{self.name!r} {ability} and does nothing else; use /v1/classify"
            + (" or /v1/rerank" if len(self._head.labels) == 1 else ""),
            param="model",
        )
