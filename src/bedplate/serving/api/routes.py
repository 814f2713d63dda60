"""/admin/routes: what is known of each route and of its versions. Needs an admin key on a server with keys."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from bedplate.serving.call.call import ApiCall, json_response, respond
from bedplate.serving.rollout.routing import Router

router = APIRouter(prefix="/admin/routes")


@router.get("")
async def list_routes(request: Request) -> Response:
    async def work(call: ApiCall) -> Response:
        call.caller.need_admin()
        names = call.server.part(Router).names()
        return json_response({"object": "list", "data": [{"name": name, "object": "route"} for name in names]})

    return await respond(request, "admin", work)


@router.get("/{name:path}")
async def get_route(request: Request) -> Response:
    async def work(call: ApiCall) -> Response:
        call.caller.need_admin()
        name = request.path_params["name"]
        return json_response(await asyncio.to_thread(call.server.part(Router).report, name))

    return await respond(request, "admin", work)
