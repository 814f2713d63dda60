"""POST /v1/classify: labels with their probabilities, from a skin with labels or an encoder with a classification head.

Reference: vLLM's classification API. `probs` are in the order of the labels, which /v1/models lists; `scores` stands in
their place where a head gives numbers that are no probabilities. Where any
number of labels may be right, each has its own probability, `labels` lists the chosen, and `label` is that as text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BeforeValidator
from starlette.responses import Response

from bedplate.serving.api.embeddings import prompt_usage
from bedplate.serving.models.served import Answer, TextReading
from bedplate.serving.request.lifecycle import ApiCall, answers
from bedplate.serving.schemas.openai_fields import CUT, MAX_PROMPTS, RequestFields
from bedplate.serving.schemas.strict_json import json_response

router = APIRouter()


_Inputs = str | dict[str, str] | list[str | dict[str, str]]


def _inputs_of(value: Any) -> Any:
    """A tuple of inputs from one or a list of them: each a text, or an object of texts for a skin of several inputs."""
    inputs: list[Any] = value if isinstance(value, list) else [value]
    if not inputs:
        raise ValueError("the input is an empty list; give at least one text")
    if len(inputs) > MAX_PROMPTS:
        raise ValueError(f"at most {MAX_PROMPTS} inputs are supported in one request")
    if not all(isinstance(input_text, str | dict) for input_text in inputs):
        raise ValueError("the input must be a text, an object of a skin's inputs, or a list of either")
    return tuple(inputs)


class ClassifyRequest(RequestFields):
    """POST /v1/classify. `input`: a text, an object of a skin's inputs (or of `text` and `text_pair`, a pair for a
    classifier), or a list of either."""

    model: str
    truncate_prompt_tokens: CUT = False
    input: Annotated[tuple[str | dict[str, str], ...], BeforeValidator(_inputs_of, json_schema_input_type=_Inputs)]

    @property
    def skin_inputs(self) -> Sequence[str | dict[str, str]]:
        return self.input


@router.post("/v1/classify")
@router.post("/classify")
@answers("classify")
async def classify(call: ApiCall, request: ClassifyRequest) -> Response:
    served = await call.choose(request.model)
    reading = TextReading(truncate=request.truncate_prompt_tokens)
    plan = await call.prepare(lambda terms: served.classify(request.input, terms, reading), "input")
    results = await call.in_turns(plan, "input")
    answers = [served.answer(result) for result in results]
    call.account(request, results, answers)
    data: list[dict[str, Any]] = []
    for index, answer in enumerate(answers):
        extension = answer.extension or {}
        numbers = extension.get("numbers")
        scores = label_probabilities(answer) if numbers is None else numbers
        row = {"index": index, "label": answer.text, "probs" if numbers is None else "scores": list(scores.values())}
        chosen = {"labels": extension["labels"]} if "labels" in extension else {}
        data.append({**row, "num_classes": len(scores), **chosen})
    return json_response(
        {
            "id": f"classify-{call.id}",
            "object": "list",
            "created": int(time.time()),
            "model": request.model,
            "data": data,
            "usage": {**prompt_usage(results), "completion_tokens": 0},
        }
    )


def label_probabilities(answer: Answer) -> dict[str, float]:
    """Each label's probability, in their order."""
    assert answer.extension is not None
    if "probabilities" in answer.extension:
        return dict(answer.extension["probabilities"])
    return {label: math.exp(score) for label, score in answer.extension["scores"].items()}
