"""Answers of a given form, and tools, over HTTP: through the openai client, and what is refused."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest
from tests.rows import slow_unless
from tests.serving.conftest import Server, running
from tests.tiny import NATIVE_SHAPE, write_tiny_base

from bedplate.serving.server.app import loaded_server

HI = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}, "score": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["answer", "score"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
CLOCK_TOOL = {"type": "function", "function": {"name": "now"}}


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A base whose context holds the tools as well, which cost a byte-sized vocabulary hundreds of tokens."""
    directory = write_tiny_base(tmp_path_factory.mktemp("roomy") / "tiny", context_length=2048, **NATIVE_SHAPE)
    with loaded_server(directory, state=tmp_path_factory.mktemp("state")) as state, running(state) as url:
        yield Server(url, state, {})


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class OrderLine(pydantic.BaseModel):
    colour: Colour
    ready: bool


class Order(pydantic.BaseModel):
    kind: Literal["order"]
    number: int = pydantic.Field(ge=0, le=99)
    items: list[OrderLine] = pydantic.Field(min_length=1, max_length=2)
    note: None


def chat_choice(server: Server, **fields: Any) -> dict[str, Any]:
    response = server.chat(**{"max_tokens": 200, "temperature": 1, "seed": 1, **fields})
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


# --- forms


@pytest.mark.parametrize("seed", range(3))
def test_parse_helper_gives_the_callers_own_model(client: openai.OpenAI, seed: int) -> None:
    reply = client.chat.completions.parse(
        model="tiny", messages=[{"role": "user", "content": "hi"}], response_format=Order, seed=seed, temperature=1
    )
    assert isinstance(reply.choices[0].message.parsed, Order)


def test_a_cut_answer_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model="tiny", messages=[{"role": "user", "content": "hi"}], response_format=Order, max_tokens=3
        )


def test_every_way_to_ask_for_a_form(server: Server) -> None:
    forms: list[dict[str, Any]] = [
        {"response_format": named("answer", SCHEMA, strict=True)},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"structured_outputs": {"json": SCHEMA}},
    ]
    texts = [chat_choice(server, **fields)["message"]["content"] for fields in forms]
    assert len(set(texts)) == 1
    jsonschema.validate(json.loads(texts[0]), SCHEMA)
    for fields in ({"guided_choice": ["yes", "no"]}, {"structured_outputs": {"choice": ["yes", "no"]}}):
        assert chat_choice(server, **fields)["message"]["content"] in {"yes", "no"}
    for fields in ({"guided_regex": "[a-c]{4}"}, {"structured_outputs": {"regex": "[a-c]{4}"}}):
        assert re.fullmatch("[a-c]{4}", chat_choice(server, **fields)["message"]["content"])
    assert chat_choice(server, guided_grammar='start: "a" "b"+ "c"')["message"]["content"].startswith("ab")
    choice = chat_choice(server, response_format={"type": "json_object"})
    assert choice["message"]["content"].startswith("{")
    assert choice["finish_reason"] == "length" or isinstance(json.loads(choice["message"]["content"]), dict)
    assert chat_choice(server, response_format={"type": "text"}, max_tokens=3)["message"]["content"] is not None


def test_completions_take_forms_and_choices_are_held_each(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="tiny",
        prompt=["a", "b"],
        n=2,
        max_tokens=20,
        temperature=1,
        seed=3,
        extra_body={"guided_choice": ["x", "zz"]},
    )
    assert len(reply.choices) == 4
    assert {choice.text for choice in reply.choices} <= {"x", "zz"}
    assert {choice.finish_reason for choice in reply.choices} == {"stop"}


