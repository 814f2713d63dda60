"""Routes of /v1/files and /v1/batches: files of requests that are answered in the background and survive restarts. Each
tenant sees only its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Literal

from fastapi import APIRouter, Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from bedplate.core.errors import RequestError
from bedplate.serving.api.file_reply import OpenFileResponse
from bedplate.serving.durable.batch_store import StoredBatch, StoredFile
from bedplate.serving.durable.batch_worker import Batches
from bedplate.serving.request.lifecycle import ApiCall, answers
from bedplate.serving.schemas.http_errors import ClientGone, StatusError
from bedplate.serving.schemas.request_fields import Metadata, RequestFields, openapi_queries
from bedplate.serving.schemas.strict_json import JsonLinesResponse, json_response, large_json_response

router = APIRouter(prefix="/v1")

UPLOAD_SECONDS = 600.0
MAX_NAME = 255
_SPOOLED_BYTES = 64 * 1024
"""Memory for an upload; larger ones go to a temporary file."""
_FORM_BYTES = 64 * 1024
"""Most bytes of a form besides the file: boundaries, headers, the purpose."""

# As the OpenAPI document shows them: the form, and the query of a list.
_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
_FORM_FIELDS = {"file": _FILE, "purpose": {"const": "batch"}}
_FORM_SCHEMA = {"type": "object", "properties": _FORM_FIELDS, "required": list(_FORM_FIELDS)}
FORM = {"required": True, "content": {"multipart/form-data": {"schema": _FORM_SCHEMA}}}
PAGE_FIELDS: dict[str, dict[str, Any]] = {"limit": {"type": "integer"}, "after": {"type": "string"}}
ORDER = {"enum": ["asc", "desc"]}


@router.post("/files", openapi_extra={"requestBody": FORM})
@answers("files")
async def upload(call: ApiCall) -> Response:
    limits, store = call.server.config.batches, call.server.part(Batches).store
    with await asyncio.to_thread(store.arriving, call.caller.tenant) as arriving:
        form = await _form(call, limits.file_bytes, arriving.add)
        try:
            file = _batch_file(form)
            if (file.size or 0) > limits.file_bytes:
                raise _too_large(limits.file_bytes)
            name = clean_name(file.filename or "")
            stored = await asyncio.to_thread(store.add_file, call.caller.tenant, name, "batch", file.file)
        finally:
            await form.close()
    return json_response(describe_file(stored))


@router.get("/files", openapi_extra=openapi_queries(**PAGE_FIELDS, order=ORDER, purpose={"type": "string"}))
@answers("files")
async def list_files(call: ApiCall) -> Response:
    page = Page(call.request, 10_000, "purpose", "order")
    order = page.query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise RequestError(f"order is {order[:40]!r}; it is asc or desc", param="order")
    store, purpose = call.server.part(Batches).store, page.query.get("purpose")

    def listed() -> Response:
        files, has_more = store.files(call.caller.tenant, purpose, page.after, page.limit, order)
        return large_json_response(page.reply([describe_file(file) for file in files], has_more))

    return await asyncio.to_thread(listed)


@router.get("/files/{id}")
@answers("files")
async def retrieve_file(call: ApiCall) -> Response:
    store = call.server.part(Batches).store
    file = await asyncio.to_thread(store.file, call.request.path_params["id"], call.caller.tenant)
    return json_response(describe_file(file))


@router.get("/files/{id}/content", response_class=JsonLinesResponse)
@answers("files")
async def content(call: ApiCall) -> Response:
    store = call.server.part(Batches).store

    def opened() -> Response:
        file = store.file(call.request.path_params["id"], call.caller.tenant)
        try:
            return OpenFileResponse(store.content(file).open("rb"), file.name)
        except FileNotFoundError:
            raise StatusError(404, "the file was deleted meanwhile", "file_not_found", "file_id") from None

    return await asyncio.to_thread(opened)


@router.delete("/files/{id}")
@answers("files")
async def delete(call: ApiCall) -> Response:
    store, id_ = call.server.part(Batches).store, call.request.path_params["id"]
    await asyncio.to_thread(store.delete_file, id_, call.caller.tenant)
    return json_response({"id": id_, "object": "file", "deleted": True})


class Page:
    """Parses the query of a list: `after`, `limit` and the given names. RequestError for any other parameter."""

    def __init__(self, request: Request, max_limit: int, *names: str) -> None:
        self.query = dict(request.query_params)
        parameters = {"after", "limit", *names}
        unknown = next((name for name in self.query if name not in parameters), None)
        if unknown is not None:
            message = f"unknown query parameter {unknown[:80]!r}; there are {', '.join(sorted(parameters))}"
            raise RequestError(message, param=unknown[:80], code="unknown_parameter")
        self.after = self.query.get("after")
        limit = self.query.get("limit", str(min(max_limit, 10_000 if max_limit > 100 else 20)))
        if not (limit.isascii() and limit.isdigit() and len(limit) < 10 and 1 <= int(limit) <= max_limit):
            raise RequestError(f"limit is {limit[:40]!r}; it is a number from 1 to {max_limit}", param="limit")
        self.limit = int(limit)

    def reply(self, rows: list[dict[str, Any]], has_more: bool = False) -> dict[str, Any]:
        """The list object of the first `rows`. has_more: whether there are more than these."""
        data = rows[: self.limit]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return {"object": "list", "data": data, **ends, "has_more": has_more or len(rows) > len(data)}


def describe_file(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created,
        "expires_at": None,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def clean_name(name: str) -> str:
    """A file's name without directories or characters that do not print. It is only shown, never a path."""
    last = name.replace("\\", "/").rpartition("/")[2]
    printable = "".join(c for c in last if c.isprintable()).strip()
    return printable[:MAX_NAME] if printable.strip(".") else "file"


