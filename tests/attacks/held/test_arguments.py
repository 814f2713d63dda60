"""What strangers and models write as a call's arguments is read within bounds, and answered without a fault."""

from __future__ import annotations

import json

import pytest
from tests.attacks.conftest import head
from tests.attacks.test_poison import CHAT

from bedplate.core.errors import RequestError
from bedplate.inference.predict.predictor import Predictor
from bedplate.serving.api.anthropic import _block
from bedplate.serving.api.turns import TurnBlock
from bedplate.serving.schemas.request_fields import MAX_STOP, MAX_STOPS
from bedplate.serving.schemas.strict_json import MAX_DEPTH, dump_json
from bedplate.text.calls.reading import _value
from bedplate.text.calls.tools import with_tools


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def conversation(arguments: str) -> list[dict[str, object]]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]


def test_arguments_are_read_as_deep_as_any_json_of_a_request():
    assert nested(MAX_DEPTH) in str(with_tools(conversation(nested(MAX_DEPTH)), ()))
    for arguments in (nested(MAX_DEPTH + 2), nested(960), nested(100_000), "1e999", "NaN", "{", "9" * 5000):
        with pytest.raises(RequestError, match="not JSON that can be read"):
            with_tools(conversation(arguments), ())


def test_no_depth_of_arguments_is_a_fault(target):
    for depth in (MAX_DEPTH, MAX_DEPTH + 2, *range(900, 1000, 12), 20_000):
        body = {"model": "tiny", "messages": conversation(nested(depth)), "max_tokens": 1}
        reply = target.post(CHAT, json=body, headers=head("them"))
        assert reply.status_code == (200 if depth <= MAX_DEPTH else 400), reply.text


@pytest.mark.parametrize(
    ("written", "parsed"),
    [
        ('{"a": 9e9999, "b": -1e400, "c": 1.5}', {"a": "9e9999", "b": "-1e400", "c": 1.5}),
        ('{"a": NaN, "b": [Infinity]}', {"a": "NaN", "b": ["Infinity"]}),
        ('{"a": ' + nested(30_000) + "}", {}),
        ('{"a": ' + nested(980) + "}", {}),
        ('{"a": 1, "a": 2}', {"a": 2}),
        ('{"a": "cut o', {}),
    ],
)
def test_what_a_model_writes_as_arguments_can_be_sent(written, parsed):
    block = _block(TurnBlock("call", 0, "1", "f", written))
    assert block["input"] == parsed
    assert json.loads(dump_json(block)) == block


def test_a_tagged_value_that_is_no_json_is_text():
    assert _value("1e999", {"type": "number"}) == '"1e999"'
    assert _value(nested(990), {"type": "array"}) == json.dumps(nested(990))
    assert _value("[1.5]", {"type": "array"}) == "[1.5]"


def test_an_answer_that_is_none_of_the_skins_is_no_fault(target, monkeypatch, caplog):
    """As a number that no float holds, which an input may ask for."""

    def unreadable(*_: object) -> None:
        raise RequestError("the output is not JSON")

    monkeypatch.setattr(Predictor, "read", unreadable)
    body = {"model": "writer", "messages": [{"role": "user", "content": "write 1e999"}], "max_tokens": 2}
    reply = target.post(CHAT, json=body, headers=head("us"))
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "unreadable_answer")
    streamed = target.post(CHAT, json={**body, "stream": True}, headers=head("us"))
    assert '"unreadable_answer"' in streamed.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_what_an_answer_may_end_with_is_short(target, path):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "max_tokens": 1}
    body.pop("prompt" if path == CHAT else "messages")
    whole = ["a" * MAX_STOP] * MAX_STOPS
    assert target.post(path, json={**body, "stop": whole}, headers=head("us")).status_code == 200
    refused = target.post(path, json={**body, "stop": [*whole[1:], "a" * (MAX_STOP + 1)]}, headers=head("us"))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "stop"
