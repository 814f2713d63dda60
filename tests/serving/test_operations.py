"""Loading, health, draining, logs, traces, and the container file."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.forked import Command

from bedplate.cli.main import VERBS, main
from bedplate.core.config import Strict
from bedplate.core.errors import UnknownItemError
from bedplate.inference.engine.sampler import sample
from bedplate.serving.request.server_state import ServerState
from bedplate.serving.server import uvicorn_server
from bedplate.serving.server.app import _services, create_app, loaded_server, opened_server, serve
from bedplate.serving.server.monitoring import Telemetry
from bedplate.serving.server.uvicorn_server import HEAD_SECONDS, SWITCH_SECONDS
from bedplate.serving.server.uvicorn_server import Server as Lifecycle
from bedplate.serving.settings.server_config import BaseConfig, JsonLines, LogsConfig, ServerConfig, TelemetryConfig

from .conftest import Files, Server, running
from .test_lifecycle import ENDLESS, everything, send, slow_steps, wait_until

__all__ = ["slow_steps"]

ROOT = Path(__file__).parents[2]


def config(files: Files, **settings: Any) -> ServerConfig:
    return ServerConfig(bases=(BaseConfig(source=str(files.base)),), port=0, **settings)


def status(url: str, path: str) -> tuple[int, str]:
    with httpx.Client(trust_env=False, timeout=5, verify=False) as client:  # reads no certificates
        response = client.get(url + path)
    return response.status_code, response.json()["status"]


# Health


def test_a_hung_step_turns_health_to_503_and_a_recovered_one_back(files, tmp_path, monkeypatch):
    hang, leave = threading.Event(), threading.Event()

    def hangs(logits, rows):
        hang.set()
        leave.wait(30)
        return sample(logits, rows)

    with loaded_server(config(files, stall_seconds=0.3, state=tmp_path)) as state, running(state) as url:
        assert status(url, "/health") == status(url, "/ready") == (200, "ok")
        with monkeypatch.context() as patch:
            patch.setattr("bedplate.inference.engine.runner.sample", hangs)
            with send(Server(url, state, {}), ENDLESS):
                assert hang.wait(10)
                assert status(url, "/health") == (200, "ok")  # a step may take a while
                wait_until(lambda: status(url, "/health") == (503, "stalled"), 2.0)
                assert status(url, "/ready") == (503, "stalled")
                leave.set()
                wait_until(lambda: status(url, "/health") == (200, "ok"), 5.0)
        assert Server(url, state, {}).idle(5.0)
        assert Server(url, state, {}).chat().status_code == 200


def test_ready_says_stopping_while_health_stays(files, tmp_path):
    with loaded_server(config(files, state=tmp_path)) as state, running(state) as url:
        state.stopping = True
        assert status(url, "/health") == (200, "stopping")
        assert status(url, "/ready") == (503, "stopping")


# Loading and stopping


@contextlib.contextmanager
def command(files: Files, directory: Path, *arguments: str, slower: float = 0.0):
    """`bedplate serve` in a process of its own, on a port that is known before it has loaded. `slower`: by how many
    seconds its base takes longer to load."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    line = (str(slower), "serve", files.base, "--port", str(port), *arguments)
    process = Command(directory, *line, main="tests.serving.process:loading_slowly")
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()


def answers(url: str, path: str) -> tuple[int, str] | None:
    try:
        return status(url, path)
    except httpx.TransportError:
        return None


