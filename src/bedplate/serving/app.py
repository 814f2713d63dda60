"""The server: a base and skins loaded, the application made, and run until it is told to stop."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI

from bedplate.core.errors import UsageError
from bedplate.serving import (
    admin,
    anthropic,
    batches,
    classify,
    embeddings,
    files,
    health,
    openai,
    pages,
    rerank,
    responses,
    tokens,
)
from bedplate.serving.access import AccessLog
from bedplate.serving.config import ServerConfig
from bedplate.serving.errors import add_error_handlers
from bedplate.serving.house import House
from bedplate.serving.loading import loaded_house, server_config
from bedplate.skins.skin import Skin

ROUTERS: tuple[APIRouter, ...] = (
    openai.router,
    responses.router,
    anthropic.router,
    embeddings.router,
    classify.router,
    rerank.router,
    tokens.router,
    files.router,
    batches.router,
    health.router,
    pages.router,
    admin.router,
)


def create_app(house: House) -> FastAPI:
    """The ASGI application over a loaded house."""
    # Its own schema and pages would describe routes that read their bodies themselves.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=_services)
    app.state.house = house
    for router in ROUTERS:
        app.include_router(router)
    app.add_middleware(AccessLog, house=house)
    add_error_handlers(app)
    return app


@contextlib.asynccontextmanager
async def _services(app: FastAPI) -> AsyncGenerator[None]:
    house: House = app.state.house
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(house.state.release)
        for service in house.services:
            await stack.enter_async_context(service.running(app))
        yield


def serve(
    base: str | Path | ServerConfig,
    skins: Sequence[str | Path | Skin] = (),
    *,
    on_ready: Callable[[str, House], None] | None = None,
    **settings: Any,
) -> None:
    """Serves until SIGTERM (then returns) or SIGINT (then raises KeyboardInterrupt).

    Loopback unless told otherwise; port 0 takes a free one. Requests that run when it is told to stop have
    `grace_seconds` to end. on_ready is called with the URL and what is served once connections are taken. `settings`:
    those of `server_config`, for one base (host, port, grace_seconds, name, dtype, device, max_rows, …).
    """
    config = base if isinstance(base, ServerConfig) else server_config(base, **settings)
    with _listening(config.host, config.port) as listener, loaded_house(config, skins) as house:
        web = uvicorn.Config(
            create_app(house),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=max(1, round(config.grace_seconds)),
        )
        with _returning_on_sigterm():
            _Server(web, house, lambda: on_ready and on_ready(_url(listener), house)).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Tells the house when it is going down, and its owner when it is up."""

    def __init__(self, config: uvicorn.Config, house: House, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._house, self._ready = house, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._house.stopping = True
        super().handle_exit(sig, frame)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Generator[socket.socket]:
    """The bound socket, before a model is loaded for nothing."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
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


@contextlib.contextmanager
def _returning_on_sigterm() -> Generator[None]:
    """uvicorn raises the signals it took again when it is done; of SIGTERM nothing more is wanted then."""
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: None)
    except ValueError:  # not the main thread: signals are not this server's to take
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
