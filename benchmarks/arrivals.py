"""A load client with a timetable: each call is sent at its time, whether or not earlier ones have been answered.

It reads a JSON list of [seconds from the start, prompt tokens, tokens to generate] and prints one JSON object: for
every call the seconds until its first token and until its end, and how late the client itself was in sending it.

usage: arrivals.py URL MODEL CALLS.json [--seed 0]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from pathlib import Path

import httpx

from load import VOCABULARY, cpu_seconds
from peers import prompt_tokens


async def send_call(client: httpx.AsyncClient, body: bytes, due: float) -> tuple[float, float, float]:
    """Seconds until the first token and the end, and how late the call was sent, all from when it was due."""
    await asyncio.sleep(max(due - time.perf_counter(), 0.0))
    late = time.perf_counter() - due
    first = None
    async with client.stream("POST", "/completions", content=body) as reply:
        reply.raise_for_status()
        async for chunk in reply.aiter_raw():
            if first is None and chunk:
                first = time.perf_counter() - due
    assert first is not None
    return first, time.perf_counter() - due, late


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("calls", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    calls: list[list[float]] = json.loads(options.calls.read_text("utf-8"))
    bodies = [
        json.dumps(
            {
                "model": options.model,
                "prompt": prompt_tokens(int(prompt), VOCABULARY, options.seed * len(calls) + i),
                "max_tokens": int(output),
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
        ).encode()
        for i, (_, prompt, output) in enumerate(calls)
    ]
    gc.freeze()
    headers = {"Content-Type": "application/json"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=options.url, timeout=600, trust_env=False, headers=headers, limits=limits
    ) as client:
        before, start = cpu_seconds(), time.perf_counter() + 0.2
        timings = await asyncio.gather(
            *(send_call(client, b, start + call[0]) for b, call in zip(bodies, calls, strict=True))
        )
        seconds = time.perf_counter() - start
    first, total, late = zip(*timings, strict=True)
    print(
        json.dumps(
            {"first": first, "total": total, "late": late, "seconds": seconds, "cpu_seconds": cpu_seconds() - before}
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
