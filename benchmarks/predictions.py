"""Predicted against measured on this machine: steps of an engine, LoRA tuning, and a live server under load.

The machine is calibrated first (economics.machine), then predicted at batch sizes, contexts, prompt lengths and
training steps that calibration did not see, and measured there. The server is simulated with the same calls that a
client with a timetable then sends it, at shares of the rate that saturates it. Nothing else should run meanwhile: a
quiet machine is what calibration describes. A machine that others share is faster in one minute than in another, so
all of it is done in several rounds, each calibrated before and after; a row compares the medians of the rounds.

usage: predictions.py [--weights int4] [--parts steps,tuning,serving] [--rounds 3] [--calls 80] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bedplate.economics.hardware.machine import EngineSpeed, Load, ServerSpeed, step_seconds
from bedplate.economics.serving.replica import MeasuredSteps
from bedplate.economics.serving.serving_cost import saturated_rates
from bedplate.economics.serving.simulation import (
    ArrivingCall,
    ServiceModel,
    Traffic,
    parse_lengths,
    percentile,
    simulate,
)
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Sampling
from bedplate.inference.engine.stats import StepRecord
from bedplate.inference.measure.speeds import (
    StepKind,
    fastest_steps,
    load_of,
    measure_engine,
    measure_server,
    measure_tuning,
)
from bedplate.models.checkpoints.base import Base
from comparison import start
from peers import BASE, our_base
from servers import running

PROMPTS = (48, 100, 200, 300, 400, 700, 1000, 1800)
BATCHES, CONTEXTS, DECODED = (1, 5, 7, 10, 14), (100, 400, 1500), 32  # of these batches, 1 alone was calibrated with
TUNED = (StepKind(16, 48, 1), StepKind(8, 128, 1), StepKind(1, 512, 1), StepKind(4, 128, 100), StepKind(6, 200, 40))
LOADS = (0.3, 0.6, 0.9)
TRAFFIC = Traffic(parse_lengths("100-400", "prompt"), parse_lengths("16-96", "output"))


@dataclass(frozen=True)
class Row:
    """One prediction, in seconds: a value of each round."""

    name: str
    measured: tuple[float, ...]
    predicted: tuple[float, ...]
    goal: float

    @property
    def seconds(self) -> tuple[float, float]:
        """Measured, and predicted."""
        return statistics.median(self.measured), statistics.median(self.predicted)

    @property
    def error(self) -> float:
        measured, predicted = self.seconds
        return predicted / measured - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="int4", choices=("bfloat16", "int8", "int4"))
    parser.add_argument("--parts", default="steps,tuning,serving")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--markdown", type=Path)
    options = start(parser).options
    base, parts = our_base(), options.parts.split(",")
    rows_by_name: dict[str, list[Row]] = {}
    for number in range(options.rounds):
        speed = measure_engine(base, BASE, weights=options.weights) if {"steps", "serving"} & set(parts) else None
        rows: list[Row] = []
        if speed is not None and "steps" in parts:
            timings = steps(base, options.weights, options.repeats)
            after = measure_engine(base, BASE, weights=options.weights)
            rows += predicted_steps(timings, (speed, after))
            speed = after
        if "tuning" in parts:
            rows += tuning(base)
        if speed is not None and "serving" in parts:
            rows += serving(base, speed, options.weights, options.calls, seed=7 + number)
        print(f"round {number + 1} of {options.rounds}")
        for row in rows:
            print(row_line(row))
            rows_by_name.setdefault(row.name, []).append(row)
    print("all rounds")
    rows = [pooled(of) for of in rows_by_name.values()]
    for row in rows:
        print(row_line(row))
    if options.markdown is not None:
        options.markdown.write_text(markdown(rows), "utf-8")
    print(json.dumps([dict(zip(("what", "measured", "predicted"), (r.name, *r.seconds), strict=True)) for r in rows]))


def pooled(rows: Sequence[Row]) -> Row:
    """All rounds' values as one row."""
    return replace(
        rows[0],
        measured=tuple(value for row in rows for value in row.measured),
        predicted=tuple(value for row in rows for value in row.predicted),
    )


def row_line(row: Row) -> str:
    """A row for people."""
    measured, predicted = row.seconds
    return (
        f"{row.name}: measured {measured * 1e3:.4g} ms, predicted {predicted * 1e3:.4g} ms, "
        f"{row.error:+.1%} (goal {row.goal:.0%}, {'met' if abs(row.error) <= row.goal else 'MISSED'})"
    )


StepTimings = dict[tuple[str, int, int], list[tuple[float, list[Load]]]]
"""By what was done, how many at once, and the prompt's tokens: seconds, and the steps that they are of."""


