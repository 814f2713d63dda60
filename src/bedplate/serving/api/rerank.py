"""POST /v1/rerank: documents ordered by how well they fit a query.

Reference: Jina's and Cohere's rerank APIs. With a base, a document's relevance is the cosine between its embedding and
the query's. With a label skin that has the inputs `query` and `document` and a label `relevant`, it is that label's
probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter
from pydantic import BeforeValidator, Field
from starlette.responses import Response

from bedplate.core.errors import RequestError
from bedplate.inference.engine.requests import Terms
from bedplate.serving.api.classify import label_probabilities
from bedplate.serving.api.embeddings import prompt_usage
from bedplate.serving.call.call import ApiCall, answers, json_response
from bedplate.serving.models.plan import AnswerPlan
from bedplate.serving.models.served import Answer, Served
from bedplate.serving.wire.fields import MAX_PROMPTS, RequestFields, read_fields

RELEVANT = "relevant"

router = APIRouter()


def _documents_of(value: Any) -> Any:
    """A tuple of texts, from a list of texts or of objects with the one field text."""
    if not isinstance(value, list):
        return value
    texts: list[str] = []
    for one in value:
        text = one["text"] if isinstance(one, dict) and one.keys() == {"text"} else one
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


@router.post("/v1/rerank")
@router.post("/v2/rerank")
@router.post("/rerank")
@answers("rerank")
async def rerank(call: ApiCall) -> Response:
    asked = read_fields(RerankRequest, await call.body())
    served = await call.choose(asked.model)
    pairs = _scores_pairs(served)
    plan = await call.prepare(lambda terms: _plan(served, asked, pairs, terms), "documents")
    found = await call.in_turns(plan, "documents")
    answers = [served.answer(result) for result in found] if pairs else []
    call.account(asked, found, answers)
    scores = _pair_scores(answers) if pairs else _cosines([served.vector(result) for result in found])
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[: asked.top_n]
    results: list[dict[str, Any]] = []
    for index in order:
        document = {} if asked.return_documents is False else {"document": {"text": asked.documents[index]}}
        results.append({"index": index, "relevance_score": scores[index], **document})
    usage = prompt_usage(found)
    return json_response({"id": f"rerank-{call.id}", "model": asked.model, "results": results, "usage": usage})


def _scores_pairs(served: Served) -> bool:
    """Whether the model is a skin that judges (query, document); RequestError for a skin that does something else."""
    described = served.describe()
    if described["kind"] == "base" or described["output"] == "embedding":
        return False
    if set(described["inputs"]) == {"query", "document"} and RELEVANT in described.get("labels", ()):
        return True
    raise RequestError(
        f"{served.name!r} cannot rerank: ask a base, an embedding skin, or a skin with the inputs query and document "
        f"and a label {RELEVANT!r}",
        param="model",
    )


def _plan(served: Served, asked: RerankRequest, pairs: bool, terms: Terms) -> AnswerPlan:
    if pairs:
        return served.classify([{"query": asked.query, "document": text} for text in asked.documents], terms)
    return served.embed((asked.query, *asked.documents))


def _pair_scores(answers: Sequence[Answer]) -> list[float]:
    return [label_probabilities(answer)[RELEVANT] for answer in answers]


def _cosines(vectors: Sequence[Sequence[float]]) -> list[float]:
    """Of the first vector and each of the others. A skin's may have any length."""
    query, *documents = (np.asarray(vector) / (np.linalg.norm(vector) or 1.0) for vector in vectors)
    return [float(query @ document) for document in documents]
