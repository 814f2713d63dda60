"""What an error says of a request is short, whatever the request holds, and names the field that was sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.attacks.conftest import head
from tests.attacks.test_poison import CHAT, HI

from bedplate.core.errors import RequestError
from bedplate.serving.schemas.http_errors import MESSAGE_CHARACTERS, PARAM_CHARACTERS, error_object, shortened
from bedplate.serving.schemas.openai_fields import MAX_MESSAGES

LONG = "long" * 5000
SENT: dict[str, dict[str, Any]] = {
    "an unknown field": {LONG: 1},
    "a role": {"messages": [{"role": LONG, "content": "x"}]},
    "a field of a message": {"messages": [{"role": "user", "content": "x", LONG: 1}]},
    "a model": {"model": LONG},
    "a tool": {"tools": [{"type": "function", "function": {"name": LONG}}]},
    "a choice of tool": {"tool_choice": LONG},
    "a kind of format": {"response_format": {"type": LONG}},
    "a keyword of a schema": {"guided_json": {LONG: 1}},
    "a property's schema": {"guided_json": {"properties": {LONG: {"type": LONG}}}},
    "a reference": {"guided_json": {"$ref": LONG}},
    "a rule of a grammar": {"guided_grammar": f"start: {LONG}"},
    "a regular expression": {"guided_regex": f"({LONG}"},
    "a biased token": {"logit_bias": {LONG: 1}},
    "a repeated key": {},
}


@pytest.mark.parametrize("name", SENT)
def test_an_error_does_not_repeat_what_was_sent(target, name):
    body = json.dumps({"model": "tiny", "messages": HI, "max_tokens": 3} | SENT[name])
    if name == "a repeated key":
        body = f'{{"{LONG}": 1, "{LONG}": 2}}'
    reply = target.post(CHAT, content=body, headers=head("us"))
    error = reply.json()["error"]
    assert 400 <= reply.status_code < 500
    assert len(error["message"]) <= MESSAGE_CHARACTERS + 3
    assert len(error["param"] or "") <= PARAM_CHARACTERS + 3


@pytest.mark.parametrize(
    ("path", "field", "extra_fields"),
    [(CHAT, "messages", {}), ("/v1/messages", "messages", {"max_tokens": 3}), ("/v1/responses", "input", {})],
)
def test_more_messages_than_any_context_holds_are_refused_unread(target, path, field, extra_fields):
    body = {"model": "tiny", field: [{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1), **extra_fields}
    reply = target.post(path, json=body, headers=head("us"))
    assert reply.status_code == 400
    assert field in reply.json()["error"]["message"]
    assert f"{MAX_MESSAGES:,}" in reply.json()["error"]["message"].replace("10000", "10,000")


def test_the_beginning_and_the_end_of_a_long_message_are_kept():
    error = error_object(RequestError("begins" + LONG + "ends", param="p" + LONG))[1]["error"]
    assert error["message"].startswith("begins")
    assert error["message"].endswith("ends")
    assert shortened("as it is") == "as it is"


@pytest.mark.parametrize(
    ("field", "value"),
    [("guided_regex", "[a-z]+"), ("response_format", {"type": "json_object"}), ("structured_outputs", {"regex": "a+"})],
)
def test_a_grammar_that_fails_on_the_way_is_called_as_it_was_sent(target, monkeypatch, field, value):
    from bedplate.inference.engine.grammar import Matcher

    monkeypatch.setattr(Matcher, "failure", property(lambda self: "it takes too long"))
    body = {"model": "tiny", "messages": HI, "max_tokens": 3, field: value}
    reply = target.post(CHAT, json=body, headers=head("us"))
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].split(".")[0] == field
