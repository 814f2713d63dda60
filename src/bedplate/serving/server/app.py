"""Builds the server: its configuration, models, FastAPI application and OpenAPI document; `serve` runs it.

1. `opened_server` makes the state with the skins that need no base, and returns the function that loads the bases.
2. `create_app` adds the routes, middleware and metrics; `_services` are the background services beside them.
3. `serve` binds the socket first, so that a wrong address fails before anything is loaded, and runs `Server`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import ValidationError
from pydantic.json_schema import models_json_schema
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from bedplate.core.arguments import checked
from bedplate.core.config import first_problem
from bedplate.core.errors import UsageError
from bedplate.core.version import __version__
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.grammar_trial import GrammarTrial
from bedplate.inference.forward.compute_lock import ComputeLock
from bedplate.serving.api import admin, anthropic, batches, encoding, feedback, openai, pages, responses, tokens
from bedplate.serving.callers.caller_guard import CallerGuard, check_open, guard_for
from bedplate.serving.durable.batch_worker import Batches
from bedplate.serving.durable.feedback_service import Feedback
from bedplate.serving.durable.responses_store import ResponseStore
from bedplate.serving.durable.skin_changes import SkinChanges
from bedplate.serving.durable.state_directory import StateDirectory
from bedplate.serving.models.engines import ResidentBase, load_resident_base, open_engines
from bedplate.serving.models.registry import Registry, Scanned, scan_skins
from bedplate.serving.models.residency import run_apart
from bedplate.serving.models.served import ServedBase, ServedClassifier, ServedGenerator
from bedplate.serving.models.served_skin import ServedSkin
from bedplate.serving.request.lifecycle import BODY_MODEL
from bedplate.serving.request.server_state import ServerState
from bedplate.serving.rollout.version_router import VersionRouter
from bedplate.serving.schemas.http_errors import add_error_handlers
from bedplate.serving.schemas.request_fields import RequestFields
from bedplate.serving.schemas.strict_json import dump_json
from bedplate.serving.server import monitoring
from bedplate.serving.server.access import EXPOSED_HEADERS, AccessLog, Origins
from bedplate.serving.server.monitoring import Metrics, Telemetry, Watchdog
from bedplate.serving.server.uvicorn_server import LoadBases, Server
from bedplate.serving.settings.server_config import BaseConfig, LimitsConfig, ServerConfig
from bedplate.skins.files import Card, card_of, parts_of, read_card
from bedplate.skins.skin import Skin

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
    state = request.app.state
    if state.document is None:
        state.document = await asyncio.to_thread(lambda: dump_json(document(state.routers)))
    return Response(state.document, media_type="application/json")


def request_bodies(routers: Sequence[APIRouter]) -> dict[tuple[str, str], type[RequestFields]]:
    """Maps (method, path) to the request model of each route with a JSON body."""
    models = ((route, vars(route.endpoint).get(BODY_MODEL)) for route in _listed(routers))
    return {(method, route.path_format): model for route, model in models if model for method in route.methods or ()}


def document(routers: Sequence[APIRouter]) -> Json:
    """Builds the OpenAPI document of these routers' routes, except pages."""
    routes, bodies = _listed(routers), request_bodies(routers)
    models = dict.fromkeys(bodies.values())
    references, schemas = models_json_schema([(m, "validation") for m in models], ref_template=REFERENCE)
    about = "A base and its skins. Model names are those that /v1/models lists."
    whole = get_openapi(title="Bedplate", version=__version__, description=about, routes=routes)
    for method, route in [(method, listed) for listed in routes for method in listed.methods or ()]:
        path, model = route.path_format, bodies.get((method, route.path_format))
        operation: Json = whole["paths"][path][method.lower()]
        content: Json = {media_type: {} for media_type in operation["responses"]["200"]["content"]}
        if model is not None:
            body = {"application/json": {"schema": references[model, "validation"]}}
            operation["requestBody"] = {"required": True, "content": body}
            content |= {"text/event-stream": {}} if "stream" in model.model_fields else {}
        failure = "MessagesError" if path.startswith("/v1/messages") else "Error"
        error = {"application/json": {"schema": {"$ref": REFERENCE.format(model=failure)}}}
        operation["operationId"] = f"{method} {path}"
        operation["responses"] = {
            "2XX": {"description": "The reply.", "content": content},
            "4XX": {"description": "What is wrong with the request.", "content": error},
            "5XX": {"description": "What is wrong here.", "content": error},
        }
        in_path = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in route.param_convertors]
        if in_path:
            operation["parameters"] = [*in_path, *operation.get("parameters", [])]
    bearer = {"type": "http", "scheme": "bearer"}
    x_api_key = {"type": "apiKey", "in": "header", "name": "x-api-key"}
    security_schemes = {"bearer": bearer, "x_api_key": x_api_key}
    components = {"schemas": {**schemas["$defs"], **ERRORS}, "securitySchemes": security_schemes}
    return {**whole, "security": [{"bearer": []}, {"x_api_key": []}, {}], "components": components}


