"""`bedplate serve` in a process of its own, with keys, small limits and a skins directory: what the fault tests ask."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from tests.forked import Command
from tests.homes import new_home

from bedplate.serving.callers.api_keys import Key, KeysFile, change_keys, new_secret


@dataclass
class Process:
    """A running server and the secrets of its keys: `one` and `two` are tenants, `slow` may ask twice a minute, `few`
    may use the skin `prompted` only, `admin` everything."""

    process: Command
    url: str
    secrets: Mapping[str, str]
    shelf: Path

    def head(self, key: str | None = "one") -> dict[str, str]:
        return {} if key is None else {"authorization": f"Bearer {self.secrets.get(key, key)}"}

    def request(self, method: str, path: str, key: str | None = "one", **kwargs: Any) -> httpx.Response:
        headers = {**self.head(key), **kwargs.pop("headers", {})}
        with httpx.Client(trust_env=False, timeout=60, verify=False) as client:  # reads no certificates
            return client.request(method, self.url + path, headers=headers, **kwargs)

    def chat(self, key: str | None = "one", **fields: Any) -> httpx.Response:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2} | fields
        return self.request("POST", "/v1/chat/completions", key, json=body)

    def gauges(self, *names: str) -> list[float]:
        """All at the same moment."""
        text = self.request("GET", "/metrics", "admin").text
        matches = (re.search(rf"^bedplate:{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE) for name in names)
        return [float(match[1]) for match in matches]  # type: ignore[index]

    def gauge(self, name: str) -> float:
        return self.gauges(name)[0]

    def idle(self, seconds: float = 10.0) -> bool:
        """Whether it comes to rest: nothing runs, nothing waits."""
        end = time.monotonic() + seconds
        while any(self.gauges("num_requests_running", "num_requests_waiting")):
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    @property
    def faults(self) -> list[str]:
        """What it wrote of failures that nobody foresaw: each with its stack and what was raised."""
        return re.findall(
            r"^.*\n?Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)*.*$", self.process.errors, re.M
        )

    def rss(self) -> int:
        return resident_bytes(self.process.pid)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def loading_slowly() -> None:
    """`bedplate ...` whose bases take as many seconds longer to load as its first argument says."""
    from bedplate.cli.main import main
    from bedplate.serving.models import engines

    seconds, load = float(sys.argv.pop(1)), engines._load

    def slowly(*arguments: Any, **settings: Any) -> Any:
        time.sleep(seconds)
        return load(*arguments, **settings)

    engines._load = slowly
    main()


def hanging() -> None:
    """`bedplate ...` whose first step says "hangs" and never ends; a server that ends waits for it half a second."""
    from bedplate.cli.main import main
    from bedplate.inference.engine import runner
    from bedplate.serving.server import uvicorn_server

    def hangs(*_: Any) -> Any:
        print("hangs", flush=True)
        threading.Event().wait()

    runner.sample, uvicorn_server.CLOSE_SECONDS = hangs, 0.5
    main()


def telemetry_without_its_library() -> None:
    """What is said where telemetry is configured and OpenTelemetry is not installed: a name and a message."""
    import bedplate.serving.server.app  # noqa: F401
    from bedplate.serving.server.monitoring import Telemetry
    from bedplate.serving.settings.server_config import TelemetryConfig

    assert not [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
    sys.modules["opentelemetry.sdk.trace"] = sys.modules["opentelemetry.sdk.resources"] = None  # type: ignore[assignment]
    try:
        Telemetry(TelemetryConfig(endpoint="http://127.0.0.1:9"))
    except Exception as error:
        print(type(error).__name__, error, flush=True)


@contextlib.contextmanager
def serving(base: Path, skins: list[Path], directory: Path, **settings: Any) -> Generator[Process]:
    """Killed at the end. `settings`: fields of the server's file."""
    secrets: dict[str, str] = {}
    keys: list[Key] = []
    limited = {"models": ("prompted",)}
    slow = {"limits": {"requests_per_minute": 2}}
    fields: dict[str, Any] = {
        "one": {"tenant": "one"},
        "two": {"tenant": "two"},
        "slow": slow,
        "few": limited,
        "admin": {"admin": True},
    }
    for name, key_fields in fields.items():
        id_, secrets[name], hash_ = new_secret()
        keys.append(Key.model_validate({"id": id_, "name": name, "hash": hash_, "created": "2026-01-01", **key_fields}))
    (shelf := directory / "shelf").mkdir()
    change_keys(directory / "keys.yaml", lambda _: KeysFile(keys=tuple(keys)))
    file = {
        "bases": [{"source": str(base), "dtype": "float32"}],
        "skins": [{"source": str(path)} for path in skins],
        "skins_directory": str(shelf),
        "keys": str(directory / "keys.yaml"),
        "state": str(directory / "state"),
        "port": 0,
        **settings,
    }
    (directory / "server.yaml").write_text(yaml.safe_dump(file))
    home = new_home(directory / "home")
    arguments = ("serve", "--config", directory / "server.yaml", "--json")
    process = Command(directory / "said", *arguments, BEDPLATE_HOME=str(home))
    try:
        announced = process.first_line()
        yield Process(process, json.loads(announced)["url"].removesuffix("/v1"), secrets, shelf)
    finally:
        process.kill()
