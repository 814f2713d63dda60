"""Serves pages to browsers: the web interface at `/`, its files, and the skins' reports."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import Response

from bedplate.serving.request.lifecycle import ApiCall, answers, read_bytes
from bedplate.serving.schemas.http_errors import StatusError

router = APIRouter(include_in_schema=False)

INDEX = "index.html"
_WEB = resources.files("bedplate.serving") / "web"
_TEXTS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_TYPES = {suffix: f"{media_type}; charset=utf-8" for suffix, media_type in _TEXTS.items()} | {"svg": "image/svg+xml"}
# The page's files and their types; nothing else of the package can be asked for.
FILES: Mapping[str, str] = {file.name: _TYPES[file.name.rpartition(".")[2]] for file in _WEB.iterdir()}
# No inline script, no inline style, no form or frame to elsewhere: a text that a model writes cannot act.
PAGE_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'; "
    "require-trusted-types-for 'script'"
)
# A report brings its own style and drawings; whatever else stood in it could not run, load or send.
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
_FORM_BYTES = 4096
_COMMON = {"x-content-type-options": "nosniff", "referrer-policy": "same-origin"}


@cache
def page_file(name: str) -> tuple[bytes, str]:
    content = (_WEB / name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'


@router.get("/")
async def index(request: Request) -> Response:
    return _file(request, INDEX)


@router.get("/web/{name}")
async def web_file(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in FILES:
        raise StatusError(404, "the page has no such file", "not_found")
    return _file(request, name)


@router.get("/skins/{name:path}/report")
@answers("report")
async def report(call: ApiCall) -> Response:
    served = call.server.registry.lookup(call.request.path_params["name"], call.caller)
    page = await asyncio.to_thread(lambda: served.report)
    if page is None:
        raise StatusError(404, f"the model {served.name!r} has no report", "no_report", "name")
    headers = {**_COMMON, "cache-control": "no-store", "content-security-policy": REPORT_POLICY}
    return Response(page, media_type="text/html; charset=utf-8", headers=headers)


@router.post("/skins/{name:path}/report")
async def report_with_key(request: Request) -> Response:
    """As GET, for a frame in the web interface: a frame cannot send headers, so the API key is in the form's `key`."""
    form = parse_qs((await read_bytes(request, _FORM_BYTES)).decode("utf-8", "replace"))
    key = f"Bearer {form.get('key', [''])[0]}".encode()
    scope = {**request.scope, "headers": [*request.scope["headers"], (b"authorization", key)]}
    return await report(Request(scope, request.receive))


def _file(request: Request, name: str) -> Response:
    """Replies with the file, or 304 where the browser has it. Browsers ask each time, so an update is seen at once."""
    content, tag = page_file(name)
    headers = {**_COMMON, "etag": tag, "cache-control": "no-cache", "content-security-policy": PAGE_POLICY}
    etags = request.headers.get("if-none-match", "")
    if any(etag.strip().removeprefix("W/") == tag for etag in etags.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=FILES[name], headers=headers)
