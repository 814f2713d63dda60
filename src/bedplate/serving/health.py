"""Whether the server lives and takes requests."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from bedplate.serving.calls import json_response
from bedplate.serving.house import House

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while requests are taken; 503 when an engine's thread has ended or the server is stopping."""
    house: House = request.app.state.house
    alive = all(engine.alive for engine in house.registry.engines)
    status = "stopping" if house.stopping else "ok" if alive else "failed"
    return json_response({"status": status}, 200 if status == "ok" else 503)
