"""What clients send besides what they ask: accepted where it changes nothing or can be honoured, and then it is."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest
from tests.serving.conftest import Server, running

from bedplate.serving.api.openai import FULL_LENGTH
from bedplate.serving.schemas.response_formats import as_held
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.serving.settings.server_config import ResponsesConfig
from bedplate.text.calls.reply_form import effort_variables
from bedplate.text.chat_template import ChatTemplate

from .conftest import CLOCK_TOOL, HI, TOOL, WEATHER, called, content_of


def tokens(server: Server, messages: list[Any], **fields: Any) -> list[int]:
    """The prompt of a conversation."""
    reply = server.post("/tokenize", json={"model": "tiny", "messages": messages, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()["tokens"]


# --- chats

EQUIVALENT_TURNS: dict[str, tuple[list[Any], list[Any]]] = {
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


@pytest.mark.parametrize("name", EQUIVALENT_TURNS)
def test_it_is_the_same_conversation(mixed_server: Server, name: str) -> None:
    sent, meant = EQUIVALENT_TURNS[name]
    assert tokens(mixed_server, sent, tools=[TOOL, CLOCK_TOOL]) == tokens(mixed_server, meant, tools=[TOOL, CLOCK_TOOL])


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
def test_wishes_that_nothing_here_depends_on(mixed_server: Server, fields: dict[str, Any]) -> None:
    reply = mixed_server.chat(**fields)
    assert reply.status_code == 200, reply.text
    if "stream" not in fields:
        assert content_of(mixed_server, **fields) == content_of(mixed_server)


def test_as_many_answers_as_the_queue_holds(mixed_server: Server) -> None:
    reply = mixed_server.chat(n=128, max_tokens=1, temperature=1, seed=1)
    assert [choice["index"] for choice in reply.json()["choices"]] == list(range(128))
    refused = mixed_server.post(
        "/v1/completions", json={"model": "tiny", "prompt": ["a"] * 1000, "n": 100, "max_tokens": 1}
    )
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")


def test_events_are_padded_where_that_is_asked_for(mixed_server: Server) -> None:
    options = {"stream": True, "stream_options": {"include_obfuscation": True}, "max_tokens": 8, "temperature": 0}
    lines = mixed_server.chat(**options).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert len({len(line.encode()) for line in lines if line.startswith("data: {")}) == 1
    assert all(len(chunk["obfuscation"]) < FULL_LENGTH for chunk in chunks)
    assert (
        "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        == content_of(mixed_server, max_tokens=8)["content"]
    )
    body = {"model": "tiny", "input": "hi", "temperature": 0, "max_output_tokens": 4, **options}
    del body["max_tokens"]
    events = [
        json.loads(line[6:])
        for line in mixed_server.post("/v1/responses", json=body).text.split("\n")
        if line[:6] == "data: "
    ]
    assert all(("obfuscation" in event) is event["type"].endswith(".delta") for event in events)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("form", ["json_schema", "json_object"])
def test_an_answer_beside_tools_follows_its_schema(mixed_server: Server, form: str, seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    named = {"type": form, "json_schema": {"name": "answer", "schema": schema}}
    options = {"response_format": named if form == "json_schema" else {"type": form}, "seed": seed, "temperature": 1}
    message = content_of(mixed_server, tools=[TOOL], parallel_tool_calls=False, **options, max_tokens=120)
    if "tool_calls" in message:
        jsonschema.validate(json.loads(message["tool_calls"][0]["function"]["arguments"]), WEATHER)
    elif form == "json_schema":
        jsonschema.validate(json.loads(message["content"]), schema)
    else:
        assert message["content"].startswith("{")
    calls = content_of(mixed_server, tools=[TOOL], tool_choice="required", **options, max_tokens=80)["tool_calls"]
    assert {call["function"]["name"] for call in calls} == {"weather"}


def test_some_of_the_tools_are_allowed(mixed_server: Server) -> None:
    allowed_tools = {"mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]}
    options = {"tools": [TOOL, CLOCK_TOOL], "parallel_tool_calls": False, "max_tokens": 100}
    for seed in range(2):
        choice = {"type": "allowed_tools", "allowed_tools": allowed_tools}
        [call] = content_of(mixed_server, **options, tool_choice=choice, seed=seed, temperature=1)["tool_calls"]
        assert call["function"]["name"] == "now"
    flat_tools = [{"type": "function", **tool["function"]} for tool in (TOOL, CLOCK_TOOL)]
    with mixed_server.client as client:
        reply = client.responses.create(
            model="tiny",
            input="hi",
            tools=flat_tools,  # type: ignore[arg-type]
            tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]},
            parallel_tool_calls=False,
        )
    assert [output.name for output in reply.output if output.type == "function_call"] == ["now"]


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
def test_words_of_other_dialects_mean_what_they_say(mixed_server: Server, name: str) -> None:
    schema, good, bad = DIALECTS[name]
    validator = jsonschema.Draft202012Validator(as_held(schema))
    assert [validator.is_valid(value) for value in (*good, *bad)] == [True] * len(good) + [False] * len(bad)
    for seed in range(2):
        reply = mixed_server.chat(guided_json=schema, seed=seed, temperature=1, max_tokens=60)
        assert reply.status_code == 200, reply.text
        [choice] = reply.json()["choices"]
        if choice["finish_reason"] != "length":  # long under noise, and cut
            assert validator.is_valid(json.loads(choice["message"]["content"]))


def test_different_items_are_a_wish_where_a_schema_is_not_strict(mixed_server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}},
    }
    for strict, status in ((None, 200), (False, 200), (True, 400)):
        tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": strict}}
        assert mixed_server.chat(tools=[tool]).status_code == status
        named = {"name": "f", "schema": schema, "strict": strict}
        assert mixed_server.chat(response_format={"type": "json_schema", "json_schema": named}).status_code == status


# --- reasoning


def test_an_effort_is_told_to_templates_that_ask() -> None:
    thinking_template = ChatTemplate(
        "{% if enable_thinking is defined and not enable_thinking %}/no_think{% endif %}{{ messages }}"
    )
    assert thinking_template.variables == {"enable_thinking", "messages"}
    assert effort_variables("none", thinking_template.variables) == {"enable_thinking": False}
    assert effort_variables("high", thinking_template.variables) == {"enable_thinking": True}
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
    messages = [{"role": "system", "content": "be nice"}, *turns, *HI]
    request = {"model": "tiny", "input": messages, "max_output_tokens": 4, "temperature": 0}
    refused = server.post("/v1/responses", json=request)
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    reply = server.post("/v1/responses", json={**request, "truncation": "auto"}).json()
    left_out = reply["bedplate"]["messages_left_out"]
    assert (reply["truncation"], left_out % 2) == ("auto", 0)
    remaining = [messages[0], *messages[1 + left_out :]]
    assert (
        server.post("/v1/responses", json={**request, "input": remaining}).json()["output"][0]["content"]
        == reply["output"][0]["content"]
    )
    one_more = [messages[0], *messages[1 + left_out - 2 :]]
    assert server.post("/v1/responses", json={**request, "input": one_more}).status_code == 400
    assert "bedplate" not in server.post("/v1/responses", json={**request, "input": "hi", "truncation": "auto"}).json()


def test_what_a_kept_reply_was_asked_with(mixed_server: Server) -> None:
    conversation: list[Any] = [
        *HI,
        {"type": "function_call", "call_id": "1", "name": "now", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "noon"},
    ]
    with mixed_server.client as client:
        first = client.responses.create(model="tiny", input=conversation, instructions="be nice", max_output_tokens=4)
        page = client.responses.input_items.list(first.id, order="asc", limit=2)
        assert [turn.type for turn in page.data] == ["message", "function_call"]
        assert [turn.type for turn in page] == ["message", "function_call", "function_call_output"]
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
def test_an_answer_goes_on_with_what_it_was_begun_with(mixed_server: Server, wide_messages: Any, begun: str) -> None:
    conversation = [
        *HI,
        {"role": "assistant", "content": [{"type": "text", "text": begun, "cache_control": {"type": "ephemeral"}}]},
    ]
    reply = wide_messages.create(model="tiny", max_tokens=8, messages=conversation, extra_body={"temperature": 0})
    prompt = [*tokens(mixed_server, HI), *mixed_server.tokenizer.encode(begun, parse_special=False)]
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0}
    expected = mixed_server.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert "".join(block.text for block in reply.content) == expected
    assert wide_messages.count_tokens(model="tiny", messages=conversation).input_tokens == len(prompt)
    body = {"messages": [*HI, {"role": "assistant", "content": begun}], "continue_final_message": True}
    assert content_of(mixed_server, **body, max_tokens=8)["content"] == expected


def test_thinking_is_a_wish(wide_messages: Any) -> None:
    for thinking in ({"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}, {"type": "disabled"}):
        assert wide_messages.create(model="tiny", max_tokens=2, messages=HI, thinking=thinking).usage.output_tokens