def _listed(routers: Sequence[APIRouter]) -> list[APIRoute]:
    routes = [route for router in routers for route in router.routes]
    return [route for route in routes if isinstance(route, APIRoute) and route.include_in_schema]


log = logging.getLogger("bedplate.serving")


def server_config(
    *bases: str | Path,
    name: str | None = None,
    dtype: str | None = None,
    device: str = "auto",
    weights: str = "auto",
    kernel: str = "auto",
    max_rows: int | None = None,
    max_waiting: int | None = None,
    body_limit: int | None = None,
    adapters: int | None = None,
    **settings: Any,
) -> ServerConfig:
    """The configuration of bases, the first of them with a few settings; `settings` are other fields of ServerConfig.

    UsageError for a value that cannot be, and for a base's without a base.
    """
    limits = {"max_rows": max_rows, "max_waiting": max_waiting, "body_bytes": body_limit, "adapters": adapters}
    limit_settings = {field: value for field, value in limits.items() if value is not None}
    base_settings = {"name": name, "dtype": dtype, "device": device, "weights": weights, "kernel": kernel}
    of_a_base = [field for field, value in base_settings.items() if value not in (None, "auto")]
    if of_a_base and not bases:
        raise UsageError(f"{of_a_base[0]} is a setting of a base, and none is served; leave it out, or name the base")
    main_only = [base_settings, *({"device": device} for _ in bases[1:])]
    try:
        fields = [{"source": str(source), **values} for source, values in zip(bases, main_only, strict=False)]
        base_configs = tuple(map(BaseConfig.model_validate, fields))
        return ServerConfig(bases=base_configs, limits=LimitsConfig(**limit_settings), **settings)
    except ValidationError as error:
        raise UsageError(first_problem(error)) from error


def _config(base: str | Path | ServerConfig | None, settings: Json) -> ServerConfig:
    return base if isinstance(base, ServerConfig) else server_config(*([] if base is None else [base]), **settings)


@contextlib.contextmanager
def loaded_server(
    base: str | Path | ServerConfig | None = None, skins: Sequence[str | Path | Skin] = (), **settings: Any
) -> Generator[ServerState]:
    """Yields the state of a server whose bases and skins are loaded; closes the engines at the end.

    base: a base with the settings of `server_config`, or a whole configuration. `skins` come on top of those of the
    configuration, and are verified whole; those of the skins directory when they are first asked for. A base is held in
    every way that its skins were judged with, unless the configuration says how. Raises SkinError for a skin of no base
    here, UsageError for names that collide and where there is nothing to serve.
    """
    with opened_server(_config(base, settings), skins) as (state, load_bases):
        load_bases()()
        state.compare_names()
        yield state


