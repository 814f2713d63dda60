"""What clients send besides what they ask: accepted where it changes nothing or can be honoured, and then it is."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest
from tests.serving.conftest import Server, running

from bedplate.serving.api.replies import FULL_LENGTH
from bedplate.serving.server.loading import loaded_server, server_config
from bedplate.serving.settings.config import ResponsesConfig
from bedplate.serving.wire.schema_dialects import as_held
from bedplate.text.calls.reply_form import effort_variables
from bedplate.text.chat_template import ChatTemplate

from .conftest import HI, NOW, TOOL, WEATHER, called, content_of


def tokens(server: Server, messages: list[Any], **fields: Any) -> list[int]:
    """The prompt of a conversation."""
    reply = server.post("/tokenize", json={"model": "tiny", "messages": messages, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()["tokens"]


# --- chats

SAME: dict[str, tuple[list[Any], list[Any]]] = {
    "marks of what to cache": (
        [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}],
        HI,
    ),
    "a reply that said nothing": (
        [*HI, {"role": "assistant", "content": None, "tool_calls": []}, *HI],
        [*HI, {"role": "assistant", "content": ""}, *HI],
    ),
    "a call put together from a stream": (
        [
            *HI,
            {"role": "assistant", "content": None, "tool_calls": [called("1", "now", "", index=0)]},
            {"role": "tool", "tool_call_id": "1", "content": None},
        ],
        [
            *HI,
            {"role": "assistant", "content": "", "tool_calls": [called("1", "now", "{}")]},
            {"role": "tool", "tool_call_id": "1", "content": ""},
        ],
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_it_is_the_same_conversation(wide: Server, name: str) -> None:
    sent, meant = SAME[name]
    assert tokens(wide, sent, tools=[TOOL, NOW]) == tokens(wide, meant, tools=[TOOL, NOW])


WISHES: list[dict[str, Any]] = [
    {"store": True},
    {"verbosity": "low"},
    {"service_tier": "priority"},
    {"reasoning_effort": "high"},
    {"top_k": -1},
    {"prompt_cache_key": "a", "safety_identifier": "b", "user": "c", "metadata": {"d": "e"}},
    {"stream_options": {"include_obfuscation": False}, "stream": True},
    {"tools": [{**TOOL, "cache_control": {"type": "ephemeral"}}], "tool_choice": "none"},
]


@pytest.mark.parametrize("fields", WISHES, ids=lambda fields: next(iter(fields)))
def test_wishes_that_nothing_here_depends_on(wide: Server, fields: dict[str, Any]) -> None:
    reply = wide.chat(**fields)
    assert reply.status_code == 200, reply.text
    if "stream" not in fields:
        assert content_of(wide, **fields) == content_of(wide)


def test_as_many_answers_as_the_queue_holds(wide: Server) -> None:
    reply = wide.chat(n=128, max_tokens=1, temperature=1, seed=1)
    assert [one["index"] for one in reply.json()["choices"]] == list(range(128))
    refused = wide.post("/v1/completions", json={"model": "tiny", "prompt": ["a"] * 1000, "n": 100, "max_tokens": 1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")


def test_events_are_padded_where_that_is_asked_for(wide: Server) -> None:
    asked = {"stream": True, "stream_options": {"include_obfuscation": True}, "max_tokens": 8, "temperature": 0}
    lines = wide.chat(**asked).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert len({len(line.encode()) for line in lines if line.startswith("data: {")}) == 1
    assert all(len(chunk["obfuscation"]) < FULL_LENGTH for chunk in chunks)
    assert (
        "".join(one["choices"][0]["delta"].get("content", "") for one in chunks)
        == content_of(wide, max_tokens=8)["content"]
    )
    body = {"model": "tiny", "input": "hi", "temperature": 0, "max_output_tokens": 4, **asked}
    del body["max_tokens"]
    events = [
        json.loads(line[6:]) for line in wide.post("/v1/responses", json=body).text.split("\n") if line[:6] == "data: "
    ]
    assert all(("obfuscation" in event) is event["type"].endswith(".delta") for event in events)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("form", ["json_schema", "json_object"])
def test_an_answer_beside_tools_follows_its_schema(wide: Server, form: str, seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    named = {"type": form, "json_schema": {"name": "answer", "schema": schema}}
    asked = {"response_format": named if form == "json_schema" else {"type": form}, "seed": seed, "temperature": 1}
    message = content_of(wide, tools=[TOOL], parallel_tool_calls=False, **asked, max_tokens=120)
    if "tool_calls" in message:
        jsonschema.validate(json.loads(message["tool_calls"][0]["function"]["arguments"]), WEATHER)
    elif form == "json_schema":
        jsonschema.validate(json.loads(message["content"]), schema)
    else:
        assert message["content"].startswith("{")
    calls = content_of(wide, tools=[TOOL], tool_choice="required", **asked, max_tokens=80)["tool_calls"]
    assert {call["function"]["name"] for call in calls} == {"weather"}


def test_some_of_the_tools_are_allowed(wide: Server) -> None:
    some = {"mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]}
    asked = {"tools": [TOOL, NOW], "parallel_tool_calls": False, "max_tokens": 100}
    for seed in range(2):
        choice = {"type": "allowed_tools", "allowed_tools": some}
        [call] = content_of(wide, **asked, tool_choice=choice, seed=seed, temperature=1)["tool_calls"]
        assert call["function"]["name"] == "now"
    given = [{"type": "function", **tool["function"]} for tool in (TOOL, NOW)]
    with wide.client as client:
        reply = client.responses.create(
            model="tiny",
            input="hi",
            tools=given,  # type: ignore[arg-type]
            tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]},
            parallel_tool_calls=False,
        )
    assert [item.name for item in reply.output if item.type == "function_call"] == ["now"]


# --- schemas

DIALECTS: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "nullable": ({"type": "string", "nullable": True}, ["a", None], [1]),
    "$id": (
        {"$id": "http://x/a.json", "$ref": "http://x/a.json#/$defs/b", "$defs": {"b": {"type": "boolean"}}},
        [True],
        ["a"],
    ),
    "uniqueItems": (
        {"type": "array", "items": {"enum": ["a", "b", 1]}, "uniqueItems": True, "minItems": 1, "maxItems": 2},
        [["a"], ["b", "a"], [1, "a"]],
        [[], ["a", "a"], ["a", "b", 1]],
    ),
    "uniqueItems of nothing": ({"type": "array", "items": {"type": "integer"}, "uniqueItems": False}, [[1, 1]], ["a"]),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_words_of_other_dialects_mean_what_they_say(wide: Server, name: str) -> None:
    schema, good, bad = DIALECTS[name]
    held = jsonschema.Draft202012Validator(as_held(schema))
    assert [held.is_valid(value) for value in (*good, *bad)] == [True] * len(good) + [False] * len(bad)
    for seed in range(2):
        reply = wide.chat(guided_json=schema, seed=seed, temperature=1, max_tokens=60)
        assert reply.status_code == 200, reply.text
        [choice] = reply.json()["choices"]
        if choice["finish_reason"] != "length":  # long under noise, and cut
            assert held.is_valid(json.loads(choice["message"]["content"]))


def test_different_items_are_a_wish_where_a_schema_is_not_strict(wide: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}},
    }
    for strict, status in ((None, 200), (False, 200), (True, 400)):
        tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": strict}}
        assert wide.chat(tools=[tool]).status_code == status
        named = {"name": "f", "schema": schema, "strict": strict}
        assert wide.chat(response_format={"type": "json_schema", "json_schema": named}).status_code == status


# --- reasoning


def test_an_effort_is_told_to_templates_that_ask() -> None:
    asks = ChatTemplate("{% if enable_thinking is defined and not enable_thinking %}/no_think{% endif %}{{ messages }}")
    assert asks.variables == {"enable_thinking", "messages"}
    assert effort_variables("none", asks.variables) == {"enable_thinking": False}
    assert effort_variables("high", asks.variables) == {"enable_thinking": True}
    channels = ChatTemplate(
        "{% if not reasoning_effort %}{% set reasoning_effort = 'medium' %}{% endif %}{{ reasoning_effort }}"
    )
    assert effort_variables("xhigh", channels.variables) == {"reasoning_effort": "high"}
    assert effort_variables("low", frozenset({"messages"})) == {}


# --- responses


def test_the_oldest_turns_are_left_out_where_that_is_allowed(server: Server) -> None:
    turns: list[Any] = []
    for number in range(12):
        turns += [{"role": "user", "content": f"{number} " + "zq " * 20}, {"role": "assistant", "content": "ok"}]
    items = [{"role": "system", "content": "be nice"}, *turns, *HI]
    asked = {"model": "tiny", "input": items, "max_output_tokens": 4, "temperature": 0}
    refused = server.post("/v1/responses", json=asked)
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    reply = server.post("/v1/responses", json={**asked, "truncation": "auto"}).json()
    left_out = reply["bedplate"]["messages_left_out"]
    assert (reply["truncation"], left_out % 2) == ("auto", 0)
    kept = [items[0], *items[1 + left_out :]]
    assert (
        server.post("/v1/responses", json={**asked, "input": kept}).json()["output"][0]["content"]
        == reply["output"][0]["content"]
    )
    one_more = [items[0], *items[1 + left_out - 2 :]]
    assert server.post("/v1/responses", json={**asked, "input": one_more}).status_code == 400
    assert "bedplate" not in server.post("/v1/responses", json={**asked, "input": "hi", "truncation": "auto"}).json()


def test_what_a_kept_reply_was_asked_with(wide: Server) -> None:
    items: list[Any] = [
        *HI,
        {"type": "function_call", "call_id": "1", "name": "now", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "noon"},
    ]
    with wide.client as client:
        first = client.responses.create(model="tiny", input=items, instructions="be nice", max_output_tokens=4)
        found = client.responses.input_items.list(first.id, order="asc", limit=2)
        assert [item.type for item in found.data] == ["message", "function_call"]
        assert [item.type for item in found] == ["message", "function_call", "function_call_output"]
        second = client.responses.create(model="tiny", input="so?", previous_response_id=first.id, max_output_tokens=4)
        latest = client.responses.input_items.list(second.id).data
        assert (latest[0].content[0].text, latest[1].role, len(latest)) == ("so?", "assistant", 5)
        with pytest.raises(openai.NotFoundError):
            client.responses.input_items.list("resp_nobody")
        with pytest.raises(openai.BadRequestError):
            client.responses.input_items.list(first.id, after="nobody")


def test_a_server_that_keeps_nothing_says_so(wide_dir: Any) -> None:
    config = server_config(wide_dir).model_copy(update={"responses": ResponsesConfig(bytes_per_tenant=0)})
    with loaded_server(config) as state, running(state) as url:
        body = {
            "model": "tiny",
            "input": "hi",
            "store": True,
            "max_output_tokens": 2,
            "reasoning": {"effort": "low", "summary": "auto"},
        }
        reply = Server(url, state, {}).post("/v1/responses", json=body).json()
    assert (reply["store"], reply["reasoning"]) == (False, {"effort": "low", "summary": None})


# --- messages


@pytest.mark.parametrize("begun", ["the", "<|im_end|>", "ü {"])
def test_an_answer_goes_on_with_what_it_was_begun_with(wide: Server, wide_messages: Any, begun: str) -> None:
    asked = [
        *HI,
        {"role": "assistant", "content": [{"type": "text", "text": begun, "cache_control": {"type": "ephemeral"}}]},
    ]
    reply = wide_messages.create(model="tiny", max_tokens=8, messages=asked, extra_body={"temperature": 0})
    prompt = [*tokens(wide, HI), *wide.tokenizer.encode(begun, parse_special=False)]
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0}
    expected = wide.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert "".join(block.text for block in reply.content) == expected
    assert wide_messages.count_tokens(model="tiny", messages=asked).input_tokens == len(prompt)
    body = {"messages": [*HI, {"role": "assistant", "content": begun}], "continue_final_message": True}
    assert content_of(wide, **body, max_tokens=8)["content"] == expected


def test_thinking_is_a_wish(wide_messages: Any) -> None:
    for thinking in ({"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}, {"type": "disabled"}):
        assert wide_messages.create(model="tiny", max_tokens=2, messages=HI, thinking=thinking).usage.output_tokens
