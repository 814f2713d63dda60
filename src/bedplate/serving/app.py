"""The server: a base and skins loaded, the application made, and run until it is told to stop."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import Response

from bedplate.core.errors import UsageError
from bedplate.inference.engine import Engine
from bedplate.inference.predict import Predictor
from bedplate.models.checkpoints.base import load_base
from bedplate.models.decoder import Decoder
from bedplate.serving import openai
from bedplate.serving.access import AccessLog
from bedplate.serving.errors import add_error_handlers
from bedplate.serving.house import BODY_LIMIT, MAX_WAITING, House
from bedplate.serving.models import Registry, ServedBase, ServedSkin
from bedplate.serving.strict_json import dump_json
from bedplate.skins.files import read_skin
from bedplate.skins.skin import Skin

log = logging.getLogger("bedplate.serving")

GRACE_SECONDS = 10.0


def create_app(house: House) -> FastAPI:
    """The ASGI application over a loaded house."""
    # Its own schema and pages would describe routes that read their bodies themselves.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.house = house
    app.include_router(openai.router)
    app.add_api_route("/health", _health, methods=["GET"])
    app.add_middleware(AccessLog)
    add_error_handlers(app)
    return app


async def _health(request: Request) -> Response:
    """200 while requests are taken; 503 when the engine's thread has ended or the server is stopping."""
    house: House = request.app.state.house
    status = "stopping" if house.stopping else "ok" if house.registry.engine.alive else "failed"
    return Response(dump_json({"status": status}), 200 if status == "ok" else 503, media_type="application/json")


P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def loaded_house(
    base: str | Path,
    skins: Sequence[str | Path | Skin] = (),
    *,
    name: str | None = None,
    dtype: str | None = None,
    device: str = "auto",
    max_rows: int = 16,
    max_waiting: int = MAX_WAITING,
    body_limit: int = BODY_LIMIT,
    allow_other_weights: bool = False,
) -> Generator[House]:
    """A base and its skins, loaded; the engine is closed at the end.

    name: what the base is called as a model (default: its own name). dtype: by default what all the skins were judged
    with, or "auto". Raises SkinError for a skin of another base, UsageError for names that collide.
    """
    read = [skin if isinstance(skin, Skin) else read_skin(skin) for skin in skins]
    loaded = _apart(load_base, base, dtype=dtype or _judged_with(read), device=device)
    if not isinstance(loaded.model, Decoder):
        raise UsageError(f"{base} is an encoder: it cannot answer chats or complete texts")
    if loaded.tokenizer is None:
        raise UsageError(f"{base} has no tokenizer, and a server needs one; add its tokenizer.json")
    with contextlib.ExitStack() as stack:
        adapters = max(1, sum(skin.lora is not None for skin in read))
        engine = stack.enter_context(Engine(loaded, max_rows=max_rows, max_waiting=max_waiting, adapters=adapters))
        registry = Registry(engine)
        registry.add(ServedBase(engine, name or loaded.name))
        for skin in read:
            predictor = _apart(Predictor, engine, skin, allow_other_weights=allow_other_weights)
            for warning in predictor.warnings:
                log.warning("%s", warning)
            registry.add(ServedSkin(predictor))
        yield House(registry, body_limit, max_waiting)


def _apart(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls in a thread that ends with the call, and its OpenMP pool with it: while a second pool exists, libgomp lets
    the workers of the engine's pool sleep between operations, and short calls take half as long again."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call, *args, **kwargs).result()


def _judged_with(skins: Sequence[Skin]) -> str:
    judged = {skin.evaluated_with.weights for skin in skins if skin.evaluated_with is not None}
    if len(judged) > 1:
        raise UsageError(
            f"the skins were judged with different weights ({', '.join(sorted(judged))}): serve them apart, or choose "
            "one with dtype and allow other weights"
        )
    return judged.pop() if judged else "auto"


def serve(
    base: str | Path,
    skins: Sequence[str | Path | Skin] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    grace_seconds: float = GRACE_SECONDS,
    on_ready: Callable[[str, House], None] | None = None,
    **settings: Any,
) -> None:
    """Serves until SIGTERM (then returns) or SIGINT (then raises KeyboardInterrupt).

    Loopback unless told otherwise; port 0 takes a free one. Requests that run when it is told to stop have
    `grace_seconds` to end. on_ready is called with the URL and what is served once connections are taken. `settings`:
    those of `loaded_house` (name, dtype, device, max_rows, max_waiting, body_limit, allow_other_weights).
    """
    with _listening(host, port) as listener, loaded_house(base, skins, **settings) as house:
        config = uvicorn.Config(
            create_app(house),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=max(1, round(grace_seconds)),
        )
        with _returning_on_sigterm():
            _Server(config, house, lambda: on_ready and on_ready(_url(listener), house)).run(sockets=[listener])


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
