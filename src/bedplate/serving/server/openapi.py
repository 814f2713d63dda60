"""GET /openapi.json: what can be asked of this server, as an OpenAPI 3.1 document.

FastAPI describes the routes. Added here is what it does not see: routes read their bodies themselves (so that every
error has the one shape), as the request models that their handlers name. Replies are described by their media type
only; the APIs that they follow describe their fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from bedplate.core.version import __version__
from bedplate.serving.request.lifecycle import BODY_MODEL
from bedplate.serving.schemas.request_fields import RequestFields
from bedplate.serving.schemas.strict_json import json_response

Json = dict[str, Any]
REFERENCE = "#/components/schemas/{model}"

_TEXT: Json = {"type": "string"}
_OPTIONAL_TEXT: Json = {"type": ["string", "null"]}


def _object(**fields: Json) -> Json:
    return {"type": "object", "required": list(fields), "properties": fields}


_ERROR_FIELDS = _object(message=_TEXT, type=_TEXT, param=_OPTIONAL_TEXT, code=_OPTIONAL_TEXT)
ERRORS: Mapping[str, Json] = {
    "Error": _object(error=_ERROR_FIELDS | {"additionalProperties": False}) | {"additionalProperties": False},
    "MessagesError": _object(type={"const": "error"}, error=_object(type=_TEXT, message=_TEXT)),
}

router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    return json_response(document(request.app.state.routers))


def request_bodies(routers: Sequence[APIRouter]) -> dict[tuple[str, str], type[RequestFields]]:
    """(method, path) → request model, of the routes whose body is JSON."""
    found = ((route, vars(route.endpoint).get(BODY_MODEL)) for route in _listed(routers))
    return {(method, route.path_format): model for route, model in found if model for method in route.methods or ()}


def document(routers: Sequence[APIRouter]) -> Json:
    """The document of all routes of these routers that are not pages."""
    routes, bodies = _listed(routers), request_bodies(routers)
    references, schemas = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(bodies.values())], ref_template=REFERENCE
    )
    whole = get_openapi(
        title="Bedplate",
        version=__version__,
        description="A base and its skins. Model names are those that /v1/models lists.",
        routes=routes,
    )
    for route in routes:
        for method in route.methods or ():
            model = bodies.get((method, route.path_format))
            reference = None if model is None else references[model, "validation"]
            streams = model is not None and "stream" in model.model_fields
            operation = whole["paths"][route.path_format][method.lower()]
            operation |= _additions(f"{method} {route.path_format}", route, operation, reference, streams)
    return {
        **whole,
        "security": [{"bearer": []}, {"x_api_key": []}, {}],
        "components": {
            "schemas": {**schemas["$defs"], **ERRORS},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x_api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _listed(routers: Sequence[APIRouter]) -> list[APIRoute]:
    routes = [route for router in routers for route in router.routes]
    return [route for route in routes if isinstance(route, APIRoute) and route.include_in_schema]


def _additions(name: str, route: APIRoute, operation: Json, body: Json | None, streams: bool) -> Json:
    content: Json = {media_type: {} for media_type in operation["responses"]["200"]["content"]}
    if streams:
        content["text/event-stream"] = {}
    failure = "MessagesError" if route.path_format.startswith("/v1/messages") else "Error"
    error = {"application/json": {"schema": {"$ref": REFERENCE.format(model=failure)}}}
    in_path = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in route.param_convertors]
    parameters = [*in_path, *operation.get("parameters", [])]
    return {
        "operationId": name,
        "responses": {
            "2XX": {"description": "The reply.", "content": content},
            "4XX": {"description": "What is wrong with the request.", "content": error},
            "5XX": {"description": "What is wrong here.", "content": error},
        },
        **({"parameters": parameters} if parameters else {}),
        **(
            {}
            if body is None
            else {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}
        ),
    }
