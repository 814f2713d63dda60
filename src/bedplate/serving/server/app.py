"""Builds the FastAPI application and runs the server until it is told to stop."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from bedplate.core.arguments import checked
from bedplate.core.errors import UsageError
from bedplate.serving.api import (
    admin,
    anthropic,
    batches,
    classification,
    embeddings,
    feedback,
    openai,
    pages,
    rerank,
    responses,
    tokens,
    uploads,
)
from bedplate.serving.callers.caller_guard import check_open
from bedplate.serving.durable.state_directory import StateDirectory
from bedplate.serving.request.server_state import ServerState
from bedplate.serving.rollout.version_router import VersionRouter
from bedplate.serving.schemas.http_errors import add_error_handlers
from bedplate.serving.server import health, openapi, prometheus
from bedplate.serving.server.access import EXPOSED, AccessLog, Origins
from bedplate.serving.server.health import Watchdog
from bedplate.serving.server.prometheus import Metrics
from bedplate.serving.server.startup import loaded_server, server_config
from bedplate.serving.server.telemetry import Telemetry
from bedplate.serving.server.uvicorn_server import Server
from bedplate.serving.settings.server_config import ServerConfig
from bedplate.skins.skin import Skin

ROUTERS: tuple[APIRouter, ...] = (
    openai.router,
    responses.router,
    anthropic.router,
    embeddings.router,
    classification.router,
    rerank.router,
    tokens.router,
    uploads.router,
    batches.router,
    feedback.router,
    admin.routes,
    health.router,
    prometheus.router,
    openapi.router,
    pages.router,
    admin.router,
)


def create_app(state: ServerState) -> FastAPI:
    """The ASGI application over a loaded server."""
    # FastAPI's own schema would not know the bodies, which routes read themselves: `openapi` does.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=_services)
    app.state.server, app.state.routers = state, ROUTERS
    for router in ROUTERS:
        app.include_router(router)
    metrics = state.add(Metrics(state))
    metrics.registry.register(state.part(VersionRouter))
    watchdog = state.add(Watchdog())
    metrics.registry.register(watchdog)
    state.services.append(watchdog)
    state.observers.append(metrics)
    state.unanswered.append(metrics.unanswered)
    state.watchers.append(metrics.watch)
    if state.config.telemetry is not None:
        telemetry = Telemetry(state.config.telemetry)
        state.watchers.append(telemetry.watch)
        state.services.append(telemetry)
    if state.config.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(state.config.cors),
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
        )
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
    base: str | Path | ServerConfig,
    skins: Sequence[str | Path | Skin] = (),
    *,
    on_ready: Callable[[str, ServerState], None] | None = None,
    **settings: Any,
) -> bool:
    """Serves until SIGTERM (then returns) or SIGINT (then raises KeyboardInterrupt).

    Loopback unless told otherwise; port 0 takes a free one. While it loads, /ready answers 503. Requests that run when
    it is told to stop have `grace_seconds` to end; a second signal ends them at once. Returns False where a thread is
    left that cannot be ended: it still loads, hangs in a step, or works on a request that nobody waits for any more.
    on_ready is called with the URL and what is served once connections are taken. `settings`: those of `server_config`,
    for one base (host, port, grace_seconds, name, dtype, device, max_rows, …).
    """
    config = base if isinstance(base, ServerConfig) else server_config(base, **settings)
    with _listening(config.host, config.port) as listener:
        check_open(config)

        def build_app(state: ServerState) -> tuple[ASGIApp, AbstractAsyncContextManager[None]]:
            app = create_app(state)
            return app, _services(app)

        def ready(state: ServerState) -> None:
            if on_ready is not None:
                on_ready(_url(listener), state)

        # A line of a header has some bytes more than its name and value.
        head = 2 * (config.limits.header_bytes + config.limits.url_bytes)
        server = Server(lambda: loaded_server(config, skins), build_app, ready, config.grace_seconds, head)
        return server.serve_until_stopped(listener)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Generator[socket.socket]:
    """The bound socket, before a model is loaded for nothing."""
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


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