async def _form(call: ApiCall, limit: int, on_bytes: Callable[[int], None]) -> FormData:
    """The multipart form. StatusError 413 while it is still arriving, 408 when it is too slow."""
    content_type = call.request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        message = "send multipart/form-data with the fields purpose and file"
        raise StatusError(415, message, "unsupported_media_type")
    chunks = _limited(call, limit, on_bytes)
    parser = MultiPartParser(call.request.headers, chunks, max_files=1, max_fields=8, max_part_size=_FORM_BYTES // 8)
    parser.spool_max_size = _in_memory(call)
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            return await parser.parse()
    except TimeoutError:
        raise StatusError(408, f"the file did not arrive within {UPLOAD_SECONDS:g} s", "request_timeout") from None
    except ClientDisconnect:
        raise ClientGone from None
    except (MultiPartException, ValueError) as error:  # an encoding that decodes nothing raises more than LookupError
        raise RequestError(f"the form cannot be read: {error}", code="invalid_form") from None


def _in_memory(call: ApiCall) -> int:
    return min(_SPOOLED_BYTES, call.server.config.limits.body_bytes)


async def _limited(call: ApiCall, limit: int, on_bytes: Callable[[int], None]) -> AsyncGenerator[bytes]:
    size, in_memory = 0, _in_memory(call)
    async for chunk in call.request.stream():
        size += len(chunk)
        if size > limit + _FORM_BYTES:
            raise _too_large(limit)
        call.reservation.reserve(min(size, in_memory) - min(size - len(chunk), in_memory))
        on_bytes(max(size - _FORM_BYTES, 0) - max(size - len(chunk) - _FORM_BYTES, 0))
        yield chunk


def _too_large(limit: int) -> StatusError:
    return StatusError(413, f"the file is larger than {limit:,} bytes", "file_too_large", "file")


def _batch_file(form: FormData) -> UploadFile:
    """The form's file; its purpose must be batch. RequestError."""
    fields = form.multi_items()
    for name in ("purpose", "file"):
        count = sum(key == name for key, _ in fields)
        if count != 1:
            problem = "is missing" if count == 0 else f"is given {count} times"
            raise RequestError(f"{name} {problem}; send it once", param=name, code="missing_required_parameter")
    unknown = next((key for key, _ in fields if key not in ("purpose", "file")), None)
    if unknown is not None:
        message = f"unknown field {unknown[:80]!r}; the fields are purpose and file"
        raise RequestError(message, param=unknown[:80], code="unknown_parameter")
    purpose, file = form["purpose"], form["file"]
    if purpose != "batch":
        raise RequestError("purpose: files are kept for batches only; give batch", param="purpose")
    if not isinstance(file, UploadFile):
        raise RequestError("file must be a file with a name, not a field", param="file")
    return file


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
    return json_response(describe_batch(batch))


@router.get("/batches", openapi_extra=openapi_queries(**PAGE_FIELDS))
@answers("batches")
async def list_batches(call: ApiCall) -> Response:
    page, store = Page(call.request, 100), call.server.part(Batches).store

    def listed() -> Response:
        batches, has_more = store.batches(call.caller.tenant, page.after, page.limit)
        return large_json_response(page.reply([describe_batch(batch) for batch in batches], has_more))

    return await asyncio.to_thread(listed)


@router.get("/batches/{id}")
@answers("batches")
async def retrieve_batch(call: ApiCall) -> Response:
    store, id_ = call.server.part(Batches).store, call.request.path_params["id"]
    return await asyncio.to_thread(lambda: large_json_response(describe_batch(store.batch(id_, call.caller.tenant))))


@router.post("/batches/{id}/cancel")
@answers("batches")
async def cancel(call: ApiCall) -> Response:
    store = call.server.part(Batches).store
    batch = await asyncio.to_thread(store.cancel, call.request.path_params["id"], call.caller.tenant)
    call.server.part(Batches).wake()
    return json_response(describe_batch(batch))


def describe_batch(batch: StoredBatch) -> dict[str, Any]:
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
