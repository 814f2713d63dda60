"""Routes that read texts and generate none: /v1/embeddings, /v1/classify and /v1/rerank."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BeforeValidator, Field
from starlette.responses import Response

from bedplate.core.errors import RequestError
from bedplate.serving.models.served import PlanResult, TextReading
from bedplate.serving.request.lifecycle import READ_AT_ONCE, ApiCall, answers
from bedplate.serving.schemas.openai_fields import CUT, MAX_PROMPTS, PROMPTS
from bedplate.serving.schemas.request_fields import TOKEN_LIMIT, RequestFields
from bedplate.serving.schemas.strict_json import json_response, large_json_response

router = APIRouter()
NUMBER_BYTES = 20
"""Approximate size of one number in a reply."""


class EmbeddingRequest(RequestFields):
    """POST /v1/embeddings. `input`: a text, a list of texts, token ids, or a list of lists of token ids."""

    model: str
    input: Annotated[tuple[str | tuple[int, ...], ...], PROMPTS]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=TOKEN_LIMIT)] | None = None
    prompt_name: str | None = None
    truncate_prompt_tokens: CUT = False


@router.post("/v1/embeddings")
@answers("embeddings")
async def embeddings(call: ApiCall, request: EmbeddingRequest) -> Response:
    served = await call.choose(request.model)
    if request.dimensions is not None and request.dimensions > served.dimensions:
        message = f"dimensions is {request.dimensions}; {served.name} has {served.dimensions}"
        raise RequestError(message, param="dimensions")
    reading = TextReading(request.prompt_name, request.truncate_prompt_tokens)
    plan = await call.prepare(lambda _: served.embed(request.input, reading), "input")
    results = await call.in_turns(plan, "input")
    call.account(request, results, ())

    def reply() -> Response:
        vectors: list[Any] = [list(served.vector(result, request.dimensions)) for result in results]
        if request.encoding_format == "base64":  # of little-endian float32
            vectors = [base64.b64encode(np.asarray(v, dtype="<f4").tobytes()).decode("ascii") for v in vectors]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        whole = {"object": "list", "data": data, "model": request.model, "usage": prompt_usage(results)}
        return large_json_response(whole, levels=3)

    size = NUMBER_BYTES * len(results) * (request.dimensions or served.dimensions)
    return await call.written(reply, size) if size > READ_AT_ONCE else reply()


def prompt_usage(results: Sequence[PlanResult]) -> dict[str, Any]:
    """Token counts of a reply that generates nothing."""
    tokens = sum(result.usage.prompt_tokens for result in results)
    cached = sum(result.usage.cached_tokens for result in results)
    return {"prompt_tokens": tokens, "total_tokens": tokens, "prompt_tokens_details": {"cached_tokens": cached}}


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
        named, values = ("numbers", "scores") if "numbers" in extension else ("probabilities", "probs")
        scores = dict(extension[named])
        row = {"index": index, "label": answer.text, values: list(scores.values()), "num_classes": len(scores)}
        chosen = {"labels": extension["labels"]} if "labels" in extension else {}
        data.append({**row, **chosen, named: scores})
    head = {"id": f"classify-{call.id}", "object": "list", "created": int(time.time()), "model": request.model}
    return json_response({**head, "data": data, "usage": {**prompt_usage(results), "completion_tokens": 0}})


def _documents_of(value: Any) -> Any:
    """A tuple of texts, from a list of texts or of objects with the one field text."""
    if not isinstance(value, list):
        return value
    texts: list[str] = []
    for document in value:
        text = document["text"] if isinstance(document, dict) and document.keys() == {"text"} else document
        if not isinstance(text, str):
            raise ValueError('a document must be a text or an object {"text": "…"}')
        texts.append(text)
    return tuple(texts)


_DOCUMENTS = BeforeValidator(_documents_of, json_schema_input_type=list[str | dict[str, str]])


class RerankRequest(RequestFields):
    """POST /v1/rerank. top_n: how many of the best to return (default: all)."""

    model: str
    query: str
    documents: Annotated[tuple[str, ...], _DOCUMENTS, Field(min_length=1, max_length=MAX_PROMPTS)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None
    truncate_prompt_tokens: CUT = False


@router.post("/v1/rerank")
@router.post("/v2/rerank")
@router.post("/rerank")
@answers("rerank")
async def rerank(call: ApiCall, request: RerankRequest) -> Response:
    served = await call.choose(request.model)
    reading = TextReading(truncate=request.truncate_prompt_tokens)
    query, documents = request.query, request.documents
    plan = await call.prepare(lambda terms: served.rerank(query, documents, terms, reading), "documents")
    plan_results = await call.in_turns(plan, "documents")
    labelled = "labels" in served.describe()
    call.account(request, plan_results, [served.answer(result) for result in plan_results] if labelled else ())
    scores = served.relevances(plan_results)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[: request.top_n]
    results: list[dict[str, Any]] = []
    for index in order:
        document = {} if request.return_documents is False else {"document": {"text": request.documents[index]}}
        results.append({"index": index, "relevance_score": scores[index], **document})
    usage = prompt_usage(plan_results)
    return json_response({"id": f"rerank-{call.id}", "model": request.model, "results": results, "usage": usage})
