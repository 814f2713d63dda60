"""GET /openapi.json: what can be asked of this server, as an OpenAPI 3.1 document.

Routes read their bodies themselves (so that every error has the one shape), so the document is made here: paths from
the application's routes, bodies from the request models that those routes read. Replies are described by their kind
only; the APIs that they follow describe their fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from bedplate.core.version import __version__
from bedplate.serving.api.admin import SkinRequest
from bedplate.serving.api.batches import BatchRequest
from bedplate.serving.api.classify import ClassifyRequest
from bedplate.serving.api.embeddings import EmbeddingRequest
from bedplate.serving.api.feedback import FeedbackRequest
from bedplate.serving.api.rerank import RerankRequest
from bedplate.serving.api.tokens import DetokenizeRequest, TokenizeRequest
from bedplate.serving.schemas.anthropic_fields import CountRequest, MessagesRequest
from bedplate.serving.schemas.fields import ChatRequest, CompletionRequest
from bedplate.serving.schemas.json_replies import json_response
from bedplate.serving.schemas.responses_fields import ResponsesRequest

Json = dict[str, Any]

BODIES: dict[tuple[str, str], type[BaseModel]] = {
    ("POST", "/v1/chat/completions"): ChatRequest,
    ("POST", "/v1/completions"): CompletionRequest,
    ("POST", "/v1/responses"): ResponsesRequest,
    ("POST", "/v1/messages"): MessagesRequest,
    ("POST", "/v1/messages/count_tokens"): CountRequest,
    ("POST", "/v1/embeddings"): EmbeddingRequest,
    ("POST", "/v1/classify"): ClassifyRequest,
    ("POST", "/classify"): ClassifyRequest,
    ("POST", "/v1/rerank"): RerankRequest,
    ("POST", "/v2/rerank"): RerankRequest,
    ("POST", "/rerank"): RerankRequest,
    ("POST", "/tokenize"): TokenizeRequest,
    ("POST", "/detokenize"): DetokenizeRequest,
    ("POST", "/v1/batches"): BatchRequest,
    ("POST", "/v1/feedback"): FeedbackRequest,
    ("POST", "/admin/skins"): SkinRequest,
}
"""The body that a route reads."""

_TEXT: Json = {"type": "string"}
_FORMS: dict[tuple[str, str], Json] = {
    ("POST", "/v1/files"): {
        "type": "object",
        "properties": {
            "file": {"type": "string", "contentMediaType": "application/octet-stream"},
            "purpose": {"const": "batch"},
        },
        "required": ["file", "purpose"],
    }
}
_QUERIES: dict[tuple[str, str], dict[str, Json]] = {
    ("GET", "/tokenizer_info"): {"model": _TEXT},
    ("GET", "/v1/responses/{name}"): {"stream": {"enum": ["false"]}},
    ("GET", "/v1/responses/{name}/input_items"): {
        "limit": {"type": "integer"},
        "after": _TEXT,
        "order": {"enum": ["asc", "desc"]},
    },
    ("GET", "/v1/files"): {
        "limit": {"type": "integer"},
        "after": _TEXT,
        "order": {"enum": ["asc", "desc"]},
        "purpose": _TEXT,
    },
    ("GET", "/v1/batches"): {"limit": {"type": "integer"}, "after": _TEXT},
}
_STREAMS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
_CONTENT_TYPES: dict[tuple[str, str], str] = {
    ("GET", "/metrics"): "text/plain",
    ("GET", "/v1/files/{id}/content"): "application/jsonl",
    ("GET", "/admin/feedback/{model:path}/export"): "application/jsonl",
}
# Pages for people, and this document.
_NOT_LISTED = frozenset({"/", "/web/{name}", "/skins/{name}/report", "/openapi.json"})

_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MESSAGES_ERROR: Json = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {"type": "object", "required": ["type", "message"], "properties": {"type": _TEXT, "message": _TEXT}},
    },
}

router = APIRouter()


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    return json_response(document(request.app.state.routers))


def document(routers: Sequence[APIRouter]) -> Json:
    """The document of all routes of these routers that are no pages."""
    models = dict.fromkeys(BODIES.values())
    references, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Json] = {}
    for router in routers:
        for route in router.routes:
            if isinstance(route, APIRoute) and route.path_format not in _NOT_LISTED:
                for method in sorted(route.methods or ()):
                    body = BODIES.get((method, route.path_format))
                    reference = None if body is None else references[body, "validation"]
                    paths.setdefault(route.path_format, {})[method.lower()] = _operation(method, route, reference)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Bedplate",
            "version": __version__,
            "description": "A base and its skins. Model names are those that /v1/models lists.",
        },
        "security": [{"bearer": []}, {"x_api_key": []}, {}],
        "paths": paths,
        "components": {
            "schemas": {**schemas["$defs"], "Error": _ERROR, "MessagesError": _MESSAGES_ERROR},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x_api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(method: str, route: APIRoute, body: Json | None) -> Json:
    path = route.path_format
    content_type = _CONTENT_TYPES.get((method, path), "application/json")
    content: Json = {content_type: {}}
    if path in _STREAMS:
        content["text/event-stream"] = {}
    failure = "MessagesError" if path.startswith("/v1/messages") else "Error"
    error = {"application/json": {"schema": {"$ref": f"#/components/schemas/{failure}"}}}
    operation: Json = {
        "operationId": f"{method} {path}",
        "summary": route.endpoint.__name__.replace("_", " "),
        "responses": {
            "2XX": {"description": "The reply.", "content": content},
            "4XX": {"description": "What is wrong with the request.", "content": error},
            "5XX": {"description": "What is wrong here.", "content": error},
        },
    }
    if route.endpoint.__doc__:
        operation["description"] = route.endpoint.__doc__
    parameters = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in route.param_convertors]
    queries = _QUERIES.get((method, path), {})
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": schema} for name, schema in queries.items()
    ]
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    form = _FORMS.get((method, path))
    if form is not None:
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    return operation
