"""/v1/responses with the openai client, against /v1/chat/completions of the same server."""

from __future__ import annotations

import json
from typing import Literal

import openai
import pydantic
import pytest
from tests.serving.conftest import INPUTS

from .conftest import WEATHER

TOOLS = [{"type": "function", "name": "weather", "description": "of a day", "parameters": WEATHER, "strict": True}]


def user_messages(text):
    return [{"role": "user", "content": text}]


def chat(client, messages, **fields):
    request = {"model": "tiny", "temperature": 0, "max_tokens": 8} | fields
    return client.chat.completions.create(messages=messages, **request)


def create_response(client, **fields):
    return client.responses.create(**({"model": "tiny", "temperature": 0, "max_output_tokens": 8} | fields))


@pytest.mark.parametrize("text", INPUTS)
def test_texts_are_those_of_chats(client, text):
    expected = chat(client, user_messages(text))
    for prompt in (text, user_messages(text), [{"type": "message", "role": "user", "content": text}]):
        reply = create_response(client, input=prompt)
        assert reply.output_text == expected.choices[0].message.content
        assert reply.usage.input_tokens == expected.usage.prompt_tokens
        assert reply.usage.output_tokens == expected.usage.completion_tokens
        assert reply.usage.total_tokens == expected.usage.total_tokens
    parts = [
        {"role": "user", "content": [{"type": "input_text", "text": fragment} for fragment in (text[:3], text[3:])]}
    ]
    assert create_response(client, input=parts).output_text == expected.choices[0].message.content


def test_instructions_roles_and_earlier_turns(client):
    history = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    expected = chat(client, [{"role": "system", "content": "be nice"}, *history]).choices[0].message.content
    earlier_turns = [
        history[0],
        {"role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
    ]
    assert create_response(client, instructions="be nice", input=history).output_text == expected
    assert create_response(client, instructions="be nice", input=[*earlier_turns, history[2]]).output_text == expected
    developer = [{"role": "developer", "content": "be nice"}, *history]
    assert create_response(client, input=developer).output_text == expected


def test_the_object(client):
    reply = create_response(client, input="hi", metadata={"a": "b"}, top_p=0.5)
    assert (reply.object, reply.model, reply.metadata) == ("response", "tiny", {"a": "b"})
    assert (reply.temperature, reply.top_p, reply.max_output_tokens, reply.store) == (0, 0.5, 8, True)
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (reply.output[0].type, reply.output[0].role, reply.output[0].status) == (
        "message",
        "assistant",
        "incomplete",
    )
    assert reply.error is None
    whole = create_response(client, model="prompted", input=INPUTS[0])
    assert (whole.status, whole.incomplete_details, whole.output[0].status) == ("completed", None, "completed")
    assert whole.output_text in whole.bedplate["scores"]


@pytest.mark.parametrize("text", INPUTS)
def test_events_build_up_the_whole(client, text):
    whole = create_response(client, input=text)
    events = list(create_response(client, input=text, stream=True))
    event_types = [event.type for event in events]
    deltas = event_types.count("response.output_text.delta")
    assert event_types == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-4].text == events[-3].part.text == events[-2].item.content[0].text == whole.output_text
    final = events[-1].response
    assert events[0].response.id == final.id
    assert events[0].response.status == "in_progress"
    assert final.output == [events[-2].item]
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert events[2].item.id == events[4].item_id == final.output[0].id


def test_streaming_with_the_clients_helper(client):
    with client.responses.stream(model="prompted", input=INPUTS[0]) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.output_text == snapshots[-1] == create_response(client, model="prompted", input=INPUTS[0]).output_text
    writer = create_response(client, model="writer", input=INPUTS[0], max_output_tokens=20)
    pieces = create_response(client, model="writer", input=INPUTS[0], max_output_tokens=20, stream=True)
    assert "".join(event.delta for event in pieces if event.type == "response.output_text.delta") == writer.output_text


