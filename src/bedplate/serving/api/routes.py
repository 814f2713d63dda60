"""/admin/routes: what is known of each route and of its versions. Needs an admin key on a server with keys."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.responses import Response

from bedplate.serving.request.lifecycle import ApiCall, answers
from bedplate.serving.rollout.routing import VersionRouter
from bedplate.serving.schemas.json_replies import json_response

router = APIRouter(prefix="/admin/routes")


@router.get("")
@answers("admin")
async def list_routes(call: ApiCall) -> Response:
    names = call.server.part(VersionRouter).names()
    return json_response({"object": "list", "data": [{"name": name, "object": "route"} for name in names]})


@router.get("/{name:path}")
@answers("admin")
async def get_route(call: ApiCall) -> Response:
    name = call.request.path_params["name"]
    return json_response(await asyncio.to_thread(call.server.part(VersionRouter).report, name))