def steps(base: Base, weights: str, repeats: int) -> StepTimings:
    """Whole prompts, and decoding steps at contexts that calibration did not see, of as many rows but for one."""
    log, generator = list[StepRecord](), random.Random(9)

    def prompt(count: int) -> tuple[int, ...]:
        return tuple(generator.randrange(base.spec.vocab_size) for _ in range(count))

    def generation(tokens: tuple[int, ...], count: int) -> Generate:
        return Generate(tokens, Sampling(max_tokens=count, ignore_eos=True))

    step_shapes = [("prefill", 1, tokens) for tokens in PROMPTS]
    step_shapes += [("decode", batch, context) for context in CONTEXTS for batch in BATCHES]
    timings: StepTimings = {shape: [] for shape in step_shapes}
    with Engine(base, weights=weights, speculate=False, on_step=log.append) as engine:
        engine.run([generation(prompt(64), 8)])
        # No kind of step is measured in one moment alone.
        for _ in range(repeats):
            for shape in step_shapes:
                phase, batch, context = shape
                log.clear()
                if phase == "prefill":
                    engine.run([generation(prompt(context), 1)])
                    records, seconds = list(log), sum(record.seconds for record in log)
                else:
                    shared = prompt(context - 1)
                    engine.run([generation((*shared, token), DECODED) for token in prompt(batch)])
                    records = [r for r in log if r.decodes == batch == len(r.spans)]
                    seconds = statistics.median(r.seconds for r in records)
                timings[shape].append((seconds, [load_of(record) for record in records]))
    return timings


def predicted_steps(timings: StepTimings, speeds: Sequence[EngineSpeed]) -> Iterator[Row]:
    """Against the mean of what calibrations say."""
    for (phase, batch, context), times in timings.items():
        name = (
            f"prefill of {context} tokens" if phase == "prefill" else f"decode step, batch {batch}, context {context}"
        )
        of_all = sum if phase == "prefill" else statistics.median
        predicted = [
            statistics.fmean(of_all(step_seconds(speed, load) for load in loads) for speed in speeds)
            for _, loads in times
        ]
        yield Row(name, tuple(seconds for seconds, _ in times), tuple(predicted), 0.15)


def tuning(base: Base) -> Iterator[Row]:
    """LoRA training steps."""
    speed = measure_tuning(base, BASE)
    for workload, seconds in zip(TUNED, fastest_steps(base, BASE, TUNED), strict=True):
        name = f"LoRA step, {workload.examples} examples of {workload.tokens} tokens, {workload.targets} learned"
        predicted = speed.seconds(*workload.loads)
        yield Row(name, (seconds,), (predicted,), 0.15)


def serving(base: Base, speed: EngineSpeed, weights: str, count: int, seed: int) -> Iterator[Row]:
    """A live server against the simulation of the same calls."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "server.yaml"
        base_yaml = f"{{source: {BASE}, name: {BASE}, dtype: bfloat16, weights: {weights}, speculate: false}}"
        file.write_text(f"bases: [{base_yaml}]\nport: 0\n", "utf-8")
        with running("--config", str(file)) as url:
            before = measure_server(url, BASE, speed, base.spec.vocab_size)
            rates = saturated_rates(_service(speed, before), TRAFFIC, 1)
            loads = [TRAFFIC.calls(load * rates[0], count, seed) for load in LOADS]
            live = [sent(url, calls, 100 * seed + number, Path(directory)) for number, calls in enumerate(loads)]
            server = _mean_speed(before, measure_server(url, BASE, speed, base.spec.vocab_size))
    print(f"the server adds: {server.model_dump()}")
    service = _service(speed, server)
    for load, calls, latencies in zip(LOADS, loads, live, strict=True):
        simulated = simulate(service, calls)
        for share in (0.5, 0.95):
            for name, measured, predicted in (
                ("answer", latencies["total"], simulated.total_seconds),
                ("first token", latencies["first"], simulated.first_token_seconds),
            ):
                title = f"served at {load:.0%} load, {name} p{100 * share:.0f}"
                yield Row(title, (percentile(measured, share),), (percentile(predicted, share),), 0.20)


def _service(speed: EngineSpeed, server: ServerSpeed) -> ServiceModel:
    return ServiceModel(MeasuredSteps(speed.model_copy(update={"server": server})), call_seconds=server.call_seconds)


def _mean_speed(before: ServerSpeed, after: ServerSpeed) -> ServerSpeed:
    """The means of two calibrations."""
    first, second = before.model_dump(), after.model_dump()
    return ServerSpeed(**{name: (first[name] + second[name]) / 2 for name in first})


def sent(url: str, calls: list[ArrivingCall], seed: int, directory: Path) -> dict[str, list[float]]:
    """What the load client saw of these calls."""
    file = directory / "calls.json"
    file.write_text(json.dumps([[call.at, call.prompt_tokens, call.output_tokens] for call in calls]), "utf-8")
    script = str(Path(__file__).parent / "arrivals.py")
    command = [sys.executable, script, url, BASE, str(file), "--seed", str(seed)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def markdown(rows: list[Row]) -> str:
    """The documentation's table."""
    lines = ["| what | measured | predicted | error |", "|---|---|---|---|"]
    for row in rows:
        measured, predicted = row.seconds
        lines.append(f"| {row.name} | {measured * 1e3:.4g} ms | {predicted * 1e3:.4g} ms | {row.error:+.1%} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
