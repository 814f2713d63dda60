"""Two calls of tools at once and their results, as clients send them back: the same conversation through each."""

from __future__ import annotations

import json
from typing import Any

import httpx
import langchain_openai
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from tests.serving.conftest import Server

from .conftest import HI, NOW, TOOL, WEATHER, called, content_of

TURN: list[Any] = [
    *HI,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [called("1", "weather", '{"day": "mon"}'), called("2", "now", "{}")],
    },
    {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    {"role": "tool", "tool_call_id": "2", "content": "noon"},
]
"""Two calls at once, and their results."""


def test_results_through_the_openai_client(wide: Server) -> None:
    expected = content_of(wide, messages=TURN, tools=[TOOL, NOW])["content"]
    with wide.client as client:
        swapped = [*TURN[:2], TURN[3], TURN[2]]
        asked: Any = {"model": "tiny", "tools": [TOOL, NOW], "temperature": 0}
        reply = client.chat.completions.create(messages=TURN, max_tokens=6, **asked)
        assert reply.choices[0].message.content == expected
        assert client.chat.completions.create(messages=swapped, max_tokens=6, **asked).usage.prompt_tokens  # type: ignore[union-attr]
        items: Any = [
            *HI,
            *({"type": "function_call", "call_id": one["id"], **one["function"]} for one in TURN[1]["tool_calls"]),
            *(
                {"type": "function_call_output", "call_id": one["tool_call_id"], "output": one["content"]}
                for one in TURN[2:]
            ),
        ]
        given = [{"type": "function", **tool["function"]} for tool in (TOOL, NOW)]
        response = client.responses.create(
            model="tiny",
            input=items,
            tools=given,
            temperature=0,
            max_output_tokens=6,  # type: ignore[arg-type]
        )
    assert response.output_text == expected


def test_results_through_the_anthropic_client(wide: Server, wide_messages: Any) -> None:
    expected = content_of(wide, messages=TURN, tools=[TOOL, NOW])["content"]
    uses = [
        {
            "type": "tool_use",
            "id": one["id"],
            "name": one["function"]["name"],
            "input": json.loads(one["function"]["arguments"]),
        }
        for one in TURN[1]["tool_calls"]
    ]
    results = [
        {
            "type": "tool_result",
            "tool_use_id": one["tool_call_id"],
            "content": one["content"],
            "cache_control": {"type": "ephemeral"},
        }
        for one in TURN[2:]
    ]
    tools = [
        {"name": "weather", "description": "of a day", "input_schema": WEATHER, "cache_control": {"type": "ephemeral"}},
        {"name": "now", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}},
    ]
    turns = [*HI, {"role": "assistant", "content": uses}, {"role": "user", "content": results}]
    reply = wide_messages.create(model="tiny", max_tokens=6, messages=turns, tools=tools, extra_body={"temperature": 0})
    assert "".join(block.text for block in reply.content) == expected


def test_results_through_langchain(wide: Server) -> None:
    expected = content_of(wide, messages=TURN, tools=[TOOL, NOW])["content"]
    settings: Any = {
        "base_url": f"{wide.url}/v1",
        "api_key": "none",
        "model": "tiny",
        "max_retries": 0,
        "temperature": 0,
    }
    with httpx.Client(trust_env=False) as http:
        model = langchain_openai.ChatOpenAI(**settings, max_tokens=6, http_client=http)
        calls: Any = [
            {"id": one["id"], "name": one["function"]["name"], "args": json.loads(one["function"]["arguments"])}
            for one in TURN[1]["tool_calls"]
        ]
        turns: list[BaseMessage] = [
            HumanMessage("hi"),
            AIMessage("", tool_calls=calls),
            *(ToolMessage(one["content"], tool_call_id=one["tool_call_id"]) for one in TURN[2:]),
        ]
        assert model.bind_tools([TOOL, NOW]).invoke(turns).content == expected
        # a streamed call, put together by the client, goes back with its result
        caller = langchain_openai.ChatOpenAI(**settings, max_tokens=200, http_client=http)
        asked = caller.bind_tools([TOOL, NOW], tool_choice="any", parallel_tool_calls=False)
        chunks = list(asked.stream([HumanMessage("hi")]))
        whole: AIMessageChunk = sum(chunks[1:], start=chunks[0])  # type: ignore[assignment, arg-type]
        assert whole.tool_calls
        results = [ToolMessage("ok", tool_call_id=call["id"]) for call in whole.tool_calls]
        assert model.bind_tools([TOOL, NOW]).invoke([HumanMessage("hi"), whole, *results]).usage_metadata
