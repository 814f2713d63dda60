"""Measures what a running server adds to its engine: to a call, to the step that it starts in, to a step and its rows.

Streamed completions of known sizes are timed from outside, alone and several at once; what an engine of the same speed
would take (simulated) is taken off. The server must run on this machine, with nobody else asking, and without guessing
tokens (`speculate: false` in its file), because random prompts make text that is guessed too well.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import httpx

from bedplate.core.errors import EndpointError
from bedplate.core.progress import Progress
from bedplate.economics.machine import EngineSpeed, ServerSpeed
from bedplate.economics.simulation import Service, simulate
from bedplate.economics.steps import MeasuredSteps
from bedplate.economics.traffic import Call

PROMPT, SHORT, LONG, TOGETHER, TURNS = 64, 1, 49, 8, 10
SHORTS = 5
"""Short calls of a turn: what they take beside the engine is little, so that many are needed to see it."""


def measure_server(url: str, model: str, speed: EngineSpeed, vocabulary: int, key: str | None = None) -> ServerSpeed:
    """Asks `model` of the server at `url` (with or without /v1). Raises EndpointError where it does not answer."""
    return asyncio.run(_measure(url.rstrip("/").removesuffix("/v1") + "/v1", model, speed, vocabulary, key))


async def _measure(url: str, model: str, speed: EngineSpeed, vocabulary: int, key: str | None) -> ServerSpeed:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    generator = random.Random(0)
    found: dict[tuple[int, int], list[float]] = {}
    kinds = ((1, SHORT), (TOGETHER, SHORT), (1, LONG), (TOGETHER, LONG))
    turn_of = kinds[:2] * SHORTS + kinds[2:]
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, trust_env=False) as client:
        with Progress(f"{model}: its server", TURNS * len(turn_of), "turns") as bar:
            for turn in range(TURNS):
                for kind in turn_of:
                    rows, output = kind
                    bodies = [_body(model, generator, vocabulary, output) for _ in range(rows)]
                    seconds = await _together(client, bodies)
                    bar.advance(1)
                    if turn:  # the first turn warms it up
                        found.setdefault(kind, []).append(seconds - _simulated(speed, rows, output))
    return fit_server(*(statistics.median(found[kind]) for kind in kinds))


def fit_server(one: float, several: float, long: float, several_long: float) -> ServerSpeed:
    """From what calls took beyond their engine: one of `SHORT` tokens and `TOGETHER` at once, the same of `LONG`.

    r calls of n tokens at once add call + r · start + n · (step + r · row). Nothing adds less than nothing.
    """
    alone = max((long - one) / (LONG - SHORT), 0.0)
    together = max((several_long - several) / (LONG - SHORT), alone)
    row = min((together - alone) / (TOGETHER - 1), alone)
    step = alone - row
    start = max((several - one - SHORT * (TOGETHER - 1) * row) / (TOGETHER - 1), 0.0)
    call = max(one - start - SHORT * alone, 0.0)
    return ServerSpeed(call_seconds=call, start_seconds=start, step_seconds=step, row_seconds=row)


def _simulated(speed: EngineSpeed, rows: int, output: int) -> float:
    service = Service(MeasuredSteps(speed, served=False), max_rows=max(rows, 1))
    outcome = simulate(service, [Call(0.0, PROMPT, 0, output) for _ in range(rows)])
    return outcome.seconds


def _body(model: str, generator: random.Random, vocabulary: int, output: int) -> dict[str, Any]:
    prompt = [generator.randrange(vocabulary) for _ in range(PROMPT)]
    body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": output, "stream": True}
    return body | {"temperature": 0, "ignore_eos": True}


async def _together(client: httpx.AsyncClient, bodies: Sequence[dict[str, Any]]) -> float:
    """Seconds until the last of some calls, sent at once, has ended."""
    start = time.perf_counter()
    await asyncio.gather(*(_ask(client, body) for body in bodies))
    return time.perf_counter() - start


async def _ask(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    try:
        async with client.stream("POST", "/completions", json=body) as reply:
            if reply.status_code != 200:
                said = (await reply.aread()).decode("utf-8", "replace")[:200]
                raise EndpointError(f"{client.base_url} answered {reply.status_code}: {said}")
            async for _ in reply.aiter_raw():
                pass
    except httpx.HTTPError as error:
        raise EndpointError(
            f"{client.base_url} was not reached or broke off: {error or type(error).__name__}"
        ) from error
