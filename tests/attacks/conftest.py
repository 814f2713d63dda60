"""A live server with two tenants, for requests that are made to harm."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.servers.threaded import served
from tests.serving.conftest import Files, Server, files, running

from bedplate.serving.callers.caller_guard import Caller, CallerGuard
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.serving.server.uvicorn_server import TimedConnection
from bedplate.serving.settings.server_config import FeedbackConfig, KeepRule, LimitsConfig

__all__ = ["files"]


class ByHeader(CallerGuard):
    """The bearer token is the tenant; admins are those whose name says so."""

    def identify(self, headers):
        tenant = headers.get("authorization", "").removeprefix("Bearer ")
        return Caller("", tenant, admin=tenant == "admin")


@contextlib.contextmanager
def attacked(files: Files, directory: Path, **limits: int) -> Iterator[Server]:
    """A server that keeps feedback of every call; `limits` as the server's file has them."""
    feedback_config = FeedbackConfig(keep={"*": KeepRule(requests=True, replies=True)})
    (shelf := directory / "shelf").mkdir()
    config = server_config(files.base, state=directory / "state", feedback=feedback_config)
    config = config.model_copy(update={"limits": LimitsConfig(**limits), "skins_directory": shelf})
    with loaded_server(config, files.skins) as state:
        state.guard = ByHeader()
        with running(state) as url:
            yield Server(url, state, {})


@pytest.fixture(scope="package")
def target(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with attacked(files, tmp_path_factory.mktemp("attacked"), max_waiting=32) as server:
        yield server


@contextlib.contextmanager
def listening(app: Any, buffer: int | None = None) -> Generator[int]:
    """An ASGI application behind connections as the server has them, in a thread; its port. buffer: bytes of its
    sockets' send buffers."""
    settings: Any = {"http": TimedConnection, "lifespan": "off", "interface": "asgi3", "loop": "asyncio"}
    with served(app, buffer=buffer, **settings) as port:
        yield port


def head(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer {tenant}"}


T = TypeVar("T")


def at_once(count: int, work: Callable[[int], T]) -> list[T]:
    """What so many calls in threads of their own give, in order."""
    results: dict[int, T] = {}
    threads = [threading.Thread(target=lambda i=i: results.update({i: work(i)})) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[i] for i in range(count)]
