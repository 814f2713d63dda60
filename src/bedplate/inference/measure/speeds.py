"""Measures this machine and an engine's steps on it, for `economics`, which predicts from them.

Steps of planned sizes are timed by the engine itself, several times each. Medians of equal steps are fitted, relative
errors weighing alike, under the condition that nothing costs less than nothing (non-negative least squares, Lawson and
Hanson 1974). So are a few LoRA training steps of several sizes:

seconds = fixed + token_seconds · tokens + pair_seconds · query-key pairs + target_seconds · tokens to learn

What a running server adds to its engine is measured from outside, by streamed completions of known sizes, alone and
several at once. What a longer prompt takes more, over what it would take more in an engine alone (simulated), is the
engine's pace in the server; the rest is the server's own work. The server must run on this machine, with nobody else
asking, and without guessing tokens (`speculate: false` in its file): random prompts make text that is guessed too well.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.core.errors import EndpointError, UsageError
from bedplate.core.processor import processor
from bedplate.core.progress import Progress
from bedplate.economics.hardware.machine import (
    EngineSpeed,
    Load,
    MeasuredMachine,
    SecondsCurve,
    ServerSpeed,
    StepSpread,
    TuningSpeed,
)
from bedplate.economics.serving.replica import MeasuredSteps, shape_of
from bedplate.economics.serving.simulation import ArrivingCall, ServiceModel, simulate
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Sampling
from bedplate.inference.engine.stats import StepRecord
from bedplate.inference.execution.plan import Kernel, Weights
from bedplate.models.checkpoints.base import Base
from bedplate.models.model import Model
from bedplate.models.precision import dtype_name
from bedplate.training.batch import TrainingExample
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.language import Sft
from bedplate.training.sources import ExampleSource

# Steps of these sizes are measured; economics goes straight between them.
PROMPTS = (1, 4, 16, 32, 64, 128, 256, 512)
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)
CONTEXTS = (32, 768)
_DECODES, _REPEATS = 24, 7
_BYTES, _SIZE, _SECONDS = 1 << 28, 1536, 0.4


def measure_machine() -> MeasuredMachine:
    """Memory bandwidth and products of this machine, as torch on its threads reaches them."""
    values, flops = torch.ones(_BYTES // 4), dict[str, float]()
    with Progress("this machine", 4, "measurements") as bar:
        bandwidth = _BYTES / _best(values.sum)  # of a vector that no cache holds
        bar.advance(1)
        for dtype in (torch.float32, torch.bfloat16):
            flops[str(dtype).removeprefix("torch.")] = _products(dtype)
            bar.advance(1)
        eight = _int8_products()
        bar.advance(1)
    flops |= {} if eight is None else {"int8": eight}
    return MeasuredMachine(
        cpu=processor().name,
        threads=torch.get_num_threads(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        measured_at=datetime.date.today(),
        software={"python": platform.python_version(), "torch": str(torch.__version__)},
        bandwidth_bytes_per_second=bandwidth,
        flops_per_second=flops,
    )


def _products(dtype: torch.dtype) -> float:
    a, b = torch.ones(_SIZE, _SIZE, dtype=dtype), torch.ones(_SIZE, _SIZE, dtype=dtype)
    return 2 * _SIZE**3 / _best(lambda: a @ b)


def _int8_products() -> float | None:
    """Products of 8-bit integers a second, summed in 32 bits; None where torch cannot compute them on this machine."""
    a, b = (torch.ones(_SIZE, _SIZE, dtype=torch.int8) for _ in range(2))
    try:
        return 2 * _SIZE**3 / _best(lambda: torch._int_mm(a, b))  # pyright: ignore[reportPrivateUsage]
    except RuntimeError:
        return None


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs: other work on the machine disturbs it least."""
    best, until = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def load_of(record: StepRecord) -> Load:
    """What a step had to do, as economics counts it."""
    prompts = record.spans[record.decodes :]
    return Load(
        tokens=sum(count for _, count, _ in record.spans),
        rows=sum(chosen for _, _, chosen in record.spans),
        keys=float(sum(begin + count for begin, count, _ in record.spans)),
        pairs=float(sum(count * begin + count * (count + 1) // 2 for begin, count, _ in prompts)),
        adapters=record.adapters,
        adapted_tokens=sum(count for _, count, _ in record.spans) if record.adapters else 0,
        copied=record.copied,
        started=sum(chosen for _, _, chosen in prompts),
        ended=record.ended,
    )


def measure_engine(
    base: Base, name: str, *, weights: Weights = "auto", kernel: Kernel = "auto", adapter_rank: int = 16
) -> EngineSpeed:
    """Runs steps of planned sizes on an engine of its own, on the base and under LoRA adapters of all linears, and fits
    their costs. `name`: what the base is to be found under. UsageError for an encoder."""
    if not base.writes:
        raise UsageError(f"{base.name} is an encoder; the steps of decoders can be measured")
    context = base.spec.context_length - _DECODES - 1
    contexts = sorted({min(length, context) for length in CONTEXTS})
    prompts = [prompt for prompt in PROMPTS if prompt <= context]
    records, batch = list[StepRecord](), max(BATCHES)
    slots: dict[str, Any] = {"max_rows": batch, "adapters": batch, "step_adapters": batch}
    with Engine(base, **slots, weights=weights, kernel=kernel, speculate=False, on_step=records.append) as engine:
        measured_steps = _run_steps(engine, records, contexts, prompts, BATCHES, [None])
        keys = _load_adapters(engine, batch, adapter_rank)
        measured_steps += _run_steps(engine, records, contexts[:1], prompts[-2:], (1, 4, batch), keys)
        return EngineSpeed(
            base=name,
            shape=shape_of(base.spec.main),
            weights=engine.weights,
            kernel=engine.kernel,
            threads=torch.get_num_threads(),
            measured_at=datetime.date.today(),
            adapter_rank=adapter_rank,
            **fit_engine(measured_steps),
        )


def _load_adapters(engine: Engine, count: int, rank: int) -> list[str]:
    """So many adapters of all linears with random weights; their keys."""
    config = LoraConfig(r=rank, alpha=2.0 * rank)
    keys = [f"adapter-{number}" for number in range(count)]
    _ = engine.base.model  # reads what is left of the weights, which an adapter is checked against
    slot = engine.bank.add(config, None, 0)
    first = engine.bank.state(slot)
    engine.bank.remove(slot)
    generator = torch.Generator().manual_seed(0)
    for key in keys:
        tensors = {name: 0.01 * torch.randn(t.shape, generator=generator).to(t.dtype) for name, t in first.items()}
        engine.load_adapter(key, config, tensors)
    return keys


@dataclass(frozen=True)
class MeasuredStep:
    """A kind of step, the median of its times, and how many there were."""

    load: Load
    seconds: float
    times: int


def _run_steps(
    engine: Engine,
    records: list[StepRecord],
    contexts: Sequence[int],
    prompts: Sequence[int],
    batches: Sequence[int],
    adapters: Sequence[str | None],
) -> list[MeasuredStep]:
    """Prompts of every size alone, one in several steps, and every batch at every context, a few times over. records:
    those that the engine's steps write."""
    generator, timings = random.Random(0), defaultdict[Load, list[tuple[float, float]]](list)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(generator.randrange(engine.base.spec.vocab_size) for _ in range(count))

    def run(prompts: Sequence[tuple[int, ...]], count: int) -> None:
        sampling = Sampling(max_tokens=count, ignore_eos=True)
        records.clear()
        engine.run([Generate(ids, sampling, adapter=adapters[i % len(adapters)]) for i, ids in enumerate(prompts)])
        for record in records:
            load = load_of(record)
            timings[_bucket(load)].append((record.seconds, load.keys))
        bar.advance(1)

    several_steps = min(3 * max(prompts), engine.base.spec.context_length - _DECODES)
    total = _REPEATS * (len(prompts) + 1 + len(contexts) * len(batches))
    label = "steps" if adapters[0] is None else "steps under adapters"
    with Progress(f"{engine.base.name}: {label}", total, "runs") as bar:
        for _ in range(_REPEATS):
            for count in (*prompts, several_steps):
                run([tokens(count)], 1)
            for context in contexts:
                shared = tokens(context - 1)
                for batch in batches:
                    run([(*shared, token) for token in tokens(batch)], _DECODES)
    return [
        MeasuredStep(load._replace(keys=statistics.fmean(keys)), statistics.median(seconds), len(seconds))
        for load, times in timings.items()
        for seconds, keys in [tuple(zip(*times, strict=True))]
    ]


def _bucket(load: Load) -> Load:
    """The same for steps whose sequences differ in length by a few tokens only."""
    return load._replace(keys=round(load.keys / (_DECODES * max(load.rows, 1))))


_RATES = {
    "key_seconds": "keys",
    "pair_seconds": "pairs",
    "copy_seconds": "copied",
    "start_seconds": "started",
    "end_seconds": "ended",
    "adapter_seconds": "adapters",
    "adapter_token_seconds": "adapted_tokens",
}
"""Fields of EngineSpeed, and what of a load each is the cost of."""


def fit_engine(measurements: Sequence[MeasuredStep]) -> dict[str, Any]:
    """Costs of a step's parts from steps of many kinds: fields of EngineSpeed."""
    from scipy.optimize import nnls

    tokens, rows = _knots(measurements)
    matrix = np.array([_features(measurement.load, tokens, rows) for measurement in measurements])
    seconds = np.array([measurement.seconds for measurement in measurements])
    weights = np.sqrt([measurement.times for measurement in measurements])
    costs, _ = nnls(matrix * (weights / seconds)[:, None], weights)
    fitted = matrix @ costs
    blocks, head, rates = np.split(costs, [len(tokens), len(tokens) + len(rows)])
    return {
        "blocks": SecondsCurve(counts=tokens, seconds=tuple(blocks.tolist())),
        "head": SecondsCurve(counts=rows, seconds=tuple(head.tolist())),
        **dict(zip(_RATES, rates.tolist(), strict=True)),
        "measured": tuple(
            StepSpread(
                load={k: v for k, v in measurement.load._asdict().items() if v},
                seconds=measurement.seconds,
                fitted=predicted,
            )
            for measurement, predicted in zip(measurements, fitted.tolist(), strict=True)
        ),
    }


def _features(load: Load, tokens: Sequence[int], rows: Sequence[int]) -> list[float]:
    rates = [float(getattr(load, name)) for name in _RATES.values()]
    return [*_hats(load.tokens, tokens), *_hats(load.rows, rows), *rates]


def _knots(measurements: Sequence[MeasuredStep]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Counts at which the blocks' and the head's curves have a value of their own, not beyond what steps had. Steps of
    few tokens choose as many, so the head's curve has two points only: what it costs at all, and by row."""
    loads = [measurement.load for measurement in measurements]
    tokens, rows = max(load.tokens for load in loads), max(load.rows for load in loads)
    return tuple(sorted({n for n in (*BATCHES, *PROMPTS) if n <= tokens})), tuple(sorted({1, rows}))


def _hats(count: int, knots: Sequence[int]) -> list[float]:
    """The share that each knot's value has in the curve's value at `count`."""
    if count <= 0:
        return [0.0] * len(knots)
    if count >= knots[-1]:
        return [0.0] * (len(knots) - 1) + [count / knots[-1]]
    return [float(np.interp(count, knots, unit)) for unit in np.eye(len(knots))]


TURNS, STEPS = 3, 2
"""Each kind of step is measured in so many turns, of so many steps each: a machine that others share has slow seconds,
and no kind should fall into them alone."""


@dataclass(frozen=True)
class StepKind:
    """Training steps of `examples` examples of `tokens` tokens each, the last `targets` of which are learned."""

    examples: int
    tokens: int
    targets: int

    @property
    def loads(self) -> tuple[int, float, int]:
        """Tokens, query-key pairs (each example is causal) and tokens to learn, of all examples."""
        tokens = self.examples * self.tokens
        return tokens, tokens * (self.tokens + 1) / 2, self.examples * self.targets


_SIZES = ((2, 16, 1), (8, 32, 1), (16, 64, 1), (4, 256, 1), (2, 512, 1), (8, 64, 48), (4, 256, 192))
STEP_SHAPES = tuple(StepKind(*sizes) for sizes in _SIZES)


def measure_tuning(base: Base, name: str, *, rank: int = 16, shapes: Sequence[StepKind] = STEP_SHAPES) -> TuningSpeed:
    """Trains an adapter of all linears for a few steps of each kind, and fits what they took. The base is left as it
    was. UsageError for an encoder."""
    from scipy.optimize import nnls

    seconds = fastest_steps(base, name, shapes, rank)
    matrix = np.array([[1.0, *step_shape.loads] for step_shape in shapes])
    costs, _ = nnls(matrix / np.array(seconds)[:, None], np.ones(len(shapes)))
    fixed, token, pair, target = costs.tolist()
    return TuningSpeed(
        base=name,
        shape=shape_of(base.spec.main),
        dtype=dtype_name(base.dtype),
        rank=rank,
        threads=torch.get_num_threads(),
        measured_at=datetime.date.today(),
        fixed_seconds=fixed,
        token_seconds=token,
        pair_seconds=pair,
        target_seconds=target,
    )


def fastest_steps(
    base: Base, name: str, shapes: Sequence[StepKind], rank: int = 16, turns: int = TURNS, steps: int = STEPS
) -> list[float]:
    """Seconds of the fastest training step of each kind: other work on the machine disturbs it least. The first of each
    turn is left out. UsageError for an encoder."""
    if not base.writes:
        raise UsageError(f"{base.name} is an encoder; LoRA training is measured on decoders")
    seconds_by_shape: list[list[float]] = [[] for _ in shapes]
    with Progress(f"{name}: tuning", turns * len(shapes), "steps") as bar:
        for _ in range(turns):
            for step_shape, seconds in zip(shapes, seconds_by_shape, strict=True):
                seconds.extend(_step_seconds(base, base.model, step_shape, rank, steps))
                bar.advance(1)
    return [min(seconds) for seconds in seconds_by_shape]


def _step_seconds(base: Base, model: Model, step_shape: StepKind, rank: int, steps: int) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    count = step_shape.examples * (steps + 1)
    ids = torch.randint(base.spec.vocab_size, (count, step_shape.tokens), generator=generator).tolist()
    loss = (False,) * (step_shape.tokens - step_shape.targets) + (True,) * step_shape.targets
    examples = [TrainingExample(tuple(token_ids), loss, str(number)) for number, token_ids in enumerate(ids)]
    source = ExampleSource(examples, step_shape.examples, share_prefix=False, micro_tokens=1 << 20)
    bank = Bank(model, 1)
    slot = bank.add(LoraConfig(r=rank, alpha=2.0 * rank), None, 0)
    bank.select(slot)
    try:
        with tempfile.TemporaryDirectory() as directory:
            config = TrainConfig(learning_rate=1e-4, save_steps=None, save_seconds=None)
            result = train(model, source, Sft(), config, Path(directory), bank.parameters(slot))
            rows = [json.loads(line) for line in result.metrics_path.read_text("utf-8").splitlines()]
    finally:
        bank.select(None)
        bank.remove(slot)
        bank.close()
    return [row["tokens"] / row["tokens_per_second"] for row in rows[1:]]


PROMPT, LONG_PROMPT = 64, 320
SHORT, LONG, TOGETHER, SERVER_TURNS = 1, 49, 8, 8
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
        with Progress(f"{model}: its server", SERVER_TURNS * len(turn_of), "turns") as bar:
            for turn in range(SERVER_TURNS):
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
