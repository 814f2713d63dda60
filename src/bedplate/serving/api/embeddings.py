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
from bedplate.serving.call.call import READ_AT_ONCE, ApiCall, answers
from bedplate.serving.models.plan import PlanResult
from bedplate.serving.models.served import Reading
from bedplate.serving.wire.fields import CUT, PROMPTS, RequestFields
from bedplate.serving.wire.json_replies import large_json_response
from bedplate.serving.wire.sampling_fields import TOKEN_LIMIT

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
async def embeddings(call: ApiCall) -> Response:
    asked = await call.read(EmbeddingRequest)
    served = await call.choose(asked.model)
    if asked.dimensions is not None and asked.dimensions > served.dimensions:
        message = f"dimensions is {asked.dimensions}; {served.name} has {served.dimensions}"
        raise RequestError(message, param="dimensions")
    reading = Reading(asked.prompt_name, asked.truncate_prompt_tokens)
    plan = await call.prepare(lambda _: served.embed(asked.input, reading), "input")
    found = await call.in_turns(plan, "input")
    call.account(asked, found, ())

    def reply() -> Response:
        data = [
            {"object": "embedding", "index": index, "embedding": _written(served.vector(one, asked.dimensions), asked)}
            for index, one in enumerate(found)
        ]
        whole = {"object": "list", "data": data, "model": asked.model, "usage": prompt_usage(found)}
        return large_json_response(whole, levels=3)

    size = NUMBER_BYTES * len(found) * (asked.dimensions or served.dimensions)
    return await call.written(reply, size) if size > READ_AT_ONCE else reply()


def prompt_usage(found: Sequence[PlanResult]) -> dict[str, Any]:
    """Token counts of a reply that generates nothing."""
    tokens = sum(result.usage.prompt_tokens for result in found)
    cached = sum(result.usage.cached_tokens for result in found)
    return {"prompt_tokens": tokens, "total_tokens": tokens, "prompt_tokens_details": {"cached_tokens": cached}}


def _written(vector: Sequence[float], asked: EmbeddingRequest) -> list[float] | str:
    """As numbers, or as the base64 of little-endian float32."""
    if asked.encoding_format == "base64":
        return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")
    return list(vector)
