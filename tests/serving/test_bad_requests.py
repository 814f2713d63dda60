"""Requests that must be refused: always the error object, the right status, and a server that goes on."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
DUPLICATE_CALLS = {"role": "assistant", "content": "", "tool_calls": [_CALL, _CALL]}
HUGE = 2**63


def check(response: httpx.Response, status: int, param: str | None = None, code: str | None = None) -> str:
    """The message, after checking the shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert "Traceback" not in response.text
    assert ".py" not in response.text
    assert "/tmp/" not in response.text
    assert error["type"] == {429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    if param is not None:
        assert error["param"] == param
    if code is not None:
        assert error["code"] == code
    return error["message"]


@pytest.fixture(autouse=True)
def good_request_works_afterwards(server):
    yield
    assert server.chat().status_code == 200
    assert server.idle()


BODIES = {
    "empty": b"",
    "not JSON": b"{'model': 1}",
    "cut off": b'{"model": "tiny", "messages": [',
    "NaN": b'{"model": "tiny", "temperature": NaN}',
    "Infinity": b'{"model": "tiny", "temperature": -Infinity}',
    "a float over the range": b'{"model": "tiny", "temperature": 1e999}',
    "an endless integer": b'{"seed": ' + b"9" * 10_000 + b"}",
    "no object": b"[1]",
    "null": b"null",
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a field twice": b'{"model": "tiny", "model": "tiny"}',
    "lists 100,000 deep": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "lists 100,000 deep, open": b"[" * 100_000,
    "objects 100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "lists 100 deep": b'{"metadata": ' + b"[" * 100 + b"]" * 100 + b"}",
}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("name", BODIES)
def test_bodies(server, path, name):
    check(server.post(path, content=BODIES[name]), 400, code="invalid_json")


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"model": 1}, "model"),
    ({"model": None}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": {}}, "messages"),
    ({"messages": [1] * 100_000}, "messages[0]"),
    ({"messages": [{}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}]},
        "messages[0].content",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        "messages[0].content",
    ),
    ({"messages": [*HI, {"role": "wizard", "content": "x"}]}, "messages[1].role"),
    ({"messages": [*HI, {"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[1].tool_call_id"),
    (
        {"messages": [*HI, DUPLICATE_CALLS, {"role": "tool", "content": "x", "tool_call_id": "1"}]},
        "messages[1].tool_calls",
    ),
    ({"messages": [{**HI[0], "role": 1}]}, "messages[0].role"),
    ({"messages": [{**HI[0], "mood": "good"}]}, "messages[0].mood"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": 10**300}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": HUGE}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": HUGE}, "n"),
    ({"n": 1.5}, "n"),
    ({"seed": HUGE}, "seed"),
    ({"seed": -HUGE - 1}, "seed"),
    ({"seed": "1"}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"stop": [1]}, "stop"),
    ({"stop": {}}, "stop"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": HUGE}, "max_tokens"),
    ({"max_tokens": 2.0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": HUGE}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"what": True}}, "stream_options.what"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"logit_bias": {"x": 5}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"1": True}}, "logit_bias"),
    ({"logit_bias": {"99999": 5}}, "logit_bias"),
    ({"logit_bias": {str(HUGE): 5}}, "logit_bias"),
    ({"stop_token_ids": [99999]}, "stop_token_ids"),
    ({"stop_token_ids": ["1"]}, "stop_token_ids"),
    ({"min_tokens": 3, "max_tokens": 2}, "min_tokens"),
    ({"min_tokens": HUGE}, "min_tokens"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"audio": {}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"store": 1}, "store"),
    ({"service_tier": "turbo"}, "service_tier"),
    ({"reasoning_effort": "much"}, "reasoning_effort"),
    ({"verbosity": "endless"}, "verbosity"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"temprature": 1}, "temprature"),
]


@pytest.mark.parametrize(("fields", "param"), FIELDS, ids=[f"{i}-{param}" for i, (_, param) in enumerate(FIELDS)])
def test_fields_of_chats(server, fields, param):
    check(server.chat(**fields), 400, param)


PROMPTS: list[Any] = [
    None,
    [],
    1,
    {},
    [[]],
    [1, "a"],
    ["a", [1]],
    [1.5],
    [True],
    [-1],
    [HUGE],
    [[1], [HUGE]],
    ["a"] * 1025,
    [None],
    "",
    [100_000],
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: repr(prompt)[:20])
def test_prompts(server, prompt):
    response = server.post(COMPLETIONS, json={"model": "tiny", "prompt": prompt, "max_tokens": 2})
    check(response, 400, "prompt")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"echo": True, "stream": True, "logprobs": 1}, "logprobs"),
        ({"messages": HI}, "messages"),
        ({"model": "prompted", "echo": True}, "echo"),
        ({"model": "prompted", "prompt": [1, 2]}, "prompt"),
        ({"model": "prompted", "n": 2}, "n"),
        ({"model": "writer", "logprobs": 1}, "logprobs"),
    ],
)
def test_fields_of_completions(server, fields, param):
    check(server.post(COMPLETIONS, json={"model": "tiny", "prompt": "a"} | fields), 400, param)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["nobody", "tiny\ue000", "", "TINY", "x" * 10_000])
