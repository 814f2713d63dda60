"""What whole programs send in the course of a session, in the shapes that their public sources show: each request is
answered, and each stream is one that their readers understand.

A chat front end (Open WebUI 0.6 to 0.8), a code assistant in an editor (Continue's OpenAI adapter), an agent loop over
/v1/responses (OpenAI's Agents SDK), one over /v1/messages (a coding agent on Anthropic's API), and one that litellm
carries to /v1/chat/completions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from tests.serving.conftest import Server

from .conftest import WEATHER

EPHEMERAL = {"cache_control": {"type": "ephemeral"}}
FUNCTION = {"name": "read_day", "description": "The weather of a day", "parameters": WEATHER}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "read_day", "arguments": '{"day": "mon", "hot": true}'},
}
CALL_2 = {
    "id": "call_2",
    "type": "function",
    "function": {"name": "read_day", "arguments": '{"day": "tue", "hot": false}'},
}

Step = tuple[str, str, dict[str, Any] | None]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def task(text: str, **fields: Any) -> Step:
    """What a front end asks on its own: titles, tags, further questions."""
    return "POST", "/v1/chat/completions", {"model": "tiny", "messages": [user(text)], "stream": False, **fields}


FRONT_END: list[Step] = [
    ("GET", "/v1/models", None),
    (
        "POST",
        "/v1/chat/completions",
        {
            "stream": True,
            "model": "tiny",
            "messages": [{"role": "system", "content": "be nice"}, user("hi")],
            "stream_options": {"include_usage": True},
            "temperature": 0.8,
            "top_k": 40,
            "max_tokens": 6,
        },
    ),
    task("a title for: hi", max_completion_tokens=6),
    task('tags as {"tags": []} for: hi', max_completion_tokens=6),
    (
        "POST",
        "/v1/chat/completions",
        {
            "stream": True,
            "model": "tiny",
            "messages": [
                user("hi"),
                {"role": "assistant", "content": "", "tool_calls": [{"index": 0, **CALL}]},
                {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
                {"role": "assistant", "content": "the answer is yes"},
                {"role": "user", "content": [{"type": "text", "text": "and tue?"}]},
            ],
            "tools": [{"type": "function", "function": FUNCTION}],
            "reasoning_effort": "low",
            "max_tokens": 6,
        },
    ),
    ("POST", "/v1/embeddings", {"input": ["hi"], "model": "tiny"}),
]

ASSISTANT: list[Step] = [
    ("GET", "/v1/models", None),
    (
        "POST",
        "/v1/chat/completions",
        {
            "messages": [{"role": "system", "content": "you edit code"}, user("what is wrong?")],
            "model": "tiny",
            "max_tokens": 6,
            "temperature": 0.5,
            "top_p": 1,
            "frequency_penalty": 0,
            "presence_penalty": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "stop": ["<|im_start|>"],
            "tools": [{"type": "function", "function": {**FUNCTION, "strict": True}}],
            "parallel_tool_calls": False,
        },
    ),
    (
        "POST",
        "/v1/chat/completions",
        {
            "messages": [
                user("what is wrong?"),
                {"role": "assistant", "content": " ", "tool_calls": [CALL]},
                {"role": "tool", "content": "", "tool_call_id": "call_1"},
            ],
            "model": "tiny",
            "max_tokens": 6,
            "stream": True,
            "tools": [{"type": "function", "function": FUNCTION}],
        },
    ),
    (
        "POST",
        "/v1/completions",
        {
            "prompt": "<fim_prefix>def answer(<fim_suffix>):<fim_middle>",
            "model": "tiny",
            "max_tokens": 6,
            "temperature": 0.01,
            "stream": True,
            "stop": ["<fim_prefix>", "<fim_suffix>", "\n\n"],
        },
    ),
    ("POST", "/v1/embeddings", {"input": ["def answer():"], "model": "tiny", "encoding_format": "float"}),
    ("POST", "/v1/rerank", {"query": "answer", "documents": ["yes", "no"], "model": "tiny"}),
]

AGENT_TOOL = {"type": "function", "strict": True, **FUNCTION}
AGENT: dict[str, Any] = {
    "model": "tiny",
    "instructions": "you are an agent",
    "tools": [AGENT_TOOL],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "include": ["reasoning.encrypted_content"],
    "reasoning": {"effort": "medium", "summary": "auto"},
    "text": {"verbosity": "low"},
    "truncation": "auto",
    "prompt_cache_key": "session-1",
    "metadata": {"trace": "1"},
    "max_output_tokens": 6,
    "stream": True,
}
RESULTS = [{"type": "function_call_output", "call_id": call["id"], "output": "sunny"} for call in (CALL, CALL_2)]
RESPONSES: list[Step] = [
    ("POST", "/v1/responses", {**AGENT, "store": False, "input": [user("hi")]}),
    (
        "POST",
        "/v1/responses",
        {
            **AGENT,
            "store": True,
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None},
                *(
                    {
                        "type": "function_call",
                        "id": f"fc_{call['id']}",
                        "call_id": call["id"],
                        "status": "completed",
                        **call["function"],
                    }
                    for call in (CALL, CALL_2)
                ),
                *RESULTS,
            ],
        },
    ),
    ("POST", "/v1/responses", {**AGENT, "stream": False, "tool_choice": "none", "input": "and now?"}),
]

CODING: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 6,
    "system": [{"type": "text", "text": "you are an agent", **EPHEMERAL}],
    "tools": [{"name": "read_day", "description": "The weather of a day", "input_schema": WEATHER, **EPHEMERAL}],
    "metadata": {"user_id": "user_1"},
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "medium"},
    "stream": True,
}
FIRST = {"role": "user", "content": [{"type": "text", "text": "hi", **EPHEMERAL}]}
MESSAGES: list[Step] = [
    ("POST", "/v1/messages/count_tokens", {"model": "tiny", "messages": [FIRST], "tools": CODING["tools"]}),
    ("POST", "/v1/messages?beta=true", {**CODING, "messages": [FIRST]}),
    (
        "POST",
        "/v1/messages?beta=true",
        {
            **CODING,
            "messages": [
                FIRST,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "so", "signature": ""},
                        {"type": "text", "text": "I look."},
                        *(
                            {
                                "type": "tool_use",
                                "id": call["id"],
                                "name": "read_day",
                                "input": {"day": "mon", "hot": True},
                            }
                            for call in (CALL, CALL_2)
                        ),
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "call_1", "content": "no such file", "is_error": True},
                        {
                            "type": "tool_result",
                            "tool_use_id": "call_2",
                            "content": [{"type": "text", "text": "sunny"}],
                            **EPHEMERAL,
                        },
                    ],
                },
            ],
        },
    ),
    (
        "POST",
        "/v1/messages",
        {"model": "tiny", "max_tokens": 4, "messages": [user("a title"), {"role": "assistant", "content": "{"}]},
    ),
]

CARRIED: list[Step] = [
    (
        "POST",
        "/v1/chat/completions",
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "be nice", **EPHEMERAL}]},
                user("hi"),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"index": 0, **CALL}, {"index": 1, "id": "call_2", "function": CALL_2["function"]}],
                    "function_call": None,
                },
                {"role": "tool", "tool_call_id": "call_1", "name": "read_day", "content": "sunny"},
                {
                    "role": "tool",
                    "tool_call_id": "call_2",
                    "name": "read_day",
                    "content": [{"type": "text", "text": "hot"}],
                },
            ],
            "tools": [{"type": "function", "function": FUNCTION, **EPHEMERAL}],
            "tool_choice": "auto",
            "max_tokens": 6,
            "user": "u",
        },
    ),
]

SESSIONS: dict[str, tuple[list[Step], dict[str, str]]] = {
    "a chat front end": (FRONT_END, {"x-openwebui-user-name": "N", "x-openwebui-chat-id": "1"}),
    "a code assistant": (ASSISTANT, {"x-api-key": "none"}),
    "an agent over responses": (RESPONSES, {"openai-beta": "responses=v1", "x-stainless-lang": "python"}),
    "a coding agent over messages": (
        MESSAGES,
        {"anthropic-version": "2023-06-01", "anthropic-beta": "prompt-caching-2024-07-31", "x-app": "cli"},
    ),
    "an agent that litellm carries": (CARRIED, {}),
}
LAST = {
    "/v1/chat/completions": "[DONE]",
    "/v1/completions": "[DONE]",
    "/v1/responses": ("response.completed", "response.incomplete"),
    "/v1/messages": ("message_stop",),
}


@pytest.mark.parametrize("name", SESSIONS)
def test_every_request_of_a_session_is_answered(mixed_server: Server, name: str) -> None:
    steps, headers = SESSIONS[name]
    for method, path, body in steps:
        sent = {} if body is None else {"json": body}
        reply = mixed_server.request(method, path, headers=headers, **sent)
        assert reply.status_code == 200, (path, reply.text)
        if body is not None and body.get("stream"):
            check_stream(path.partition("?")[0], reply.text)
        else:
            assert isinstance(reply.json(), dict)
    assert mixed_server.idle()


def check_stream(path: str, text: str) -> None:
    """Whole events, of which the last says that it is the last and none that something failed."""
    payloads = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    last = LAST[path]
    if isinstance(last, str):
        assert payloads.pop() == last
    events: list[Mapping[str, Any]] = [json.loads(payload) for payload in payloads]
    assert events
    assert not any("error" in event and event["error"] for event in events), events[-1]
    if not isinstance(last, str):
        assert events[-1]["type"] in last
