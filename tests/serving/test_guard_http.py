"""Keys, limits and quotas over HTTP, and what web pages may do."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from bedplate.serving.callers import api_keys
from bedplate.serving.server.app import loaded_server
from bedplate.serving.settings.server_config import BaseConfig, PriceConfig, ServerConfig, SkinConfig

from .conftest import Files, Server, running
from .test_bad_requests import HI, check
from .test_guard import make_key, write
from .test_lifecycle import ENDLESS, send, slow_steps, wait_until

__all__ = ["slow_steps"]


@contextlib.contextmanager
def guarded(files: Files, tmp_path: Path, *keys: Any, **settings: Any):
    """A server with these keys."""
    path = write(tmp_path / "keys.yaml", *keys)
    config = ServerConfig(
        bases=(BaseConfig(source=str(files.base)),),
        skins=(SkinConfig(source=files.skins[0]), SkinConfig(source=files.skins[3])),
        keys=path,
        state=tmp_path / "state",
        **settings,
    )
    with loaded_server(config) as state, running(state) as url:
        yield Server(url, state, {})


def post_chat(server: Server, secret: str | None, **fields: Any) -> httpx.Response:
    headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
    body = {"model": "tiny", "messages": HI, "max_tokens": 2} | fields
    return server.post("/v1/chat/completions", json=body, headers=headers)


def get(server: Server, path: str, secret: str | None = None, **headers: str) -> httpx.Response:
    if secret is not None:
        headers["x-api-key"] = secret
    with httpx.Client(trust_env=False) as client:
        return client.get(server.url + path, headers=headers)


def refused(response: httpx.Response, status: int, code: str) -> str:
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), response.text
    assert error.keys() == {"message", "type", "param", "code"}
    return error["message"]


def test_callers_take_turns_by_tenant_and_those_without_a_right_key_by_address(files, tmp_path, monkeypatch):
    """Whoever made up a new key for each request had a turn for each, and the keys of one tenant one each."""
    keys = [make_key(tenant="ours"), make_key(tenant="ours")]
    with guarded(files, tmp_path, *(key for key, _ in keys)) as server:
        callers: list[str] = []
        enter = server.state.door.enter

        async def noted(caller: str) -> None:
            callers.append(caller)
            await enter(caller)

        monkeypatch.setattr(server.state.door, "enter", noted)
        for secret in ("bp_wrong", "bp_other", *(secret for _, secret in keys)):
            get(server, "/v1/models", secret)
            get(server, "/v1/models", authorization=f"Bearer {secret}")
        assert callers == 4 * ["127.0.0.1"] + 4 * ["ours"]


def test_rights(files, tmp_path):
    plain, plain_secret = make_key(models=["prompted", "not there yet"])
    admin, admin_secret = make_key(admin=True)
    with guarded(files, tmp_path, plain, admin) as server:
        for path in ("/v1/models", "/v1/models/tiny"):
            response = get(server, path)
            refused(response, 401, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
        refused(post_chat(server, None), 401, "invalid_api_key")
        refused(post_chat(server, "bp_wrong"), 401, "invalid_api_key")
        assert post_chat(server, None, model="tiny").json()["error"]["type"] == "authentication_error"

        # A model without rights looks like one that is not there: in the list, by name, and when it is asked.
        assert [model["id"] for model in get(server, "/v1/models", plain_secret).json()["data"]] == ["prompted"]
        hidden, absent = (get(server, f"/v1/models/{name}", plain_secret) for name in ("writer", "absent"))
        assert hidden.text.replace("writer", "absent") == absent.text
        check(hidden, 404, "model", "model_not_found")
        hidden, absent = (post_chat(server, plain_secret, model=name) for name in ("tiny", "absent"))
        assert hidden.text.replace("tiny", "absent") == absent.text
        check(hidden, 404, "model", "model_not_found")
        assert post_chat(server, plain_secret, model="prompted").status_code == 200
        assert post_chat(server, admin_secret).status_code == 200

        # Health is everybody's, the metrics are the administrator's.
        assert get(server, "/health").status_code == get(server, "/ready").status_code == 200
        refused(get(server, "/metrics"), 401, "invalid_api_key")
        refused(get(server, "/metrics", plain_secret), 403, "admin_required")
        assert get(server, "/metrics", admin_secret).status_code == 200
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="bp_wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        assert server.idle()


def test_keys_change_while_the_server_runs(files, tmp_path):
    key, secret = make_key()
    late, late_secret = make_key()
    with guarded(files, tmp_path, key) as server:
        refused(post_chat(server, late_secret), 401, "invalid_api_key")
        write(tmp_path / "keys.yaml", late)
        assert post_chat(server, late_secret).status_code == 200
        refused(post_chat(server, secret), 401, "invalid_api_key")


def test_a_large_keys_file_is_read_beside_the_loop(files, tmp_path, monkeypatch):
    """The request that finds it changed waits for it; the server answers meanwhile."""
    (key, _), (late, late_secret) = make_key(), make_key()
    read_keys, reading, answered, waited = api_keys.read_keys, threading.Event(), threading.Event(), list[bool]()

    def slowly(path: Path) -> Any:
        reading.set()
        waited.append(answered.wait(3))
        return read_keys(path)

    with guarded(files, tmp_path, key) as server:
        write(tmp_path / "keys.yaml", late)
        monkeypatch.setattr(api_keys, "read_keys", slowly)
        statuses: list[int] = []
        threads = [threading.Thread(target=lambda: statuses.append(post_chat(server, late_secret).status_code))]
        threads.append(threading.Thread(target=lambda: statuses.append(post_chat(server, late_secret).status_code)))
        for thread in threads:
            thread.start()
        assert reading.wait(5)
        assert get(server, "/health").status_code == 200
        answered.set()
        for thread in threads:
            thread.join()
    assert (statuses, waited) == ([200, 200], [True])


def test_rates_are_said_and_kept(files, tmp_path):
    key, secret = make_key(limits={"requests_per_minute": 3, "tokens_per_minute": 10_000})
    with guarded(files, tmp_path, key) as server:
        before = post_chat(server, secret)
        used = before.json()["usage"]["total_tokens"]
        assert before.headers["x-ratelimit-limit-requests"] == "3"
        assert before.headers["x-ratelimit-remaining-requests"] == "2"
        assert before.headers["x-ratelimit-reset-requests"].endswith("s")
        assert before.headers["x-ratelimit-remaining-tokens"] == str(10_000 - used)
        check(post_chat(server, secret, temperature=9), 400, "temperature")  # a bad request is a request
        streamed = post_chat(server, secret, stream=True, n=2)
        assert streamed.headers["x-ratelimit-remaining-requests"] == "0"
        response = post_chat(server, secret)
        refused(response, 429, "rate_limit_exceeded")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert response.headers["x-request-id"]


def test_refused_requests_spend_no_tokens_and_say_what_is_left(files, tmp_path):
    key, secret = make_key(limits={"requests_per_minute": 9, "tokens_per_minute": 1000}, quota={"tokens_per_day": 1000})
    with guarded(files, tmp_path, key) as server:
        first = post_chat(server, secret)
        used = first.json()["usage"]["total_tokens"]
        long = [{"role": "user", "content": "zq " * 900}]
        bad = ({"model": "absent"}, {"temperature": 9}, {"messages": []}, {"messages": long}, {"max_tokens": 10**6})
        for number, fields in enumerate(bad, start=2):
            response = post_chat(server, secret, **fields)
            assert response.status_code in {400, 404, 429}, response.text
            assert response.headers["x-ratelimit-remaining-tokens"] == str(1000 - used)
            assert response.headers["x-ratelimit-remaining-requests"] == str(9 - number)
        assert server.state.guard.ledger.spent(key.id)[0].tokens == used


def test_a_call_that_is_not_let_in_says_what_is_left(files, tmp_path):
    key, secret = make_key(limits={"requests_per_minute": 1})
    with guarded(files, tmp_path, key) as server:
        assert post_chat(server, secret).status_code == 200
        response = post_chat(server, secret)
        refused(response, 429, "rate_limit_exceeded")
        assert response.headers["x-ratelimit-limit-requests"] == "1"
        assert response.headers["x-ratelimit-remaining-requests"] == "0"


def test_tokens_a_minute(files, tmp_path):
    key, secret = make_key(limits={"tokens_per_minute": 120})
    with guarded(files, tmp_path, key) as server:
        long = [{"role": "user", "content": "zq " * 100}]
        assert "shorter" in refused(post_chat(server, secret, messages=long), 429, "rate_limit_exceeded")
        assert post_chat(server, secret, max_tokens=60, n=3, temperature=1.9, seed=1).status_code == 200
        response = post_chat(server, secret)
        refused(response, 429, "rate_limit_exceeded")
        assert int(response.headers["retry-after"]) >= 1
        assert server.idle()


def test_the_choices_of_one_prompt_count_it_once(files, tmp_path):
    key, secret = make_key(limits={"tokens_per_minute": 10_000})
    with guarded(files, tmp_path, key) as server:
        response = post_chat(server, secret, n=4, temperature=1.0)
        usage = response.json()["usage"]
        assert response.headers["x-ratelimit-remaining-tokens"] == str(10_000 - usage["total_tokens"])
        assert server.state.guard.ledger.spent(key.id)[0].tokens == usage["total_tokens"]


def test_calls_at_once_and_what_a_client_that_leaves_pays(files, tmp_path, slow_steps):
    key, secret = make_key(limits={"concurrent": 1})
    with guarded(files, tmp_path, key, price=PriceConfig(usd_per_hour=3600, as_of="2026-11-24")) as server:
        head = f"authorization: Bearer {secret}\r\n"
        connection = send(server, {**ENDLESS, "stream": True}, head)
        wait_until(lambda: server.state.registry.engines[0].running == 1)
        refused(post_chat(server, secret), 429, "rate_limit_exceeded")
        time.sleep(0.3)
        connection.close()
        assert server.idle(2.0)
        wait_until(lambda: server.state.guard.ledger.spent(key.id)[0].tokens > 5)
        assert server.state.guard.ledger.spent(key.id)[0].usd > 0.1  # at a dollar a second
        assert post_chat(server, secret).status_code == 200


def test_quotas_hold_across_restarts(files, tmp_path):
    key, secret = make_key(quota={"tokens_per_day": 10})
    dear, dear_secret = make_key(quota={"usd_per_month": 1e-9})
    price = PriceConfig(usd_per_hour=1.0, as_of="2026-11-24")
    with guarded(files, tmp_path, key, dear, price=price) as server:
        for key_secret in (secret, dear_secret):
            assert post_chat(server, key_secret).status_code == 200
            response = post_chat(server, key_secret)
            refused(response, 429, "insufficient_quota")
            assert int(response.headers["retry-after"]) > 0
    with guarded(files, tmp_path, key, dear, price=price) as server:
        for key_secret in (secret, dear_secret):
            refused(post_chat(server, key_secret), 429, "insufficient_quota")


def test_tenants_share_no_cached_tokens(files, tmp_path):
    (first_key, one_secret), (two, two_secret), (also_two, also_secret) = (
        make_key(),
        make_key(tenant="b"),
        make_key(tenant="b"),
    )
    text = [{"role": "user", "content": "this product is great and works well " * 8}]

    def cached(server: Server, secret: str) -> int:
        usage = post_chat(server, secret, messages=text).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    with guarded(files, tmp_path, first_key, two, also_two) as server:
        assert cached(server, one_secret) == 0
        assert cached(server, one_secret) > 16
        assert cached(server, two_secret) == 0
        assert cached(server, also_secret) > 16


def test_heads_over_the_limits(server):
    with httpx.Client(trust_env=False) as client:
        check(client.get(f"{server.url}/v1/models?{'a' * 9000}"), 414, code="url_too_long")
        check(client.get(f"{server.url}/v1/models", headers={"x-a": "a" * 40_000}), 431, code="headers_too_large")
    assert server.chat().status_code == 200


def test_request_ids(server):
    with httpx.Client(trust_env=False) as client:
        response = client.get(f"{server.url}/health", headers={"x-request-id": "a-1_b.c:9"})
        assert response.headers["x-request-id"] == "a-1_b.c:9"
        for wrong in ("a b", "a" * 65, "ä", "", "<script>"):
            generated_id = client.get(f"{server.url}/v1/nothing", headers={"x-request-id": wrong.encode()}).headers[
                "x-request-id"
            ]
            assert generated_id != wrong
            assert generated_id.isalnum()


def test_pages_of_other_origins_are_refused_on_a_server_without_keys(server):
    host = server.url.removeprefix("http://")
    same_origin = {"origin": server.url}
    body = {"model": "tiny", "messages": HI, "max_tokens": 1}
    assert server.post("/v1/chat/completions", json=body, headers=same_origin).status_code == 200
    for origin in ("http://evil.example", "null", "http://localhost:1", f"http://{host}.evil.example"):
        response = server.post("/v1/chat/completions", json=body, headers={"origin": origin})
        refused(response, 403, "cross_origin")
        assert "access-control-allow-origin" not in response.headers
    for name in ("evil.example", "127.0.0.1.evil.example:80"):
        refused(get(server, "/v1/models", host=name), 403, "unknown_host")
    assert get(server, "/v1/models", host="localhost:9").status_code == 200
    assert get(server, "/v1/models", host="[::1]:9").status_code == 200


def test_cors_is_off_until_origins_are_named(files, tmp_path):
    key, secret = make_key()
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with (
        guarded(files, tmp_path, key, cors=("https://app.example",)) as server,
        httpx.Client(trust_env=False) as client,
    ):
        url = f"{server.url}/v1/chat/completions"
        allowed = client.options(url, headers={"origin": "https://app.example", **preflight})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        denied = client.options(url, headers={"origin": "https://evil.example", **preflight})
        assert "access-control-allow-origin" not in denied.headers
        sent = post_chat(server, secret)
        assert "access-control-allow-origin" not in sent.headers
        headers = {"origin": "https://app.example", "authorization": f"Bearer {secret}"}
        sent = client.get(f"{server.url}/v1/models", headers=headers)
        assert sent.headers["access-control-allow-origin"] == "https://app.example"
        assert "x-request-id" in sent.headers["access-control-expose-headers"]


def test_replies_name_their_type(server):
    for path in ("/health", "/", "/v1/models", "/nothing"):
        response = get(server, path)
        assert response.headers["x-content-type-options"] == "nosniff"
        if response.headers["content-type"].startswith("text/html"):
            assert "frame-ancestors" in response.headers["content-security-policy"]
    assert json.loads(get(server, "/health").text) == {"status": "ok"}