def test_logprobs_are_of_the_models_own_distribution(client: openai.OpenAI) -> None:
    free = client.completions.create(model="tiny", prompt="hi", max_tokens=1, temperature=0, logprobs=5)
    constrained = client.completions.create(
        model="tiny", prompt="hi", max_tokens=1, temperature=0, logprobs=5, extra_body={"guided_choice": ["zzz"]}
    )
    assert free.choices[0].logprobs is not None
    assert constrained.choices[0].logprobs is not None
    alone, constrained_logprobs = (
        free.choices[0].logprobs.top_logprobs[0],
        constrained.choices[0].logprobs.top_logprobs[0],
    )
    assert len(alone) == 5
    assert {token: constrained_logprobs[token] for token in alone} == pytest.approx(alone, abs=1e-4)


def test_a_streamed_form_is_the_whole_one(client: openai.OpenAI, server: Server) -> None:
    form: Any = named("answer", SCHEMA)
    whole = chat_choice(server, response_format=form, seed=7)["message"]["content"]
    messages: Any = HI
    with client.chat.completions.stream(
        model="tiny", messages=messages, response_format=form, seed=7, temperature=1
    ) as stream:
        assert stream.get_final_completion().choices[0].message.content == whole


def test_sampling_fields_of_other_servers(server: Server) -> None:
    tokenizer = server.tokenizer
    forced = tokenizer.encode("z")[0]
    choice = chat_choice(server, logit_bias={str(forced): 100}, temperature=0, max_tokens=5)
    assert choice["message"]["content"] == "zzzzz"
    stopped = chat_choice(
        server, logit_bias={str(forced): 100}, temperature=0, stop_token_ids=[forced], min_tokens=2, max_tokens=9
    )
    assert stopped["finish_reason"] == "stop"
    assert "z" not in stopped["message"]["content"]
    assert chat_choice(server, ignore_eos=True, max_tokens=30)["finish_reason"] == "length"


# --- refusals, after each of which the server answers


def named(name: str, schema: Any, **options: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, **options}}


