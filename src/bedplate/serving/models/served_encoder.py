"""Encoders as themselves: they give vectors, or judge texts by the labels of their own head, and write nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from bedplate.core.errors import RequestError
from bedplate.core.values import Given
from bedplate.inference.engine.requests import Classification, Terms
from bedplate.inference.predict.reading import gives_numbers, label_requests, label_scores
from bedplate.models.specs.transformer import Classifier
from bedplate.serving.models.plan import AnswerPlan, PlanResult
from bedplate.serving.models.served import PLAIN, Answer, Reading, ServedBase
from bedplate.serving.wire.fields import ChatRequest, CompletionRequest
from bedplate.text.encoder_inputs import TextOrPair

PAIR = ("text", "text_pair")
"""The fields of a pair of texts, as transformers' pipelines call them."""


class ServedEncoder(ServedBase):
    """An encoder without a head of its own: it gives vectors, and nothing else."""

    def chat(self, asked: ChatRequest, terms: Terms) -> AnswerPlan:
        raise self._cannot()

    def complete(self, asked: CompletionRequest, terms: Terms) -> AnswerPlan:
        raise self._cannot()

    def classify(self, inputs: Sequence[Given], terms: Terms, reading: Reading = PLAIN) -> AnswerPlan:
        raise self._cannot()

    def answer(self, found: PlanResult) -> Answer:
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

    def embed(self, inputs: Sequence[str | tuple[int, ...]], reading: Reading = PLAIN) -> AnswerPlan:
        raise self._cannot()

    def classify(self, inputs: Sequence[Given], terms: Terms, reading: Reading = PLAIN) -> AnswerPlan:
        return self._plan([self._pair(one) for one in inputs], reading)

    def rerank(self, query: str, documents: Sequence[str], terms: Terms, reading: Reading = PLAIN) -> AnswerPlan:
        if len(self._head.labels) > 1:
            raise RequestError(
                f"{self.name!r} tells {len(self._head.labels)} labels apart and ranks nothing; use /v1/classify, or "
                "ask a cross-encoder (of one label) or an embedder",
                param="model",
            )
        return self._plan([(query, document) for document in documents], reading)

    def relevances(self, found: Sequence[PlanResult]) -> list[float]:
        return [self._scores(one)[0] for one in found]

    def answer(self, found: PlanResult) -> Answer:
        head, scores = self._head, self._scores(found)
        named = dict(zip(head.labels, scores, strict=True))
        label = max(head.labels, key=lambda one: named[one])
        if gives_numbers(head):
            return Answer(label, "stop", found.usage, extension={"label": label, "numbers": named})
        said: dict[str, Any] = {"label": label, "probabilities": named}
        if head.problem == "any":
            chosen = [one for one in head.labels if named[one] >= 0.5]
            label, said = json.dumps(chosen, ensure_ascii=False), {"labels": chosen, "probabilities": named}
        return Answer(label, "stop", found.usage, extension=said)

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        del described["dimensions"]
        return described | {"labels": list(self._head.labels)}

    def _plan(self, inputs: Sequence[TextOrPair], reading: Reading) -> AnswerPlan:
        return AnswerPlan(self.engine, label_requests(self.engine.base, inputs, truncate=reading.truncate))

    def _scores(self, found: PlanResult) -> list[float]:
        return label_scores(self._head, cast(Classification, found.last).scores)

    def _pair(self, given: Given) -> TextOrPair:
        if isinstance(given, str):
            return given
        fields = given if isinstance(given, Mapping) else {}
        first, second = (fields.get(name) for name in PAIR)
        if set(fields) != set(PAIR) or not isinstance(first, str) or not isinstance(second, str):
            raise RequestError(
                f"{self.name!r} takes a text, or a pair of texts as an object of {' and '.join(PAIR)}", param="input"
            )
        return first, second

    def _cannot(self) -> RequestError:
        what = "judges pairs of texts" if len(self._head.labels) == 1 else "classifies texts"
        return RequestError(
            f"{self.name!r} {what} and does nothing else; use /v1/classify"
            + (" or /v1/rerank" if len(self._head.labels) == 1 else ""),
            param="model",
        )
