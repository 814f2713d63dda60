"""POST /v1/embeddings: one vector for each text, from a base's hidden states.

Reference: the OpenAI API's "create embeddings". A base pools as its kind does (a decoder the mean over the tokens, an
encoder what its own configuration says), and vectors have unit length. `dimensions` keeps the first numbers of each
vector and gives it unit length again: worth little with a base that was not trained for it, and never done unasked.
A sentence encoder's vectors are what its own library makes, length included; `prompt_name` is one of its prompts (as
text-embeddings-inference calls it), and `truncate_prompt_tokens` cuts longer texts (as vLLM calls it); without it they
are refused.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from bedplate.core.errors import RequestError
from bedplate.serving.models.answer_plan import PlanResult
from bedplate.serving.models.served import TextReading
from bedplate.serving.request.lifecycle import READ_AT_ONCE, ApiCall, answers
from bedplate.serving.schemas.openai_fields import CUT, PROMPTS, RequestFields
from bedplate.serving.schemas.request_fields import TOKEN_LIMIT
from bedplate.serving.schemas.strict_json import large_json_response

router = APIRouter(prefix="/v1")
NUMBER_BYTES = 20
"""About what one number takes in a reply."""


class EmbeddingRequest(RequestFields):
    """POST /v1/embeddings. `input`: a text, a list of texts, token ids, or a list of lists of token ids."""

    model: str
    input: Annotated[tuple[str | tuple[int, ...], ...], PROMPTS]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=TOKEN_LIMIT)] | None = None
    prompt_name: str | None = None
    truncate_prompt_tokens: CUT = False


@router.post("/embeddings")
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
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": _written(served.vector(result, request.dimensions), request),
            }
            for index, result in enumerate(results)
        ]
        whole = {"object": "list", "data": data, "model": request.model, "usage": prompt_usage(results)}
        return large_json_response(whole, levels=3)

    size = NUMBER_BYTES * len(results) * (request.dimensions or served.dimensions)
    return await call.written(reply, size) if size > READ_AT_ONCE else reply()


def prompt_usage(results: Sequence[PlanResult]) -> dict[str, Any]:
    """Token counts of a reply that generates nothing."""
    tokens = sum(result.usage.prompt_tokens for result in results)
    cached = sum(result.usage.cached_tokens for result in results)
    return {"prompt_tokens": tokens, "total_tokens": tokens, "prompt_tokens_details": {"cached_tokens": cached}}


def _written(vector: Sequence[float], request: EmbeddingRequest) -> list[float] | str:
    """As numbers, or as the base64 of little-endian float32."""
    if request.encoding_format == "base64":
        return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")
    return list(vector)
