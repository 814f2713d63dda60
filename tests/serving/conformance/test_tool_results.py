"""Two calls of tools at once and their results, as clients send them back: the same conversation through each."""

from __future__ import annotations

import json
from typing import Any

import httpx
from tests.serving.conftest import Server

from .conftest import CLOCK_TOOL, HI, TOOL, WEATHER, called, content_of

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


def test_results_through_the_openai_client(mixed_server: Server) -> None:
    expected = content_of(mixed_server, messages=TURN, tools=[TOOL, CLOCK_TOOL])["content"]
    with mixed_server.client as client:
        swapped = [*TURN[:2], TURN[3], TURN[2]]
        options: Any = {"model": "tiny", "tools": [TOOL, CLOCK_TOOL], "temperature": 0}
        reply = client.chat.completions.create(messages=TURN, max_tokens=6, **options)
        assert reply.choices[0].message.content == expected
        assert client.chat.completions.create(messages=swapped, max_tokens=6, **options).usage.prompt_tokens  # type: ignore[union-attr]
        conversation: Any = [
            *HI,
            *({"type": "function_call", "call_id": call["id"], **call["function"]} for call in TURN[1]["tool_calls"]),
            *(
                {"type": "function_call_output", "call_id": result["tool_call_id"], "output": result["content"]}
                for result in TURN[2:]
            ),
        ]
        flat_tools = [{"type": "function", **tool["function"]} for tool in (TOOL, CLOCK_TOOL)]
        response = client.responses.create(
            model="tiny",
            input=conversation,
            tools=flat_tools,
            temperature=0,
            max_output_tokens=6,  # type: ignore[arg-type]
        )
    assert response.output_text == expected


def test_results_through_the_anthropic_client(mixed_server: Server, wide_messages: Any) -> None:
    expected = content_of(mixed_server, messages=TURN, tools=[TOOL, CLOCK_TOOL])["content"]
    uses = [
        {
            "type": "tool_use",
            "id": call["id"],
            "name": call["function"]["name"],
            "input": json.loads(call["function"]["arguments"]),
        }
        for call in TURN[1]["tool_calls"]
    ]
    results = [
        {
            "type": "tool_result",
            "tool_use_id": result["tool_call_id"],
            "content": result["content"],
            "cache_control": {"type": "ephemeral"},
        }
        for result in TURN[2:]
    ]
    tools = [
        {"name": "weather", "description": "of a day", "input_schema": WEATHER, "cache_control": {"type": "ephemeral"}},
        {"name": "now", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}},
    ]
    turns = [*HI, {"role": "assistant", "content": uses}, {"role": "user", "content": results}]
    reply = wide_messages.create(model="tiny", max_tokens=6, messages=turns, tools=tools, extra_body={"temperature": 0})
    assert "".join(block.text for block in reply.content) == expected


def test_results_through_langchain(mixed_server: Server) -> None:
    import langchain_openai
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage

    expected = content_of(mixed_server, messages=TURN, tools=[TOOL, CLOCK_TOOL])["content"]
    settings: Any = {
        "base_url": f"{mixed_server.url}/v1",
        "api_key": "none",
        "model": "tiny",
        "max_retries": 0,
        "temperature": 0,
    }
    with httpx.Client(trust_env=False) as http:
        model = langchain_openai.ChatOpenAI(**settings, max_tokens=6, http_client=http)
        calls: Any = [
            {"id": call["id"], "name": call["function"]["name"], "args": json.loads(call["function"]["arguments"])}
            for call in TURN[1]["tool_calls"]
        ]
        turns: list[BaseMessage] = [
            HumanMessage("hi"),
            AIMessage("", tool_calls=calls),
            *(ToolMessage(result["content"], tool_call_id=result["tool_call_id"]) for result in TURN[2:]),
        ]
        assert model.bind_tools([TOOL, CLOCK_TOOL]).invoke(turns).content == expected
        # a streamed call, put together by the client, goes back with its result
        caller = langchain_openai.ChatOpenAI(**settings, max_tokens=200, http_client=http)
        bound_model = caller.bind_tools([TOOL, CLOCK_TOOL], tool_choice="any", parallel_tool_calls=False)
        chunks = list(bound_model.stream([HumanMessage("hi")]))
        whole: AIMessageChunk = sum(chunks[1:], start=chunks[0])  # type: ignore[assignment, arg-type]
        assert whole.tool_calls
        results = [ToolMessage("ok", tool_call_id=call["id"]) for call in whole.tool_calls]
        assert model.bind_tools([TOOL, CLOCK_TOOL]).invoke([HumanMessage("hi"), whole, *results]).usage_metadata
