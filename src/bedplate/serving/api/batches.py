"""/v1/batches: files of requests, answered in the background and kept across restarts of the server."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter
from starlette.responses import Response

from bedplate.serving.api.uploads import PAGE_FIELDS, Page
from bedplate.serving.durable.batch_records import StoredBatch
from bedplate.serving.durable.batch_worker import Batches
from bedplate.serving.request.lifecycle import ApiCall, answers
from bedplate.serving.schemas.request_fields import Metadata, RequestFields, openapi_queries
from bedplate.serving.schemas.strict_json import json_response

router = APIRouter(prefix="/v1")

WINDOW_SECONDS = 24 * 3600
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify", "/v1/responses"]
_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


class BatchRequest(RequestFields):
    """POST /v1/batches."""

    input_file_id: str
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = None


@router.post("/batches")
@answers("batches")
async def create(call: ApiCall, request: BatchRequest) -> Response:
    store = call.server.part(Batches).store
    await asyncio.to_thread(store.file, request.input_file_id, call.caller.tenant)
    batch = await asyncio.to_thread(
        store.add_batch, call.caller, request.endpoint, request.input_file_id, WINDOW_SECONDS, request.metadata
    )
    call.server.part(Batches).wake()
    return json_response(describe(batch))


@router.get("/batches", openapi_extra=openapi_queries(**PAGE_FIELDS))
@answers("batches")
async def list_batches(call: ApiCall) -> Response:
    page, store = Page(call.request, 100), call.server.part(Batches).store
    batches = await asyncio.to_thread(store.batches, call.caller.tenant, page.after, page.limit)
    return json_response(page.reply([describe(batch) for batch in batches]))


@router.get("/batches/{id}")
@answers("batches")
async def retrieve(call: ApiCall) -> Response:
    store = call.server.part(Batches).store
    batch = await asyncio.to_thread(store.batch, call.request.path_params["id"], call.caller.tenant)
    return json_response(describe(batch))


@router.post("/batches/{id}/cancel")
@answers("batches")
async def cancel(call: ApiCall) -> Response:
    store = call.server.part(Batches).store
    batch = await asyncio.to_thread(store.cancel, call.request.path_params["id"], call.caller.tenant)
    call.server.part(Batches).wake()
    return json_response(describe(batch))


def describe(batch: StoredBatch) -> dict[str, Any]:
    """The API's batch object."""
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": None if batch.errors is None else {"object": "list", "data": batch.errors},
        "input_file_id": batch.input_file,
        "completion_window": "24h",
        "status": batch.status,
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "created_at": batch.times["created_at"],
        **{f"{status}_at": batch.times.get(f"{status}_at") for status in _TIMES},
        "expires_at": batch.expires,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.metadata,
    }
