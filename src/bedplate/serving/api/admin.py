"""Routes of /admin/skins, which load, replace and unload skins while the server runs, and of /admin/routes, which
report on routes and change the weights of their versions. On a server with keys both need an admin key.

A skin is taken from the configured `skins_directory` only: nothing is uploaded, unpacked or fetched. It is read and
verified whole before anything is registered. Replacing a name is one step: calls that began before end on the old
version, calls that begin after get the new one.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from bedplate.core.errors import BedplateError, RequestError
from bedplate.serving.durable.skin_changes import SkinChanges
from bedplate.serving.models.registry import Registry, locate_skin, scan_skins
from bedplate.serving.models.residency import PooledSkin, ResidentPool, run_in_thread
from bedplate.serving.models.served_skin import ServedSkin
from bedplate.serving.request.lifecycle import ApiCall, answers
from bedplate.serving.rollout.version_router import VersionRouter
from bedplate.serving.schemas.http_errors import StatusError
from bedplate.serving.schemas.request_fields import RequestFields
from bedplate.serving.schemas.strict_json import json_response
from bedplate.serving.settings.server_config import Weight
from bedplate.skins.files import read_card

router = APIRouter(prefix="/admin/skins")
routes = APIRouter(prefix="/admin/routes")


class SkinRequest(RequestFields):
    """POST /admin/skins. source: the skin's path below the skins directory. name: the model name (default: the skin's
    own). replace: take the name from the skin that has it."""

    source: str
    name: str | None = None
    replace: bool = False


@router.get("")
@answers("admin")
async def list_skins(call: ApiCall) -> Response:
    registry = call.server.registry
    data = [_described(registry, name) for name, served in registry.models.items() if isinstance(served, ServedSkin)]
    retired = [_state(pooled) for pooled in registry.retired]
    memory = {
        "adapters": {engine.base.name: _pool(pool) for engine, pool in registry.adapters.items()},
        "prompt_skins": _pool(registry.plain),
        "prefix_bytes": {"held": registry.prefixes.cached_bytes, "limit": registry.prefixes.limit},
    }
    return json_response({"object": "list", "data": data, "retired": retired, "memory": memory})


@router.post("")
@answers("admin")
async def put_skin(call: ApiCall, request: SkinRequest) -> Response:
    registry, root = call.server.registry, _skins_directory(call)

    def verified() -> ServedSkin:
        served = registry.skin(read_card(locate_skin(root, request.source)), request.name)
        served.check()
        return served

    try:
        served = await run_in_thread(verified)
    except BedplateError as error:
        code = error.code if isinstance(error, RequestError) else "invalid_skin"
        raise RequestError(error.message, param="source", code=code) from error
    changes = call.server.part(SkinChanges)
    async with changes.lock:  # what is looked at is what is changed
        if served.name in registry.models and not request.replace:
            message = f"a model is called {served.name!r} already; give another name, or replace it"
            raise StatusError(409, message, "name_taken", "name")
        try:
            registry.check_name(served)
        except BedplateError as error:  # a base's name, or one that no model can have
            status = 409 if served.name in registry.models else 400
            code = "name_taken" if status == 409 else "invalid_name"
            raise StatusError(status, error.message, code, "name") from error
        old, durable = await changes.replace(served)
        described = {**_described(registry, served.name), "replaced": None if old is None else old.card.id}
    return json_response({**described, "durable": durable}, 201 if old is None else 200)


@router.post("/scan")
@answers("admin")
async def scan(call: ApiCall) -> Response:
    root = _skins_directory(call)
    changes = call.server.part(SkinChanges)
    async with changes.lock:
        scanned = await run_in_thread(lambda: scan_skins(root))
        added, problems = changes.restore()
        changed = call.server.registry.register(scanned)
    changed["added"][:0], changed["problems"][:0] = added, problems
    return json_response(changed)


@router.get("/{name:path}")
@answers("admin")
async def get_skin(call: ApiCall) -> Response:
    return json_response(_described(call.server.registry, call.request.path_params["name"]))


@router.delete("/{name:path}")
@answers("admin")
async def delete_skin(call: ApiCall) -> Response:
    """Unloads a skin. It comes back when it is posted again, when its directory has another version, and, where the
    server's file names it (`durable` is false), when the server starts again."""
    name, changes = call.request.path_params["name"], call.server.part(SkinChanges)
    async with changes.lock:
        running, durable = await changes.remove(name)
    return json_response({"name": name, "deleted": True, "calls_running": running, "durable": durable})


@routes.get("")
@answers("admin")
async def list_routes(call: ApiCall) -> Response:
    return json_response({"object": "list", "data": call.server.part(VersionRouter).summaries()})


class RouteRequest(RequestFields):
    """PUT /admin/routes/NAME. versions: model name → weight, in place of those that the route has."""

    versions: Annotated[dict[str, Weight], Field(max_length=100)]


@routes.put("/{name:path}")
@answers("admin")
async def put_route(call: ApiCall, request: RouteRequest) -> Response:
    """Sets a route's versions and weights under traffic. Counts and pairs go on."""
    router = call.server.part(VersionRouter)
    return json_response(await asyncio.to_thread(router.change, call.request.path_params["name"], request.versions))


@routes.post("/{name:path}/rollback")
@answers("admin")
async def roll_back_route(call: ApiCall) -> Response:
    """Takes the last change of a route's weights back; a second time, that change holds again."""
    router = call.server.part(VersionRouter)
    return json_response(await asyncio.to_thread(router.roll_back, call.request.path_params["name"]))


@routes.get("/{name:path}")
@answers("admin")
async def get_route(call: ApiCall) -> Response:
    name = call.request.path_params["name"]
    return json_response(await asyncio.to_thread(call.server.part(VersionRouter).report, name))


def _skins_directory(call: ApiCall) -> Path:
    root = call.server.config.skins_directory
    if root is None:
        message = "this server has no skins_directory, and takes skins from nowhere else; configure one"
        raise RequestError(message, param="source", code="no_skins_directory")
    return root


def _described(registry: Registry, name: str) -> dict[str, Any]:
    pooled = registry.pooled(name)
    served = registry.models[name]
    return {**_state(pooled), "base": served.answerer.describe().name, **served.describe()}


def _state(pooled: PooledSkin) -> dict[str, Any]:
    served = pooled.loadable
    assert isinstance(served, ServedSkin)
    source = None if served.card.directory is None else str(served.card.directory)
    return {
        "object": "skin",
        "name": served.name,
        "id": served.card.id,
        "source": source,
        "state": pooled.state.value,
        "calls_running": pooled.use_count,
        "calls_waiting": len(pooled.waiters),
    }


def _pool(pool: ResidentPool) -> dict[str, int]:
    return {"resident": pool.resident, "limit": pool.capacity, "waiting": pool.waiting}
