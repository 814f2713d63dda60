"""What a kept reply was asked with, as /v1/responses lists it: a conversation's messages as input items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]


def input_items(name: str, messages: Sequence[Mapping[str, Any]]) -> list[Json]:
    """One item for each message, and for each call of a tool. name: the reply's id, from which theirs are made."""
    rows: list[Json] = []

    def add(item_type: str, prefix: str, **fields: Any) -> None:
        rows.append({"id": f"{prefix}_{name.removeprefix('resp_')}_in{len(rows)}", "type": item_type, **fields})

    for message in messages:
        role, content = message["role"], message["content"]
        if role == "tool":
            add("function_call_output", "fco", call_id=message["tool_call_id"], output=content, status="completed")
            continue
        if message.get("reasoning_content"):
            reasoning = [{"type": "reasoning_text", "text": message["reasoning_content"]}]
            add("reasoning", "rs", summary=[], content=reasoning, status="completed")
        if content or not message.get("tool_calls"):
            part = {"type": "output_text", "annotations": []} if role == "assistant" else {"type": "input_text"}
            add("message", "msg", role=role, content=[{**part, "text": content}], status="completed")
        for call in message.get("tool_calls") or ():
            add("function_call", "fc", call_id=call["id"], **call["function"], status="completed")
    return rows