def test_log_probabilities(client):
    expected = chat(client, user_messages("hi"), logprobs=True, top_logprobs=2).choices[0].logprobs.content
    options = {"input": "hi", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    logprobs = create_response(client, **options).output[0].content[0].logprobs
    assert [token_logprob.token for token_logprob in logprobs] == [token_logprob.token for token_logprob in expected]
    assert [token_logprob.logprob for token_logprob in logprobs] == pytest.approx(
        [token_logprob.logprob for token_logprob in expected], abs=1e-5
    )
    assert [len(token_logprob.top_logprobs) for token_logprob in logprobs] == [2] * len(logprobs)
    events = create_response(client, **options, stream=True)
    streamed = [
        token_logprob.token
        for event in events
        if event.type == "response.output_text.delta"
        for token_logprob in event.logprobs
    ]
    assert streamed == [token_logprob.token for token_logprob in expected]
    assert create_response(client, input="hi").output[0].content[0].logprobs == []


def test_a_kept_reply_goes_on(client):
    first = create_response(client, input="hi", instructions="be nice")
    assert client.responses.retrieve(first.id).output == first.output
    expected = create_response(
        client,
        input=[*user_messages("hi"), {"role": "assistant", "content": first.output_text}, *user_messages("and?")],
    )
    second = create_response(client, input="and?", previous_response_id=first.id)
    assert second.output_text == expected.output_text
    assert second.usage.input_tokens == expected.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0
    assert second.previous_response_id == first.id
    streamed = list(create_response(client, input="and?", previous_response_id=first.id, stream=True))[-1].response
    assert streamed.output_text == expected.output_text
    third = create_response(client, input="so?", previous_response_id=streamed.id)
    assert third.usage.input_tokens > streamed.usage.input_tokens
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        create_response(client, input="and?", previous_response_id=first.id)
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")
    unkept = create_response(client, input="hi", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def test_tools(wide_client):
    options = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 120}
    reply = create_response(wide_client, input="hi", **options)
    (call,) = reply.output
    assert (call.type, call.name, call.status, reply.status) == ("function_call", "weather", "completed", "completed")
    assert json.loads(call.arguments).keys() == {"day", "hot"}
    events = list(create_response(wide_client, input="hi", stream=True, **options))
    event_types = [event.type for event in events]
    deltas = event_types.count("response.function_call_arguments.delta")
    assert event_types == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        *["response.function_call_arguments.delta"] * deltas,
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    pieces = "".join(event.delta for event in events[3 : 3 + deltas])
    assert pieces == events[-3].arguments == events[-2].item.arguments == call.arguments
    assert events[2].item.call_id == events[-2].item.call_id == events[-1].response.output[0].call_id
    # the result, after the kept reply or after its items: the same conversation
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    chained = create_response(wide_client, input=[result], previous_response_id=reply.id, tools=TOOLS)
    conversation = [*user_messages("hi"), *(output.model_dump(exclude_none=True) for output in reply.output), result]
    sent = create_response(wide_client, input=conversation, tools=TOOLS)
    assert chained.output_text == sent.output_text
    assert chained.usage.input_tokens == sent.usage.input_tokens
    named = create_response(
        wide_client, input="hi", **(options | {"tool_choice": {"type": "function", "name": "weather"}})
    )
    assert named.output[0].name == "weather"
    none = create_response(wide_client, input="hi", tools=TOOLS, tool_choice="none")
    assert none.output_text == create_response(wide_client, input="hi").output_text


class Weather(pydantic.BaseModel):
    day: Literal["mon", "tue"]
    hot: bool


def test_formats(wide_client):
    form = {"type": "json_schema", "name": "weather", "schema": WEATHER, "strict": True}
    reply = create_response(wide_client, input="hi", text={"format": form}, max_output_tokens=100)
    assert Weather.model_validate_json(reply.output_text)
    parsed = wide_client.responses.parse(
        model="tiny", input="hi", text_format=Weather, temperature=0, max_output_tokens=100
    )
    assert isinstance(parsed.output_parsed, Weather)
    plain = create_response(wide_client, input="hi", text={"format": {"type": "text"}})
    assert plain.output_text == create_response(wide_client, input="hi").output_text


REFUSED = [
    ({"input": None}, "input"),
    ({"input": 1}, "input"),
    ({"input": []}, "input"),
    ({"input": ["hi"]}, "input[0]"),
    ({"input": [{"role": "wizard", "content": "hi"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": 1}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": "hi", "mood": 1}]}, "input[0].mood"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://127.0.0.1:1/x.png"}]}]},
        "input[0].content[0].type",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "http://127.0.0.1:1/x.pdf"}]}]},
        "input[0].content[0].type",
    ),
    ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
    ({"input": [{"type": "function_call", "name": "a", "arguments": "{}"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call_output", "call_id": "1"}]}, "input[0].output"),
    ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, None),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 10_000}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"truncation": "some"}, "truncation"),
    ({"reasoning": {"effort": "much"}}, "reasoning.effort"),
    ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice"),
    ({"background": True}, "background"),
    ({"include": ["file_search_call.results"]}, "include"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "name": "a b"}]}, None),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"tool_choice": 1}, "tool_choice"),
    ({"text": {"format": {"type": "yaml"}}}, None),
    ({"metadata": {"a": 1}}, "metadata"),
    ({"stream_options": {"what": False}}, None),
    ({"conversation": "conv_1"}, "conversation"),
    ({"model": 1}, "model"),
    ({"modle": "tiny"}, "modle"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("stream", [False, True])
def test_refused(server, fields, param, stream):
    reply = server.post("/v1/responses", json={"model": "tiny", "input": "hi", "stream": stream} | fields)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    if param is not None:
        assert error["param"] == param
    good = server.post("/v1/responses", json={"model": "tiny", "input": "hi", "max_output_tokens": 1})
    assert good.status_code == 200
    assert server.idle()


def test_what_is_kept_is_bounded():
    from bedplate.serving.durable.responses_store import KeptResponse, ResponseStore
    from bedplate.serving.settings.server_config import ResponsesConfig

    def store_response(tenant: str, name: str, **fields: str) -> None:
        store.add(tenant, KeptResponse.of({"id": name, **fields}, []))

    store = ResponseStore(ResponsesConfig(bytes_per_tenant=1000, bytes_in_all=1500))
    for number in range(20):
        store_response("a", f"r{number}", text="x" * 300)
    stored = [number for number in range(20) if store.get("a", f"r{number}")]
    assert stored == [18 - 1, 18, 19]
    assert store.get("b", "r19") is None
    for number in range(3):
        store_response("b", f"r{number}", text="x" * 300)
    assert sum(store.get(tenant, f"r{number}") is not None for tenant in "ab" for number in range(20)) <= 4
    assert store.get("b", "r2") is not None
    store_response("a", "large", text="x" * 2000)  # larger than the bound: not kept, and nothing breaks
    assert store.get("a", "large") is None
    store_response("c", "one")
    store.remove("c", "one")
    assert store.get("c", "one") is None
