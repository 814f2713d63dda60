"""Everything that must be refused, asked of `bedplate serve` in a process of its own; after each it works on, at rest.

Hung steps and failing ones need the server's inside: they are in test_hung_step, test_operations and test_lifecycle.
"""

from __future__ import annotations

import concurrent.futures
import json
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from bedplate.core.files import sha256_file

from .process import Process, serving
from .test_bad_requests import BODIES, CHAT, HI, HUGE
from .test_lifecycle import everything
from .test_structured import DEEP

LONG = {"max_tokens": 450, "ignore_eos": True}
PROMPT = [{"role": "user", "content": "this product is great and works well " * 8}]
TUNED = 1
"""Where the LoRA skin is among the room's."""
LIMITS = {"max_rows": 2, "max_waiting": 4, "body_bytes": 1024 * 1024, "timeout_seconds": 60.0, "adapters": 4}


@pytest.fixture(scope="module")
def live(files, tmp_path_factory):
    with serving(files.base, list(files.skins), tmp_path_factory.mktemp("live"), limits=LIMITS) as process:
        yield process


@pytest.fixture(autouse=True)
def works_on_and_comes_to_rest(request):
    yield
    if "live" in request.fixturenames:
        live = request.getfixturevalue("live")
        assert live.chat().status_code == 200
        assert live.request("GET", "/ready", None).status_code == 200
        assert live.idle()
        assert live.gauge("kv_cache_usage_perc") < 0.05


def refused(response: httpx.Response, status: int, code: str | None = None, param: str | None = None) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert code is None or error["code"] == code, error
    assert param is None or error["param"] == param, error
    assert len(error["message"]) < 1000
    return error["message"]


@pytest.mark.parametrize("name", BODIES)
def test_bodies(live, name):
    refused(live.request("POST", CHAT, content=BODIES[name]), 400, "invalid_json")


def test_a_body_over_the_limit(live):
    refused(live.request("POST", CHAT, content=b" " * (LIMITS["body_bytes"] + 1)), 413, "request_too_large")


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}]}]
FILE = [{"role": "user", "content": [{"type": "file", "file": {"file_data": "file:///etc/passwd"}}]}]
FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"model": 1}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id"),
    ({"messages": IMAGE}, "messages[0].content"),
    ({"messages": FILE}, "messages[0].content"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"temperature": "hot"}, "temperature"),
    *(({"n": value}, "n") for value in (0, 9, HUGE)),
    *(({"logprobs": True, "top_logprobs": value}, "top_logprobs") for value in (-1, 21, HUGE)),
    *(({"stop": value}, "stop") for value in ("", ["a"] * 17, [1])),
    *(({"logit_bias": value}, "logit_bias") for value in ({"1": 101}, {"99999": 1}, {str(HUGE): 1}, {"x": 1})),
    *(({"seed": value}, "seed") for value in (HUGE, -HUGE - 1)),
    *(({"max_tokens": value}, "max_tokens") for value in (0, -1, HUGE)),
    *(({"min_tokens": value}, "min_tokens") for value in (3, -1, HUGE)),
    ({"guided_json": DEEP}, "guided_json"),
    ({"guided_json": {"$ref": "http://127.0.0.1:9/x.json"}}, "guided_json"),
    ({"guided_json": {"type": "integer", "minimum": 2, "maximum": 1}}, "guided_json"),
]


STREAMED = ("messages[0].content", "temperature", "guided_json")
"""Fields whose refusal `make test` asks for as a stream too: in messages, in sampling, in a grammar."""


@pytest.mark.parametrize(
    ("fields", "param", "stream"),
    [
        pytest.param(
            *(fields, param, stream),
            id=f"{i}-{param}-{stream}",
            marks=pytest.mark.slow if stream and param not in STREAMED else (),
        )
        for stream in (False, True)
        for i, (fields, param) in enumerate(FIELDS)
    ],
)
def test_fields(live, fields, param, stream):
    begin = time.monotonic()
    refused(live.chat(**fields, stream=stream), 400, param=param)
    assert time.monotonic() - begin < 30  # a pattern that runs away takes for ever  # the machine may be busy


def test_the_context(live):
    refused(live.chat(max_tokens=512), 400, "context_length_exceeded", "max_tokens")


