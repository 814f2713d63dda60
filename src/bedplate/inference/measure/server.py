"""Measures what a running server adds to its engine: to a call, to the step that it starts in, to a step and its rows.

Streamed completions of known sizes are timed from outside, alone and several at once. What a longer prompt takes more,
over what it would take more in an engine alone (simulated), is the engine's pace in the server; the rest is the
server's own work. The server must run on this machine, with nobody else asking, and without guessing
tokens (`speculate: false` in its file), because random prompts make text that is guessed too well.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from bedplate.core.errors import EndpointError
from bedplate.core.progress import Progress
from bedplate.economics.hardware.machine import EngineSpeed, ServerSpeed
from bedplate.economics.serving.replica import MeasuredSteps
from bedplate.economics.serving.simulation import ArrivingCall, ServiceModel, simulate

PROMPT, LONG_PROMPT = 64, 320
SHORT, LONG, TOGETHER, TURNS = 1, 49, 8, 8
SHORTS = 5
"""Short calls of a turn: what they take beside the engine is little, so that many are needed to see it."""
CallShape = tuple[int, int, int]
"""Calls at once, tokens of each one's prompt and of its answer."""
CALL_SHAPES: tuple[CallShape, ...] = (
    (1, PROMPT, SHORT),
    (1, LONG_PROMPT, SHORT),
    (TOGETHER, PROMPT, SHORT),
    (1, PROMPT, LONG),
    (TOGETHER, PROMPT, LONG),
)
_LEAST_PACE = 0.1  # a machine that did something else in all of the short calls must not make a server of no time


def measure_server(url: str, model: str, speed: EngineSpeed, vocabulary: int, key: str | None = None) -> ServerSpeed:
    """Asks `model` of the server at `url` (with or without /v1). Raises EndpointError where it does not answer."""
    return asyncio.run(_measure(url.rstrip("/").removesuffix("/v1") + "/v1", model, speed, vocabulary, key))


async def _measure(url: str, model: str, speed: EngineSpeed, vocabulary: int, key: str | None) -> ServerSpeed:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    generator = random.Random(0)
    turn_of = CALL_SHAPES[:3] * SHORTS + CALL_SHAPES[3:]
    seconds_by_shape: dict[CallShape, list[float]] = {shape: [] for shape in CALL_SHAPES}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, trust_env=False) as client:
        with Progress(f"{model}: its server", TURNS * len(turn_of), "turns") as bar:
            for turn in range(TURNS):
                for shape in turn_of:
                    rows, prompt, output = shape
                    bodies = [_body(model, generator, vocabulary, prompt, output) for _ in range(rows)]
                    seconds = await _together(client, bodies)
                    bar.advance(1)
                    if turn:  # the first turn warms it up
                        seconds_by_shape[shape].append(seconds)
    return fit_server(speed, {shape: statistics.median(seconds) for shape, seconds in seconds_by_shape.items()})


def fit_server(speed: EngineSpeed, call_times: Mapping[CallShape, float]) -> ServerSpeed:
    """From the seconds that calls of each kind took. r calls of n tokens at once take pace · engine + call + r · start
    + n · (step + r · row). Nothing adds less than nothing."""
    engine = {shape: _simulated(speed, *shape) for shape in CALL_SHAPES}
    short, long_prompt = CALL_SHAPES[:2]
    engine_difference = engine[long_prompt] - engine[short]
    pace = 1.0
    if engine_difference > 0:
        pace = max((call_times[long_prompt] - call_times[short]) / engine_difference, _LEAST_PACE)
    single, _, several, long, several_long = (call_times[shape] - pace * engine[shape] for shape in CALL_SHAPES)
    alone = max((long - single) / (LONG - SHORT), 0.0)
    together = max((several_long - several) / (LONG - SHORT), alone)
    row = min((together - alone) / (TOGETHER - 1), alone)
    step = alone - row
    start = max((several - single - SHORT * (TOGETHER - 1) * row) / (TOGETHER - 1), 0.0)
    call = max(single - start - SHORT * alone, 0.0)
    return ServerSpeed(pace=pace, call_seconds=call, start_seconds=start, step_seconds=step, row_seconds=row)


def _simulated(speed: EngineSpeed, rows: int, prompt: int, output: int) -> float:
    service = ServiceModel(MeasuredSteps(speed, served=False), max_rows=max(rows, 1))
    outcome = simulate(service, [ArrivingCall(0.0, prompt, 0, output) for _ in range(rows)])
    return outcome.seconds


def _body(model: str, generator: random.Random, vocabulary: int, prompt: int, output: int) -> dict[str, Any]:
    tokens = [generator.randrange(vocabulary) for _ in range(prompt)]
    body: dict[str, Any] = {"model": model, "prompt": tokens, "max_tokens": output, "stream": True}
    return body | {"temperature": 0, "ignore_eos": True}


async def _together(client: httpx.AsyncClient, bodies: Sequence[dict[str, Any]]) -> float:
    """Seconds until the last of some calls, sent at once, has ended."""
    start = time.perf_counter()
    await asyncio.gather(*(_send_completion(client, body) for body in bodies))
    return time.perf_counter() - start


async def _send_completion(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    try:
        async with client.stream("POST", "/completions", json=body) as reply:
            if reply.status_code != 200:
                message = (await reply.aread()).decode("utf-8", "replace")[:200]
                raise EndpointError(f"{client.base_url} answered {reply.status_code}: {message}")
            async for _ in reply.aiter_raw():
                pass
    except httpx.HTTPError as error:
        raise EndpointError(f"{client.base_url} was not reached or broke off: {error!r}") from error