@contextlib.contextmanager
def opened_server(
    config: ServerConfig, skins: Sequence[str | Path | Skin] = ()
) -> Generator[tuple[ServerState, LoadBases]]:
    """Yields a state that serves the skins without a base already, and the function that loads the bases.

    That function is called once, in any thread that may wait. What it returns registers the bases and the other skins,
    and belongs to the event loop's thread. Both raise what `loaded_server` raises. A skin waits for the bases where its
    name is claimed twice, so that no name is served by one model first and by another afterwards.
    """
    if not (config.bases or config.skins or config.skins_directory or skins):
        raise UsageError("there is nothing to serve; name a base, a skin or a directory of skins")
    given = [*((skin.source, skin.name) for skin in config.skins), *((skin, None) for skin in skins)]
    sources = [(skin if isinstance(skin, Skin) else read_card(skin), name) for skin, name in given]
    cards = [card_of(source) if isinstance(source, Skin) else source for source, _ in sources]
    names = [name or card.name for card, (_, name) in zip(cards, sources, strict=True)]
    named = list(zip(names, cards, sources, strict=True))
    scanned = Scanned() if config.skins_directory is None else scan_skins(config.skins_directory)
    with contextlib.ExitStack() as stack:
        guard = guard_for(config)
        stack.callback(guard.close)
        limits = config.limits.model_dump(include={"adapters", "prompt_skins", "prefix_bytes"})
        registry = Registry([], **limits, allow_other_weights=config.allow_other_weights, routes=config.routes)
        directory = StateDirectory(config)
        state = assembled(config, registry, guard, directory)
        configured = {name: card.directory for name, card, _ in named}
        changes = state.add(SkinChanges(directory, registry, config.skins_directory, configured))
        claims = Counter([*names, *(card.name for card in scanned.cards)])

        def needs_no_base(card: Card, name: str) -> bool:
            return not (card.base or "cascade" in card.parts) and claims[name] == 1 and changes.keep_name(card, name)

        def verified(source: Card | Skin, name: str | None) -> ServedSkin:
            served = registry.skin(source, name)
            run_apart(served.check)
            for warning in served.warnings:
                log.warning("%s", warning)
            return served

        registry.loading = True
        early = {name: verified(*source) for name, card, source in named if needs_no_base(card, name)}
        for served in early.values():
            registry.add(served)
        registry.register(Scanned([card for card in scanned.cards if needs_no_base(card, card.name)]))

        def load_bases() -> Callable[[], None]:
            bases = _served_bases(config, registry, stack, _whole(cards), _whole(scanned.cards))
            skins = [early.get(name) or verified(*source) for name, _, source in named]

            def register() -> None:
                registry.complete([*bases, *skins])
                for problem in (*changes.restore()[1], *registry.register(scanned)["problems"]):
                    log.warning("not registered: %s", problem)
                state.part(VersionRouter).log_unserved()

            return register

        yield state, load_bases


def _served_bases(
    config: ServerConfig, registry: Registry, stack: contextlib.ExitStack, named: Sequence[Card], others: Sequence[Card]
) -> list[ServedBase]:
    """Loads the bases, gives their engines to the registry, and returns each under its name. `stack` closes them."""
    log.info("loading %s", ", ".join(base.name or base.source for base in config.bases) or "skins")
    awaits, count = config.skins_directory is not None, len(config.bases)
    loaded = [run_apart(partial(load_resident_base, base, count, named, others, awaits)) for base in config.bases]
    trial, engines, bases = stack.enter_context(GrammarTrial()), list[Engine](), dict[ResidentBase, ServedBase]()
    for base, engine in open_engines(config, loaded, ComputeLock()):
        engines.append(stack.enter_context(engine))
        engine.grammars.trial = trial
        if base not in bases:  # of several engines the first has the base's name
            served_class = ServedBase if engine.base.spec.classifier is None else ServedClassifier
            served_class = ServedGenerator if engine.base.writes else served_class
            bases[base] = served_class(engine, base.config.name or engine.base.name)
    registry.set_engines(engines)
    return list(bases.values())


def assembled(config: ServerConfig, registry: Registry, guard: CallerGuard, directory: StateDirectory) -> ServerState:
    """Builds the state with the parts that every server has. UsageError for impossible routes."""
    state = ServerState(config, registry, guard)
    state.add(directory)
    state.add(ResponseStore(config.responses))
    feedback = state.add(Feedback(directory, config.feedback, state.outage))
    routes_file = directory.path / "routes.json"
    router = state.add(VersionRouter(state, lambda: feedback.targets, routes_file, directory.acquire))
    if config.feedback.keep:
        state.observers.append(feedback.finished)
        state.services.append(feedback)
    if config.routes:
        state.leases = router
        state.observers.append(router.finished)
        state.services.append(router)
    state.services.append(state.add(Batches(state)))
    return state