def test_keys_and_models(live):
    for key in (None, "bp_wrong"):
        refused(live.chat(key), 401, "invalid_api_key")
    hidden, absent = (live.chat("few", model=name) for name in ("writer", "absent"))
    refused(hidden, 404, "model_not_found", "model")
    assert hidden.text.replace("writer", "absent") == absent.text
    assert live.chat("few", model="prompted").status_code == 200
    refused(live.chat(model="nobody"), 404, "model_not_found", "model")
    for method, path in (("GET", "/metrics"), ("GET", "/admin/skins"), ("POST", "/admin/skins/scan")):
        refused(live.request(method, path, "one"), 403, "admin_required")


def test_costly_patterns_work_or_are_refused(live):
    for pattern in ("(a+)+b", "(a|a)*b", "(a|aa)+$", ".*" * 50):
        begin = time.monotonic()
        reply = live.chat(guided_regex=pattern, max_tokens=8)
        assert reply.status_code == 200 or refused(reply, 400, param="guided_regex")
        assert time.monotonic() - begin < 30  # a pattern that runs away takes for ever


def test_many_schemas_take_bounded_time_and_memory(live):
    sizes = []
    begin = time.monotonic()
    with httpx.Client(trust_env=False, timeout=30, headers=live.head()) as client:
        for number in range(150):
            schema = {"type": "object", "properties": {f"p{number}": {"type": "integer"}}}
            body = {"model": "tiny", "messages": HI, "max_tokens": 1, "guided_json": schema}
            assert client.post(live.url + CHAT, json=body).status_code == 200
            sizes.append(live.rss())
    assert time.monotonic() - begin < 60
    assert sizes[-1] < 1.05 * sizes[90]


# Adapters


def shelve(live: Process, source: Path, name: str) -> Path:
    shutil.rmtree(live.shelf / name, ignore_errors=True)
    return Path(shutil.copytree(source, live.shelf / name))


def spoil(directory: Path, how: str) -> None:
    """Changes the skin and lists the change, so that only what is inside is wrong."""
    weights, settings = directory / "adapter_model.safetensors", directory / "adapter_config.json"
    card = json.loads((directory / "skin.json").read_text())
    if how in {"nan", "shape"}:
        tensors = load_file(weights)
        first = next(iter(tensors))
        tensors[first] = tensors[first] * torch.nan if how == "nan" else tensors[first][:, :5].contiguous()
        save_file(tensors, weights)
    elif how == "rank":
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"r": 3}))
    elif how == "modules":
        card["lora"]["targets"] = ["k", "down"]
    elif how == "base":
        card["bases"]["main"]["weights_id"] = "0" * 64
    elif how == "pickle":
        (directory / "adapter_model.bin").write_bytes(b"\x80\x04.")
    for path in (weights, settings):
        card["files"][path.name] = sha256_file(path)
    (directory / "skin.json").write_text(json.dumps(card))


@pytest.mark.parametrize("how", ["..", "absolute", "symlink", "pickle", "nan", "shape", "rank", "modules", "base"])
def test_bad_adapters(live, files, how):
    before = live.request("GET", "/admin/skins", "admin").json()["data"]
    source = "bad"
    if how == "..":
        source = "../keys.yaml"
    elif how == "absolute":
        source = str(files.skins[TUNED])
    elif how == "symlink":
        (live.shelf / (source := "link")).symlink_to(files.skins[TUNED])
    else:
        spoil(shelve(live, files.skins[TUNED], "bad"), how)
    reply = live.request("POST", "/admin/skins", "admin", json={"source": source, "name": "bad"})
    refused(reply, 400, param="source")
    after = live.request("GET", "/admin/skins", "admin").json()["data"]
    assert [skin["name"] for skin in after] == [skin["name"] for skin in before]
    refused(live.chat(model="bad"), 404, "model_not_found")


