"""The OpenAPI document against the live server, by schemathesis: whatever is sent, no 5xx, and one shape of errors."""

from __future__ import annotations

import threading

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import one_of
from schemathesis import GenerationMode

from bedplate.serving.server.app import loaded_server

from .test_bad_requests import HI

MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
EXAMPLES = 4
SLOW_EXAMPLES = 100
# A generated body rarely names a model that is there; where it does, its answer must stay short.
_SHORT = {"max_tokens": 2, "max_output_tokens": 2, "max_completion_tokens": 2, "n": 1}
# The reply is a page or a file, or one that this API shapes like its own client expects.
_OTHER_SHAPES = ("/v1/messages",)


@pytest.fixture(scope="module")
def schema(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_the_document_is_made_once_and_beside_the_loop(files, monkeypatch):
    from bedplate.serving.server import app

    made, document = list[str](), app.document
    monkeypatch.setattr(
        app, "document", lambda routers: made.append(threading.current_thread().name) or document(routers)
    )
    with loaded_server(files.base) as state, TestClient(app.create_app(state), "http://127.0.0.1") as client:
        first, second = client.get("/openapi.json"), client.get("/openapi.json")
    assert first.json()["paths"]
    assert first.content == second.content
    assert len(made) == 1
    assert made[0].startswith("asyncio_")


def one_case(server, case) -> None:
    if isinstance(case.body, dict):
        case.body |= {name: short for name, short in _SHORT.items() if isinstance(case.body.get(name), int)}
    response = case.call(base_url=server.url, timeout=30)
    excerpt = response.content[:500]
    assert response.status_code < 500, excerpt
    if response.status_code >= 400 and case.method != "HEAD":
        error = response.json()["error"]
        assert isinstance(error["message"], str)
        assert error["message"]
        if not case.path.startswith(_OTHER_SHAPES):
            assert error.keys() == {"message", "type", "param", "code"}, excerpt
    assert b"Traceback" not in response.content


def bounded(examples: int):
    # Only generated examples: shrinking a failure would take the time of the whole run.
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def one_operation(server, operation, examples: int) -> int:
    """How many requests were made: half of them by the document, half against it where there is something to break."""
    request_count = 0
    can_break = operation.method.lower() == "post" and bool(operation.body)
    modes = MODES if can_break else MODES[:1]

    @bounded(examples)
    @given(one_of(*(operation.as_strategy(generation_mode=mode) for mode in modes)))
    def run(case):
        nonlocal request_count
        request_count += 1
        one_case(server, case)

    run()
    return request_count


def every_operation(server, schema, examples: int) -> int:
    return sum(one_operation(server, result.ok(), examples) for result in schema.get_all_operations())


def test_no_request_breaks_the_server(server, schema):
    assert every_operation(server, schema, EXAMPLES) >= 40


@pytest.mark.slow
def test_no_request_breaks_the_server_for_long(server, schema):
    every_operation(server, schema, SLOW_EXAMPLES)


def test_the_document_names_the_routes_and_the_server_still_answers(server, schema):
    paths = set(schema.raw_schema["paths"])
    assert {"/v1/models", "/v1/chat/completions", "/v1/completions", "/health"} <= paths
    assert server.chat(messages=HI).status_code == 200
    assert server.idle()