def test_while_it_loads_a_server_lives_and_is_not_ready(files, tmp_path):
    with command(files, tmp_path, slower=3.0) as (process, url):
        wait_until(lambda: answers(url, "/health") is not None, 30.0)
        assert answers(url, "/health") == (200, "loading")
        assert answers(url, "/ready") == (503, "loading")
        response = Server(url, None, {}).chat()  # type: ignore[arg-type]
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "loading"
        assert int(response.headers["retry-after"]) >= 1
        wait_until(lambda: answers(url, "/ready") == (200, "ok"), 30.0)
        assert Server(url, None, {}).chat().status_code == 200  # type: ignore[arg-type]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_sigterm_while_loading_ends_it_at_once(files, tmp_path):
    with command(files, tmp_path, slower=60.0) as (process, url):
        wait_until(lambda: answers(url, "/health") is not None, 30.0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0  # loading would take 60
        assert "serving" not in process.output
        assert "Traceback" not in process.errors, process.errors


def test_what_cannot_be_loaded_is_said():
    with pytest.raises(UnknownItemError, match="no such base"):
        serve("no such base", port=0)


class Running:
    """A server of this process in a thread, stopped as a signal would."""

    def __init__(self, settings: ServerConfig) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.states: list[ServerState] = []

        def build_app(state: ServerState):
            app = create_app(state)
            return app, _services(app)

        grace = settings.grace_seconds
        self.server = Lifecycle(opened_server(settings), build_app, self.states.append, grace, head_bytes=1 << 16)
        self.result: list[bool] = []
        self.failure: Exception | None = None
        self.thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        try:
            self.result.append(self.server.serve_until_stopped(self.listener))
        except Exception as error:
            self.failure = error

    def __enter__(self) -> Running:
        self.thread.start()
        wait_until(lambda: bool(self.states), 20.0)
        return self

    def stop(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)

    def __exit__(self, *error: object) -> None:
        self.server.force_exit = self.server.should_exit = True
        self.thread.join()
        self.listener.close()


@pytest.fixture
def no_signals(monkeypatch):
    """The thread of a test takes no signals, and raises none again."""
    monkeypatch.setattr("signal.raise_signal", lambda _: None)


def test_a_drain_answers_probes_refuses_calls_and_finishes_what_runs(files, tmp_path, slow_steps, no_signals, caplog):
    caplog.set_level(logging.INFO, "bedplate.serving")
    interval = sys.getswitchinterval()
    with Running(config(files, grace_seconds=30, state=tmp_path)) as run:
        server = Server(run.url, run.states[0], {})
        assert sys.getswitchinterval() <= SWITCH_SECONDS  # a step waits for no other thread longer
        with send(server, {**ENDLESS, "stream": True, "max_tokens": 60}) as connection:
            wait_until(lambda: run.states[0].registry.engines[0].running == 1)
            run.stop()
            assert status(run.url, "/ready") == (503, "stopping")
            assert status(run.url, "/health") == (200, "stopping")
            response = server.chat()
            assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
            assert b"[DONE]" in everything(connection)
        run.thread.join(5)
        assert run.result == [True]
    assert sys.getswitchinterval() == interval
    assert "stopping: 1 call has 30 s to end; a second signal stops at once" in caplog.messages


def test_after_the_grace_what_runs_is_told(files, tmp_path, slow_steps, no_signals):
    with Running(config(files, grace_seconds=0.5, state=tmp_path)) as run:
        with send(Server(run.url, run.states[0], {}), {**ENDLESS, "stream": True}) as connection:
            wait_until(lambda: run.states[0].registry.engines[0].running == 1)
            began = time.monotonic()
            run.stop()
            received = everything(connection)
            assert 0.4 < time.monotonic() - began < 4
        assert b"shutting_down" in received
        run.thread.join(5)
        assert run.result == [True]


def test_a_second_signal_ends_it_at_once(files, tmp_path, slow_steps, no_signals):
    with Running(config(files, grace_seconds=60, state=tmp_path)) as run:
        with send(Server(run.url, run.states[0], {}), {**ENDLESS, "stream": True}) as connection:
            wait_until(lambda: run.states[0].registry.engines[0].running == 1)
            began = time.monotonic()
            run.stop()
            time.sleep(0.2)
            run.stop()
            received = everything(connection)
            run.thread.join(5)
            assert time.monotonic() - began < 4
        assert b"shutting_down" in received
        assert run.result == [True]


def test_a_server_with_nothing_to_do_ends_at_once(files, tmp_path):
    with command(files, tmp_path, "--grace", "60") as (process, url):
        wait_until(lambda: answers(url, "/ready") == (200, "ok"), 30.0)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - began < 30  # the grace would be 60


def test_heads_that_never_end_are_cut_off(files, tmp_path, monkeypatch, no_signals):
    assert HEAD_SECONDS <= 60
    monkeypatch.setattr(uvicorn_server, "HEAD_SECONDS", 0.5)
    with Running(config(files, state=tmp_path)) as run:
        parts = urlsplit(run.url)
        for first in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"):
            with socket.create_connection((parts.hostname, parts.port)) as connection:
                connection.sendall(first)
                began, cut = time.monotonic(), False
                try:
                    while not cut and time.monotonic() - began < 30:
                        connection.sendall(b"x" if first else b"")
                        connection.settimeout(0.1)
                        with contextlib.suppress(TimeoutError):
                            cut = connection.recv(1) == b""
                except ConnectionError:
                    cut = True
                assert cut
                assert time.monotonic() - began > 0.3
        # A call that takes longer than a head may is not cut off, nor the next one on its connection.
        with httpx.Client(trust_env=False, timeout=20) as client:
            for _ in range(2):
                body = {**ENDLESS, "max_tokens": 100}
                assert client.post(f"{run.url}/v1/chat/completions", json=body).status_code == 200
                time.sleep(0.1)


# Logs


@pytest.mark.parametrize("prompts", [False, True])
def test_logs_as_json_lines(files, tmp_path, prompts, caplog):
    caplog.set_level(logging.INFO, "bedplate.access")
    settings = config(files, state=tmp_path, logs=LogsConfig(format="json", prompts=prompts))
    with loaded_server(settings) as state, running(state) as url:
        server = Server(url, state, {})
        server.chat(messages=[{"role": "user", "content": "zanzibar"}], stream=True)
        server.chat(temperature=9)
        wait_until(lambda: len([r for r in caplog.records if r.name == "bedplate.access"]) == 2)
    formatter = JsonLines()
    lines = [formatter.format(record) for record in caplog.records if record.name == "bedplate.access"]
    first, second = map(json.loads, lines)
    assert first["logger"] == "bedplate.access"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert (first["status"], first["route"], first["endpoint"]) == (200, "/v1/chat/completions", "chat")
    assert first["model"] == "tiny"
    assert first["prompt"] > first["completion"] > 0
    assert first["ttft_ms"] >= first["queued_ms"] >= 0
    assert len(first["request_id"]) == 32
    assert (second["status"], second["error"]) == (400, "invalid_value")
    assert ("zanzibar" in lines[0]) is prompts
    assert all("\n" not in line for line in lines)


def test_a_json_log_holds_tracebacks_in_their_line():
    try:
        raise ValueError("wrong")
    except ValueError:
        record = logging.LogRecord("bedplate", logging.ERROR, "", 1, "it %s", ("failed",), sys.exc_info())
    log_line = json.loads(JsonLines().format(record))
    assert log_line["message"] == "it failed"
    assert "ValueError: wrong" in log_line["exception"]


def test_the_log_names_the_key_by_its_id_only(files, tmp_path, caplog):
    from .test_guard import make_key
    from .test_guard_http import guarded, post_chat

    caplog.set_level(logging.INFO)
    key, secret = make_key(tenant="shop")
    with guarded(files, tmp_path, key) as server:
        post_chat(server, secret)
        wait_until(lambda: "tenant=shop" in caplog.text)
    assert f"key={key.id}" in caplog.text
    assert secret.split("_")[2] not in caplog.text


def test_the_log_names_a_revoked_key_that_was_refused(files, tmp_path, caplog):
    from .test_guard import make_key
    from .test_guard_http import guarded, post_chat

    caplog.set_level(logging.INFO)
    revoked, secret = make_key(disabled=True)
    with guarded(files, tmp_path, revoked) as server:
        assert post_chat(server, secret).status_code == 401
        wait_until(lambda: "401 " in caplog.text)
    assert f"key={revoked.id}" in caplog.text


# Traces


def test_one_span_for_each_call(files, tmp_path):
    exporter = InMemorySpanExporter()
    telemetry = Telemetry(TelemetryConfig(endpoint="http://127.0.0.1:9/v1/traces", service_name="shop"), exporter)
    with loaded_server(config(files, state=tmp_path)) as state:
        state.watchers.append(telemetry.watch)
        state.services.append(telemetry)
        with running(state) as url:
            server = Server(url, state, {})
            usage = server.chat(ignore_eos=True).json()["usage"]
            parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            body = {"model": "tiny", "prompt": "a", "max_tokens": 512}
            server.post("/v1/completions", json=body, headers={"traceparent": parent, "x-request-id": "mine"})
            with httpx.Client(trust_env=False) as client:
                client.get(f"{url}/v1/models")
            assert telemetry._provider.force_flush()
            good, bad = exporter.get_finished_spans()
    assert (good.name, bad.name) == ("chat tiny", "text_completion tiny")
    assert good.resource.attributes["service.name"] == "shop"
    attributes = dict(good.attributes or {})
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == "tiny"
    assert attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert attributes["http.response.status_code"] == 200
    assert good.status.is_ok
    assert good.end_time - good.start_time > 0
    assert not bad.status.is_ok
    assert (bad.attributes or {})["error.type"] == "context_length_exceeded"
    assert (bad.attributes or {})["bedplate.request_id"] == "mine"
    assert bad.parent is not None
    assert f"{bad.parent.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.slow
def test_telemetry_without_its_library_is_an_error_only_when_it_is_configured():
    code = "from tests.serving.process import telemetry_without_its_library as main; main()"
    # of its own: the tests' process, which others are forked off, has the library
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("UsageError")
    assert "bedplate[telemetry]" in process.stdout


# The container


INSTRUCTIONS = {
    *("FROM", "ENV", "RUN", "WORKDIR", "COPY", "ARG", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"),
    *("ENTRYPOINT", "CMD"),
}


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_the_container_file_is_whole():
    stages: dict[str, str] = {}
    for name, arguments in instructions():
        assert name in INSTRUCTIONS
        words = shlex.split(arguments)
        if name == "FROM":
            image, _, stage = words
            assert image == "python:3.12-slim" or image in stages
            stages[stage] = image
        if name == "COPY" and not words[0].startswith("--"):
            for source in words[:-1]:
                assert (ROOT / source).exists(), source
        if name == "COPY" and words[0].startswith("--from="):
            assert words[0].removeprefix("--from=") in stages
    assert {"cpu", "gpu"} <= stages.keys()
    container_settings = dict(instructions())
    assert container_settings["USER"] not in {"root", "0"}
    assert json.loads(container_settings["VOLUME"]) == ["/data"]
    assert "BEDPLATE_HOME=/data" in " ".join(arguments for name, arguments in instructions() if name == "ENV")
    assert "/health" in container_settings["HEALTHCHECK"]
    assert container_settings["STOPSIGNAL"] == "SIGTERM"
    extras = re.findall(r"\[([\w,]+)\]'", " ".join(arguments for name, arguments in instructions() if name == "RUN"))
    declared_extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    assert extras
    assert all(extra in declared_extras for group in extras for extra in group.split(","))


def test_the_container_starts_what_the_command_line_knows(monkeypatch, capsys):
    container_settings = dict(instructions())
    assert json.loads(container_settings["ENTRYPOINT"]) == ["bedplate"]
    verb, *arguments = json.loads(container_settings["CMD"])
    assert verb in VERBS
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    for option in (word for word in arguments if word.startswith("--")):
        assert re.search(rf"{option}\b", shown)


def test_nothing_but_the_package_goes_into_the_container():
    included = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert (ROOT / ".dockerignore").read_text().startswith("*\n")
    copied = {
        word.removeprefix("./")
        for name, arguments in instructions()
        if name == "COPY" and "--from" not in arguments
        for word in shlex.split(arguments)[:-1]
    }
    assert copied == set(included)


def test_the_documented_server_file_is_valid():
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    shown = re.search(r"^```text\n(# server\.yaml\n.*?)^```", text, re.M | re.S)
    assert shown is not None
    assert ServerConfig.model_validate(yaml.safe_load(shown[1])).keys is not None
    page = (ROOT / "docs" / "serving.md").read_text("utf-8").split("## The server's file")[1]
    price_block = re.search(r"^```text\n(.*?)^```", page, re.M | re.S)
    assert price_block is not None
    price = ServerConfig.model_validate(yaml.safe_load(price_block[1])).price
    assert price is not None
    assert price.as_of == "2026-11-24"


def test_every_key_of_the_servers_file_is_documented_with_its_default():
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    shown = dict(re.findall(r"^\| `([\w.]+)` \| (.*?) \|", text.split("Every key,")[1].split("\n## ")[0], re.M))
    defaults: dict[str, Any] = {}
    for name, field in ServerConfig.model_fields.items():
        if isinstance(field.default, Strict) and name not in shown:
            defaults |= {f"{name}.{key}": value for key, value in field.default}
        else:
            defaults[name] = field.default
    assert list(shown) == sorted(shown, key=list(defaults).index)
    assert shown.keys() == defaults.keys()
    for name, value in defaults.items():
        if isinstance(value, bool | int | float | str):
            assert shown[name] == (str(value).lower() if isinstance(value, bool | str) else f"{value:.12g}"), name


def test_every_metric_in_the_documentation_is_written(files, tmp_path):
    documented = set(re.findall(r"`bedplate:(\w+)`", (ROOT / "docs" / "operations.md").read_text("utf-8")))
    with (
        loaded_server(config(files, state=tmp_path)) as state,
        running(state) as url,
        httpx.Client(trust_env=False) as client,
    ):
        text = client.get(f"{url}/metrics").text
    written = set(re.findall(r"^# TYPE bedplate:(\w+)", text, re.M))
    assert len(documented) >= 20
    assert documented <= written
