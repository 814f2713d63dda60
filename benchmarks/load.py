"""A load client: completions of random token ids against a running server, all at once; prints one JSON object.

It runs as a process of its own, so that what it costs can be told from what the server costs.

usage: load.py URL MODEL [MODEL …] [--requests 16] [--prompt 128] [--output 128] [--seed 0] [--stream]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time

import httpx

from peers import prompt_tokens

VOCABULARY = 40_000


def cpu_seconds() -> float:
    """What this process has computed so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def send_completion(client: httpx.AsyncClient, body: dict, first: list[float]) -> int:
    """Tokens that came; appends the seconds until the first event where it streams."""
    start = time.perf_counter()
    if not body["stream"]:
        reply = await client.post("/completions", json=body)
        reply.raise_for_status()
        return reply.json()["usage"]["completion_tokens"]
    tokens = 0
    async with client.stream("POST", "/completions", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            if not tokens:
                first.append(time.perf_counter() - start)
            usage = json.loads(line[6:]).get("usage")
            tokens = usage["completion_tokens"] if usage else max(tokens, 1)
    return tokens


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stream", action="store_true")
    options = parser.parse_args()
    bodies = [
        {
            "model": options.models[i % len(options.models)],
            "prompt": prompt_tokens(options.prompt, VOCABULARY, options.seed * options.requests + i),
            "max_tokens": options.output,
            "temperature": 0,
            "ignore_eos": True,
            "stream": options.stream,
            **({"stream_options": {"include_usage": True}} if options.stream else {}),
        }
        for i in range(options.requests)
    ]
    first: list[float] = []
    async with httpx.AsyncClient(base_url=options.url, timeout=600, trust_env=False) as client:
        start, before = time.perf_counter(), cpu_seconds()
        tokens = sum(await asyncio.gather(*(send_completion(client, body, first) for body in bodies)))
        seconds = time.perf_counter() - start
    used = cpu_seconds() - before
    summary = {"tokens": tokens, "seconds": seconds, "cpu_seconds": used, "first": sorted(first)}
    print(json.dumps(summary))


if __name__ == "__main__":
    asyncio.run(main())