DEEP = '{"items":' * 20_000 + "{}" + "}" * 20_000
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"guided_json": DEEP}, "guided_json"),
    ({"guided_json": '{"$ref": "http://127.0.0.1:9/x.json"}'}, "guided_json"),
    ({"guided_json": {"type": "integer", "minimum": 2, "maximum": 1}}, "guided_json"),
    ({"guided_json": {"type": "array", "uniqueItems": True}}, "guided_json"),
    ({"guided_json": {"enum": [str(i) for i in range(60_000)]}}, "guided_json"),
    ({"response_format": named("a", {"not": {}})}, "response_format"),
    ({"response_format": named("a b", {})}, "response_format.json_schema.name"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format.json_schema.schema"),
    ({"response_format": named("a", {}, strict=1)}, "response_format.json_schema.strict"),
    ({"guided_regex": "(" * 5_000}, "guided_regex"),
    ({"guided_regex": "((a{1,100}){1,100}){1,100}"}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_grammar": "start: x"}, "guided_grammar"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "(?<=a)b"}}, "structured_outputs"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    ({"tools": [WEATHER, WEATHER]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"if": {}}}}]}, "tools"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [WEATHER], "guided_regex": "a"}, "guided_regex"),
    ({"tools": [WEATHER], "response_format": named("a", {"not": {}})}, "response_format"),
    ({"response_format": named("a", {"nullable": True})}, "response_format.json_schema"),
    ({"response_format": named("a", {"type": "array", "uniqueItems": True}, strict=True)}, "response_format"),
    ({"guided_json": {"$id": "x", "items": {"$id": "y", "$ref": "#"}}}, "guided_json"),
    ({"tools": [WEATHER], "model": "writer"}, "tools"),
    ({"guided_choice": ["a"], "model": "prompted"}, "guided_choice"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[f"{i}-{param}" for i, (_, param) in enumerate(REFUSED)])
def test_what_cannot_be_enforced_is_refused(server: Server, fields: dict[str, Any], param: str) -> None:
    response = server.chat(**fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert len(error["message"]) < 700
    # the machine may be busy; the processor time is tested with the grammar
    assert response.elapsed.total_seconds() < 30
    assert server.chat(guided_choice=["ok"], max_tokens=9).json()["choices"][0]["message"]["content"] == "ok"
    assert server.idle()


# --- tools


def calls_of(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in choice["message"]["tool_calls"]]


@pytest.mark.parametrize("seed", slow_unless((2).__eq__, range(3)))
def test_required_and_named_calls(roomy: Server, seed: int) -> None:
    choice = chat_choice(
        roomy, tools=[WEATHER, CLOCK_TOOL], tool_choice="required", parallel_tool_calls=False, seed=seed
    )
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    [(name, arguments)] = calls_of(choice)
    assert (name, arguments) in [("weather", {"city": "Rome"}), ("weather", {"city": "Oslo"}), ("now", {})]
    weather = {"type": "function", "function": {"name": "weather"}}
    for name, arguments in calls_of(
        chat_choice(roomy, tools=[WEATHER, CLOCK_TOOL], tool_choice=weather, seed=seed, max_tokens=400)
    ):
        assert name == "weather"
        assert arguments["city"] in {"Rome", "Oslo"}


def test_no_calls_where_none_may_be_made(roomy: Server) -> None:
    choice = chat_choice(roomy, tools=[WEATHER], tool_choice="none", max_tokens=5)
    assert "tool_calls" not in choice["message"]
    assert choice == {**chat_choice(roomy, max_tokens=5), "logprobs": None}


def test_a_round_trip_with_the_client(roomy: Server) -> None:
    tools: Any = [WEATHER]
    messages: Any = [{"role": "developer", "content": "Be brief."}, *HI]
    client = roomy.client
    first = client.chat.completions.create(
        model="tiny", messages=messages, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=300
    )
    message = first.choices[0].message
    assert message.tool_calls
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls]
    second = client.chat.completions.create(
        model="tiny", messages=[*messages, message, *results], tools=tools, max_tokens=4
    )
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="no result"):
        client.chat.completions.create(model="tiny", messages=[*messages, message, *HI], max_tokens=4)


@pytest.mark.parametrize(
    ("choice", "seed"),
    slow_unless({("required", 1), ("auto", 1)}.__contains__, itertools.product(("required", "auto"), range(3))),
)
def test_streamed_calls_add_up_to_the_whole(roomy: Server, choice: str, seed: int) -> None:
    options: dict[str, Any] = {"tools": [WEATHER, CLOCK_TOOL], "tool_choice": choice, "seed": seed}
    whole = chat_choice(roomy, **options, max_tokens=160)
    chunks = list(
        roomy.client.chat.completions.create(
            model="tiny", messages=HI, stream=True, temperature=1, max_tokens=160, **options
        )  # type: ignore[call-overload]
    )
    calls: dict[int, dict[str, str]] = {}
    content = ""
    for chunk in chunks:
        delta = chunk.choices[0].delta
        content += delta.content or ""
        for call in delta.tool_calls or ():
            if call.id is not None:
                assert call.index not in calls
                assert call.type == "function"
                calls[call.index] = {"name": call.function.name, "arguments": ""}
            calls[call.index]["arguments"] += call.function.arguments
    assert content == (whole["message"]["content"] or "")
    whole_calls = whole["message"].get("tool_calls", ())
    assert [calls[i] for i in sorted(calls)] == [tool_call["function"] for tool_call in whole_calls]
    assert chunks[-1].choices[0].finish_reason == whole["finish_reason"]
    if choice == "required" and whole["finish_reason"] == "tool_calls":
        assert whole_calls
        assert len(chunks) > 5


def test_tools_stand_in_the_prompt(roomy: Server) -> None:
    tokens = roomy.post("/tokenize", json={"model": "tiny", "messages": HI, "tools": [WEATHER]}).json()["tokens"]
    text = roomy.tokenizer.decode(tokens, skip_special_tokens=False)
    assert text.startswith("<|im_start|>system\nYou can call these tools.")
    assert '"name": "weather"' in text
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
