"""Routes of /v1/feedback (ratings, corrections and comments on replies) and of its export, where the server's file
allows replies to be kept."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Annotated, Any, BinaryIO, Literal, cast

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from bedplate.core.display import join_names
from bedplate.core.errors import RequestError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.serving.api.file_reply import OpenFileResponse
from bedplate.serving.durable.feedback_service import Feedback
from bedplate.serving.request.lifecycle import ApiCall, answers
from bedplate.serving.schemas.request_fields import RequestFields
from bedplate.serving.schemas.strict_json import JsonLinesResponse, dump_json, json_response
from bedplate.skins.output import LabelsOutput

router = APIRouter()


class FeedbackRequest(RequestFields):
    """POST /v1/feedback. id: the reply's; index: which of its choices, counted from 0."""

    id: str
    rating: Literal["good", "bad"] | None = None
    correction: Annotated[str, Field(min_length=1, max_length=32_000)] | None = None
    comment: Annotated[str, Field(min_length=1, max_length=4_000)] | None = None
    index: Annotated[int, Field(ge=0, le=1023)] = 0


@router.post("/v1/feedback")
@answers("feedback")
async def create_feedback(call: ApiCall, request: FeedbackRequest) -> Response:
    feedback = call.server.part(Feedback)
    if request.rating is None and request.correction is None and request.comment is None:
        raise RequestError("give a rating, a correction or a comment", param="rating")
    id_, owner = await feedback.owned(request.id, call.caller.tenant)
    model = owner.model
    if owner.choices is not None and request.index >= owner.choices:
        message = f"index is {request.index}, and the choices of the reply are {owner.choices}, counted from 0"
        raise RequestError(message, param="index")
    served = call.server.registry.models.get(model)
    if request.correction is not None and served is not None:
        _check_correction(request.correction, model, served.describe())
    values = request.model_dump(include={"rating", "correction", "comment", "index"})
    await feedback.record(id_, model, call.caller.tenant, values)
    return json_response({"id": request.id, "object": "feedback", "model": model, "index": request.index})


def _check_correction(correction: str, model: str, described: Mapping[str, Any]) -> None:
    """RequestError for a correction that is not a label of a model with labels."""
    labels = described.get("labels")
    if not labels:
        return
    if described["output"] == "labels":
        try:
            LabelsOutput(labels=tuple(labels)).comparable(correction)
        except RequestError as error:
            message = f"correction must be a JSON list of labels of {model}: {error.message}"
            raise RequestError(message, param="correction") from error
    elif correction not in labels:
        hint = did_you_mean(nearest(correction, labels), f"its labels are {join_names(labels, 20)}")
        raise RequestError(f"correction: {model} has no label {correction[:100]!r}; {hint}", param="correction")


@router.delete("/v1/feedback/{id}")
@answers("feedback")
async def forget(call: ApiCall) -> Response:
    reply_id = call.request.path_params["id"]
    id_, _ = await call.server.part(Feedback).owned(reply_id, call.caller.tenant)
    lines = await call.server.part(Feedback).forget(id_)
    return json_response({"id": reply_id, "object": "feedback", "deleted": True, "lines": lines})


@router.get("/admin/feedback")
@answers("admin")
async def summary(call: ApiCall) -> Response:
    feedback = call.server.part(Feedback)
    summaries = await feedback.run_in_writer(feedback.store.summary)
    return json_response({"object": "list", "data": summaries, "counts": dict(feedback.counts)})


@router.get("/admin/feedback/{model:path}/export", response_class=JsonLinesResponse)
@answers("admin")
async def export(call: ApiCall) -> Response:
    feedback, model = call.server.part(Feedback), call.request.path_params["model"]
    store = feedback.store

    def written() -> Response:
        file = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115
        file.writelines(dump_json(row) + b"\n" for row in store.examples(model))
        file.flush()
        return OpenFileResponse(file)

    return await feedback.run_in_reader(written)