def _whole(cards: Sequence[Card]) -> list[Card]:
    """The cards with each cascade replaced by its two skins, which name the weights and kernels of their bases."""
    return [part for card in cards for part in (parts_of(card) or [card])]


_ROUTES = (openai, responses, anthropic, encoding, tokens, batches, feedback, monitoring, pages)
ROUTERS: tuple[APIRouter, ...] = (*(module.router for module in _ROUTES), router, admin.router, admin.routes)


def create_app(state: ServerState) -> FastAPI:
    # FastAPI's own schema would not know the bodies, which routes read themselves: `openapi` does.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=_services)
    app.state.server, app.state.routers, app.state.document = state, ROUTERS, None
    for router in ROUTERS:
        app.include_router(router)
    metrics = state.add(Metrics(state))
    metrics.registry.register(state.part(VersionRouter))
    watchdog = state.add(Watchdog())
    metrics.registry.register(watchdog)
    state.services.append(watchdog)
    state.observers.append(metrics.finished)
    state.unanswered.append(metrics.unanswered)
    state.watchers.append(metrics.watch)
    if state.config.telemetry is not None:
        telemetry = Telemetry(state.config.telemetry)
        state.watchers.append(telemetry.watch)
        state.services.append(telemetry)
    if state.config.cors:
        methods = ("GET", "POST", "PUT", "DELETE")
        settings: Json = {"allow_methods": methods, "allow_headers": ("*",), "expose_headers": EXPOSED_HEADERS}
        app.add_middleware(CORSMiddleware, allow_origins=list(state.config.cors), **settings)
    app.add_middleware(Origins, state=state)
    app.add_middleware(AccessLog, state=state)
    add_error_handlers(app)
    return app


@contextlib.asynccontextmanager
async def _services(app: FastAPI) -> AsyncGenerator[None]:
    state: ServerState = app.state.server
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(state.part(StateDirectory).release)
        for service in state.services:
            await stack.enter_async_context(service.running(app))
        yield


@checked
def serve(
    base: str | Path | ServerConfig | None = None,
    skins: Sequence[str | Path | Skin] = (),
    *,
    on_ready: Callable[[str, ServerState], None] | None = None,
    **settings: Any,
) -> bool:
    """Serves until SIGTERM (then returns) or SIGINT (then raises KeyboardInterrupt).

    Skins that need no base are served without one.

    Loopback unless told otherwise; port 0 takes a free one. While it loads, /ready answers 503. Requests that run when
    it is told to stop have `grace_seconds` to end; a second signal ends them at once. Returns False where a thread is
    left that cannot be ended: it still loads, hangs in a step, or works on a request that nobody waits for any more.
    on_ready is called with the URL and what is served once connections are taken. `settings`: those of `server_config`,
    for one base (host, port, grace_seconds, name, dtype, device, max_rows, …).
    """
    config = _config(base, settings)
    with _listening(config.host, config.port) as listener:
        check_open(config)

        def build_app(state: ServerState) -> tuple[ASGIApp, AbstractAsyncContextManager[None]]:
            app = create_app(state)
            return app, _services(app)

        def ready(state: ServerState) -> None:
            if on_ready is not None:
                host, port = listener.getsockname()[:2]
                on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/v1", state)

        # A line of a header has some bytes more than its name and value.
        head = 2 * (config.limits.header_bytes + config.limits.url_bytes)
        server = Server(opened_server(config, skins), build_app, ready, config.grace_seconds, head)
        return server.serve_until_stopped(listener)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Generator[socket.socket]:
    """Binds the socket. UsageError for an address that cannot be served on."""
    try:
        family, sock_type, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, sock_type, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"there is no address {host!r} port {port} to serve on: {error}") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise UsageError(f"cannot serve on {host} port {port}: {error.strerror}; choose another port") from error
        listener.set_inheritable(True)
        yield listener
