"""POST /v1/rerank: documents ordered by how well they fit a query.

Reference: Jina's and Cohere's rerank APIs, and vLLM's. A cross-encoder reads query and document together; its score
is the relevance. With a base or a sentence encoder it is how near the document's embedding is to the query's: their
cosine, or what the encoder's publisher compares by, each with its own prompt where there are such. With a label skin
that has the inputs `query` and `document` and a label `relevant`, it is that label's probability.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BeforeValidator, Field
from starlette.responses import Response

from bedplate.serving.api.embeddings import prompt_usage
from bedplate.serving.models.served import TextReading
from bedplate.serving.request.lifecycle import ApiCall, answers
from bedplate.serving.schemas.openai_fields import CUT, MAX_PROMPTS, RequestFields
from bedplate.serving.schemas.strict_json import json_response

router = APIRouter()


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
    plan = await call.prepare(
        lambda terms: served.rerank(request.query, request.documents, terms, reading), "documents"
    )
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