def test_unknown_models(server, model, stream):
    content = json.dumps({"model": model, "messages": HI, "stream": stream})
    message = check(server.post(CHAT, content=content), 404, "model", "model_not_found")
    assert "prompted" in message
    assert len(message) < 1000


@pytest.mark.parametrize("stream", [False, True])
def test_context_length(server, stream):
    code = "context_length_exceeded"
    check(server.chat(max_tokens=512, stream=stream), 400, "max_tokens", code)
    long = [{"role": "user", "content": "zq " * 600}]
    check(server.chat(messages=long, max_tokens=1, stream=stream), 400, code=code)
    check(server.chat(max_tokens=None, max_completion_tokens=512, stream=stream), 400, "max_completion_tokens", code)
    check(server.chat(messages=long, max_tokens=None, stream=stream), 400, "max_tokens", code)
    for model in ("prompted", "probed", "writer"):
        check(server.chat(model=model, messages=long, stream=stream), 400, "messages", code)
    check(server.post(COMPLETIONS, json={"model": "tiny", "prompt": [5] * 600, "stream": stream}), 400, code=code)


def test_lone_surrogates_are_refused(server):
    for model in ("tiny", "prompted"):
        content = json.dumps({"model": model, "messages": [{"role": "user", "content": "a\ud800"}]})
        assert "surrogate" in check(server.post(CHAT, content=content), 400)
    check(server.post(CHAT, content=json.dumps({"model": "tiny\ud800", "messages": HI})), 400, code="invalid_json")


def test_skins_without_a_user_message(server):
    check(server.chat(model="prompted", messages=[{"role": "system", "content": "x"}]), 400, "messages")


def test_bodies_over_the_limit(server):
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "a" * 2**21}]}).encode()
    check(server.post(CHAT, content=body), 413, code="request_too_large")

    def parts():  # without a content-length
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    check(server.post(CHAT, content=parts()), 413, code="request_too_large")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/docs", 404),
        ("POST", "/v1/images/generations", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models/tiny", 405),
        ("GET", "/v1/models/nobody", 404),
        ("GET", "/v1/../../etc/passwd", 404),
    ],
)
def test_routes(server, method, path, status):
    with httpx.Client(trust_env=False) as client:
        check(client.request(method, server.url + path), status)


def test_templates_may_refuse_conversations(server, monkeypatch):
    from bedplate.text.chat_template import ChatTemplate

    tokenizer = server.tokenizer
    refusing = ChatTemplate(
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    monkeypatch.setattr(tokenizer, "chat", refusing)
    assert "roles must alternate" in check(server.chat(messages=HI * 2), 400)
    monkeypatch.setattr(tokenizer, "chat", None)
    assert "no chat template" in check(server.chat(), 400, "messages")


NAMES = st.sampled_from(
    [
        "model",
        "messages",
        "prompt",
        "n",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "tools",
        "temperature",
        "top_p",
        "top_k",
        "echo",
        "metadata",
        "user",
        "response_format",
        "logit_bias",
        "store",
        "x",
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from((0, 1, 2, -1, HUGE, -HUGE, 10**400, 0.5, "tiny", "prompted", "writer", "pair", "user", "text"))
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None), max_size=8)
)
KEYS = st.sampled_from(("role", "content", "type", "text", "name", "include_usage")) | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from((CHAT, COMPLETIONS)), st.booleans(), st.dictionaries(NAMES, VALUES, max_size=4), st.data())
def test_no_body_breaks_the_server(server, fuzz_client, path, valid, fields, data):
    base = {"model": "tiny", "messages" if path == CHAT else "prompt": HI if path == CHAT else "hi", "max_tokens": 2}
    content = json.dumps((base if valid else {}) | fields).encode()
    if data.draw(st.integers(0, 4)) == 0:  # and now and then a byte that does not belong
        place = data.draw(st.integers(0, len(content) - 1))
        content = content[:place] + data.draw(st.binary(max_size=2)) + content[place + 1 :]
    response = fuzz_client.post(server.url + path, content=content)
    if response.status_code != 200:
        assert response.status_code in {400, 404}
        check(response, response.status_code)


@pytest.fixture
def fuzz_client():
    with httpx.Client(trust_env=False, timeout=30) as client:
        yield client