def test_one_name_loaded_replaced_and_unloaded_under_traffic(live, files):
    shelve(live, files.skins[TUNED], "first")
    second_dir = shelve(live, files.skins[TUNED], "second")
    tensors = load_file(second_dir / "adapter_model.safetensors")
    save_file({name: -3 * value for name, value in tensors.items()}, second_dir / "adapter_model.safetensors")
    spoil(second_dir, "nothing")

    def load_skin(source: str, name: str = "swapped") -> httpx.Response:
        body = {"source": source, "name": name, "replace": True}
        return live.request("POST", "/admin/skins", "admin", json=body)

    def probability(name: str = "swapped") -> tuple[int, Any]:
        reply = live.chat(model=name, messages=PROMPT)
        return reply.status_code, reply.json()["choices"][0]["bedplate"] if reply.status_code == 200 else None

    expected = {}
    for source in ("first", "second"):
        assert load_skin(source).status_code in {200, 201}
        expected[source] = probability()
    assert expected["first"] != expected["second"]
    answers = []
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        for number in range(10):
            futures = [pool.submit(probability) for _ in range(3)]
            source = ("first", "second")[number % 2]
            assert load_skin(source).status_code in {200, 201}
            assert close(probability()[1], expected[source][1]), number  # no stale cache
            answers += [future.result() for future in futures]
            if number % 5 == 4:
                assert live.request("DELETE", "/admin/skins/swapped", "admin").status_code == 200
                assert probability()[0] == 404
                assert load_skin(source).status_code == 201
    for status, details in answers:
        assert status == 200
        assert any(close(details, answer[1]) for answer in expected.values())
    assert live.request("DELETE", "/admin/skins/swapped", "admin").status_code == 200


def close(a: Any, b: Any) -> bool:
    """Equal, but for the last bits of numbers: sums in batches of different sizes."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    return a == (pytest.approx(b, rel=1e-3, abs=1e-5) if isinstance(b, float) else b)


# Queues, deadlines, clients


def open_stream(live: Process, key: str = "one", **fields: Any) -> socket.socket:
    host, port = live.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    content = json.dumps({"model": "tiny", "messages": HI, "stream": True, **LONG, **fields}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n{head_of(live, key)}\r\n"
    connection.sendall(head.encode() + content)
    return connection


def head_of(live: Process, key: str) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in live.head(key).items())


def test_a_full_queue(live):
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: live.chat(**LONG | {"max_tokens": 200}), range(12)))
    full = [reply for reply in replies if reply.status_code != 200]
    assert 0 < len(full) < 12
    for reply in full:
        refused(reply, 429)
        assert int(reply.headers["retry-after"]) >= 1


def test_a_rate_limit(live):
    replies = [live.chat("slow") for _ in range(3)]
    assert [reply.status_code for reply in replies[:2]] == [200, 200]
    refused(replies[2], 429, "rate_limit_exceeded")
    assert 1 <= int(replies[2].headers["retry-after"]) <= 60


def test_deadlines(live):
    headers = {"x-request-timeout-seconds": "0.05"}
    body = {"model": "tiny", "messages": HI, **LONG}
    refused(live.request("POST", CHAT, json=body, headers=headers), 504, "deadline_exceeded")
    streamed = live.request("POST", CHAT, json={**body, "stream": True}, headers=headers)
    if streamed.status_code == 200:  # it had begun: the error is an event
        assert "deadline_exceeded" in streamed.text
        assert "[DONE]" not in streamed.text.split("deadline_exceeded")[0]
    else:
        refused(streamed, 504, "deadline_exceeded")
    refused(live.request("POST", CHAT, json=body, headers={"x-request-timeout-seconds": "nan"}), 400)


def test_clients_that_leave(live):
    before = live.gauge("num_requests_running")
    for number in range(12):
        with open_stream(live) as connection:
            if number % 2:
                connection.recv(1000)
    assert before == 0
    assert live.idle(3.0)


def test_tenants_share_no_cached_tokens(live):
    def cached(key: str) -> int:
        return live.chat(key, messages=PROMPT).json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    live.chat("one", messages=PROMPT)
    assert cached("one") > 16
    assert cached("two") == 0
    assert cached("two") > 16


def test_sigterm_drains_and_ends(files, tmp_path):
    with serving(files.base, [], tmp_path, grace_seconds=20) as server, open_stream(server) as connection:
        received = connection.recv(1000)
        server.process.send_signal(signal.SIGTERM)
        statuses = []
        while server.process.poll() is None:
            try:
                statuses.append(server.request("GET", "/ready", None).status_code)
                statuses.append(server.chat().status_code)
            except httpx.TransportError:
                break
        assert b"[DONE]" in received + everything(connection)
        assert server.process.wait(10) == 0
        assert set(statuses) <= {503}
        assert statuses
