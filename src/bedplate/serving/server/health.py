"""Whether the server lives (restart it if not) and whether it takes requests (send none if not)."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from bedplate.serving.request.state import ServerState
from bedplate.serving.schemas.strict_json import json_response

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while every engine works; 503 when one's thread has ended, or its step takes longer than `stall_seconds`."""
    return _reply(request, ("failed", "stalled"))


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 while requests are taken: not while loading, stopping, or with an engine that does not work."""
    return _reply(request, ("failed", "stalled", "stopping"))


def _reply(request: Request, bad: tuple[str, ...]) -> Response:
    status = _status(request.app.state.server)
    return json_response({"status": status}, 503 if status in bad else 200)


def _status(state: ServerState) -> str:
    engines = state.registry.engines
    if not all(engine.alive for engine in engines):
        return "failed"
    if any(engine.stalled(state.config.stall_seconds) for engine in engines):
        return "stalled"
    return "stopping" if state.stopping else "ok"
