"""/v1/messages with the anthropic client, against /v1/chat/completions of the same server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.serving.conftest import INPUTS, Server

from .conftest import WEATHER, anthropic_messages

GREEDY = {"temperature": 0}  # the client itself has no such argument any more; the API does
TOOLS = [{"name": "weather", "description": "of a day", "input_schema": WEATHER}]


@pytest.fixture
def messages(server: Server) -> Iterator[Any]:
    with anthropic_messages(server) as messages:
        yield messages


def user_messages(text):
    return [{"role": "user", "content": text}]


def create_message(api, /, **fields):
    return api.create(**({"model": "tiny", "max_tokens": 8, "extra_body": GREEDY} | fields))


def text_of(message):
    return "".join(block.text for block in message.content)


@pytest.mark.parametrize("text", INPUTS)
def test_texts_are_those_of_chats(server, messages, text):
    conversation = [{"role": "system", "content": "be nice"}, *user_messages(text)]
    expected = server.chat(messages=conversation, temperature=0, max_tokens=8).json()
    for system, content in (
        ("be nice", text),
        ([{"type": "text", "text": "be nice"}], [{"type": "text", "text": text}]),
    ):
        reply = create_message(messages, system=system, messages=user_messages(content))
        assert text_of(reply) == expected["choices"][0]["message"]["content"]
        assert (reply.type, reply.role, reply.model, reply.stop_reason) == (
            "message",
            "assistant",
            "tiny",
            "max_tokens",
        )
        usage = reply.usage
        assert usage.input_tokens + usage.cache_read_input_tokens == expected["usage"]["prompt_tokens"]
        assert usage.output_tokens == expected["usage"]["completion_tokens"]
    count = messages.count_tokens(model="tiny", system="be nice", messages=user_messages(text))
    assert count.input_tokens == expected["usage"]["prompt_tokens"]


def test_a_repeated_prompt_is_read_from_the_cache(messages):
    create_message(messages, messages=user_messages("the same again"))
    assert create_message(messages, messages=user_messages("the same again")).usage.cache_read_input_tokens > 0


@pytest.mark.parametrize("text", INPUTS)
def test_events_build_up_the_whole(messages, text):
    whole = create_message(messages, messages=user_messages(text))
    events = list(create_message(messages, messages=user_messages(text), stream=True))
    event_types = [event.type for event in events if event.type != "ping"]
    deltas = event_types.count("content_block_delta")
    assert event_types == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert "".join(event.delta.text for event in events if event.type == "content_block_delta") == text_of(whole)
    assert events[-2].delta.stop_reason == whole.stop_reason
    assert events[-2].usage.output_tokens == whole.usage.output_tokens
    with messages.stream(model="tiny", max_tokens=8, messages=user_messages(text), extra_body=GREEDY) as stream:
        assert "".join(stream.text_stream) == text_of(whole)
        assert stream.get_final_message().stop_reason == whole.stop_reason


def test_stop_sequences(messages):
    text = text_of(create_message(messages, messages=user_messages("hi there")))
    stop = text[2]
    reply = create_message(messages, messages=user_messages("hi there"), stop_sequences=["never there", stop])
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", stop)
    assert text_of(reply) == text[: text.index(stop)]


@pytest.mark.parametrize("name", ["prompted", "tuned", "probed", "worded", "writer"])
def test_skins(server, messages, name):
    expected = server.chat(model=name, messages=user_messages(INPUTS[0]), max_tokens=24).json()["choices"][0][
        "message"
    ]["content"]
    reply = create_message(messages, model=name, messages=user_messages(INPUTS[0]), max_tokens=24, extra_body={})
    assert text_of(reply) == expected
    streamed = create_message(
        messages, model=name, messages=user_messages(INPUTS[0]), max_tokens=24, extra_body={}, stream=True
    )
    assert "".join(event.delta.text for event in streamed if event.type == "content_block_delta") == expected


def test_tools(wide_messages):
    choice = {"type": "any", "disable_parallel_tool_use": True}
    request = {"tools": TOOLS, "tool_choice": choice, "max_tokens": 120, "messages": user_messages("hi")}
    reply = create_message(wide_messages, **request)
    (use,) = reply.content
    assert (use.type, use.name, reply.stop_reason) == ("tool_use", "weather", "tool_use")
    assert use.input.keys() == {"day", "hot"}
    with wide_messages.stream(model="tiny", extra_body=GREEDY, **request) as stream:
        final = stream.get_final_message()
    assert [(block.name, block.input) for block in final.content] == [("weather", use.input)]
    assert final.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "sunny"}]}
    turns = [
        *user_messages("hi"),
        {"role": "assistant", "content": reply.content},
        {"role": "user", "content": [result]},
    ]
    assert text_of(create_message(wide_messages, messages=turns, tools=TOOLS))
    named = create_message(wide_messages, **(request | {"tool_choice": {**choice, "type": "tool", "name": "weather"}}))
    assert named.content[0].name == "weather"
    none = create_message(wide_messages, messages=user_messages("hi"), tools=TOOLS, tool_choice={"type": "none"})
    assert text_of(none) == text_of(create_message(wide_messages, messages=user_messages("hi")))


def test_the_client_knows_the_errors(messages):
    import anthropic

    with pytest.raises(anthropic.NotFoundError):
        create_message(messages, model="nobody", messages=user_messages("hi"))
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        create_message(messages, messages=user_messages("hi"), max_tokens=5_000)


IMAGE = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:1/x.png"}}
REFUSED = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"role": "system", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
    ({"messages": [*user_messages("hi"), {"role": "assistant", "content": "go on "}]}, "white space"),
    ({"messages": [{"role": "assistant", "content": "go on"}]}, "messages[0]"),
    ({"model": "prompted", "messages": [*user_messages("hi"), {"role": "assistant", "content": "go on"}]}, "skin"),
    ({"system": 1}, "system"),
    ({"system": [IMAGE]}, "system[0].type"),
    ({"temperature": 1.5}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"thinking": {"type": "sometimes"}}, "thinking"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": [], "name": "a"}]}, "tools[0].type"),
    ({"tool_choice": {"type": "perhaps"}}, "tool_choice"),
    ({"tool_choice": {"type": {}}}, "tool_choice"),
    ({"modle": "tiny"}, "modle"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("stream", [False, True])
def test_refused_in_the_apis_own_shape(server, fields, message, stream):
    body = {"model": "tiny", "max_tokens": 4, "messages": user_messages("hi"), "stream": stream} | fields
    reply = server.post("/v1/messages", json=body)
    assert reply.status_code == 400, reply.text[:500]
    error = reply.json()
    assert error.keys() == {"type", "error"}
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert message in error["error"]["message"]
    good = server.post("/v1/messages", json={"model": "tiny", "max_tokens": 1, "messages": user_messages("hi")})
    assert good.status_code == 200
    assert server.idle()
