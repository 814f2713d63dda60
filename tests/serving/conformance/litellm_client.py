"""What litellm gets of a server, in a process of its own: it is large, and changes much of whoever imports it.

Reads {"url", "turn", "tools"} from standard input, and writes what came back.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm


def main() -> None:
    request = json.load(sys.stdin)
    url, turn, tools = request["url"], request["turn"], request["tools"]
    common: dict[str, Any] = {"api_key": "none", "temperature": 0, "num_retries": 0, "timeout": 60}
    ours = {"model": "openai/tiny", "api_base": f"{url}/v1", **common}
    theirs = {"model": "anthropic/tiny", "api_base": url, **common}
    outcomes: dict[str, Any] = {}
    for name, options in (("openai", ours), ("anthropic", theirs)):
        reply: Any = litellm.completion(**options, messages=turn, tools=tools, max_tokens=6)
        outcomes[name] = [reply.choices[0].message.content, reply.usage.completion_tokens]
        stream: Any = litellm.completion(**options, messages=turn, tools=tools, max_tokens=6, stream=True)
        outcomes[f"{name} streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        # a streamed call, put together by the client, goes back with its result
        hi = turn[:1]
        chunks = list(
            litellm.completion(
                **options,
                messages=hi,
                tools=tools,
                tool_choice="required",
                parallel_tool_calls=False,
                max_tokens=200,
                stream=True,
            )
        )
        whole: Any = litellm.stream_chunk_builder(chunks, messages=hi)
        message = whole.choices[0].message.model_dump(exclude_none=True)
        calls = message["tool_calls"]
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "ok"} for call in calls]
        follow_up: Any = litellm.completion(**options, messages=[*hi, message, *results], tools=tools, max_tokens=6)
        outcomes[f"{name} called"] = [
            [call["function"]["name"], json.loads(call["function"]["arguments"])] for call in calls
        ]
        outcomes[f"{name} prompts"] = [whole.usage.prompt_tokens, follow_up.usage.prompt_tokens]
    vectors: Any = litellm.embedding(
        model="openai/tiny", api_base=f"{url}/v1", api_key="none", input=["hi", "there"], encoding_format="float"
    )
    outcomes["vectors"] = [vector["embedding"] for vector in vectors.data]
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
