"""Pretraining from random weights: tokens per second of the whole loop, beside transformers' Trainer and litgpt.

One llama-shaped architecture, the same rows of tokens, batch, precision, AdamW and clipping. Ours is `train` with its
source, packing, metrics and checks; the Trainer is used as it comes; litgpt's is its model and the step of its
`pretrain` (chunked cross-entropy, Fabric's clipping and precision). Each takes turns with a few steps, of which the
first, which warms up, does not count; of all steps the median does.

Each precision has a row of its own: float32 all through, and bfloat16 products beside float32 masters, which is what
the peers call mixed. With `--compiled` the peers run once more under torch.compile, as litgpt's own command does, for
which there must be a C++ compiler; of a peer the faster way counts. Where the machine does other work, `--clock
processor` counts processor time, of one thread.

litgpt wants an older huggingface-hub than transformers does, so that it is in no extra. Give it a place of its own:
`pip install --no-deps --target DIR litgpt lightning lightning-utilities torchmetrics pytorch-lightning jsonargparse
typeshed_client`, then `--litgpt DIR`; without, it is left out, and said so.

usage: pretrain.py [--litgpt DIR] [--dtype float32|bfloat16] [--compiled] [--clock wall|processor] [--layers 6]
                   [--vocabulary 8192] [--rows 8] [--rounds 4] [--steps 4]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import shaped
from bedplate.training.batch import PackedBatch
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.language import NextToken
from bedplate.training.sources import DocumentSource
from comparison import Row, need, report, start

GOAL = 1.5
LENGTH, HIDDEN, HEADS, KV_HEADS, FEEDFORWARD = 512, 512, 8, 4, 1536
RATE = 1e-4
DTYPES = ("float32", "bfloat16")
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
Timed = Callable[[], list[float]]
"""Trains for some steps; seconds of each but the first."""


@dataclass(frozen=True)
class Setup:
    """One side in one precision. clock: what says how long its steps take."""

    options: argparse.Namespace
    dtype: str
    rows: list[list[int]]
    clock: Callable[[], float]
    compiled: bool = False


Builder = Callable[[Setup], Timed]


def _sizes(options: argparse.Namespace) -> shaped.Sizes:
    return shaped.Sizes(options.vocabulary, LENGTH, HIDDEN, options.layers, HEADS, KV_HEADS, FEEDFORWARD)


def documents(rows: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, vocabulary, (LENGTH,), generator=generator).tolist() for _ in range(rows)]


def intervals(moments: list[float]) -> list[float]:
    return [b - a for a, b in itertools.pairwise(moments[1:])]


class Watched(DocumentSource):
    """Says when each step is drawn: from one to the next is all that a step takes."""

    moments: list[float]
    clock: Callable[[], float] = time.perf_counter

    def __iter__(self) -> Iterator[tuple[PackedBatch, ...]]:
        self.moments = []
        for step in super().__iter__():
            self.moments.append(self.clock())
            yield step


def ours(setup: Setup) -> Timed:
    model = shaped.our_model(_sizes(setup.options))
    config = TrainConfig(learning_rate=RATE, schedule="constant", save_seconds=None, dtype=setup.dtype)  # type: ignore[arg-type]

    def run() -> list[float]:
        source = Watched(setup.rows, LENGTH, setup.options.rows, epochs=1)
        source.clock = setup.clock
        with tempfile.TemporaryDirectory() as out:
            train(model, source, NextToken(), config, Path(out), model.named_parameters())
        return intervals(source.moments)

    return run


def trainer(setup: Setup) -> Timed:
    from transformers import Trainer, TrainerCallback

    model = shaped.transformers_model(_sizes(setup.options))
    data: Any = [{"input_ids": ids, "labels": ids} for ids in setup.rows]

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.moments: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.moments.append(setup.clock())

    def run() -> list[float]:
        clock = Clock()
        with tempfile.TemporaryDirectory() as out:
            settings = {"learning_rate": RATE, "lr_scheduler_type": "constant", "logging_steps": 1}
            settings |= {"torch_compile": True} if setup.compiled else {}
            arguments = shaped.trainer_arguments(out, setup.options.rows, setup.dtype, **settings)
            Trainer(model, arguments, train_dataset=data, callbacks=[clock]).train()
        return intervals(clock.moments)

    return run


def litgpt(setup: Setup) -> Timed:
    fabric = shaped.litgpt_fabric(setup.dtype)
    model: Any = shaped.litgpt_model(_sizes(setup.options), fabric)
    model = fabric.setup(torch.compile(model) if setup.compiled else model)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    optimizer = fabric.setup_optimizers(optimizer)
    batches = torch.tensor(setup.rows).split(setup.options.rows)

    def run() -> list[float]:
        moments: list[float] = []
        for batch in batches:
            moments.append(setup.clock())
            shaped.litgpt_step(fabric, model, optimizer, batch, 1.0)
        return intervals(moments)

    return run


def compared(
    options: argparse.Namespace,
    dtype: str,
    rows: list[list[int]],
    peers: Mapping[str, tuple[str, Callable[[Setup], Timed]]],
) -> list[Row]:
    """peers: by name their version, and what makes them."""
    setup = Setup(options, dtype, rows, CLOCKS[options.clock])
    runs: dict[tuple[str, str], Timed] = {("ours", ""): ours(setup)}
    for name, (_, build) in peers.items():
        runs[name, ""] = build(setup)
        if options.compiled:
            runs[name, "compiled"] = build(replace(setup, compiled=True))
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(options.rounds):
        for key, run in runs.items():
            seconds[key] += run()
    tokens = options.rows * LENGTH
    speeds = {key: tokens / statistics.median(timings) for key, timings in seconds.items()}
    if options.profile:
        with torch.profiler.profile() as profiler:
            runs["ours", ""]()
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
    result_rows: list[Row] = []
    for name, (its_version, _) in peers.items():
        peer_speeds = {setting: speed for (contender, setting), speed in speeds.items() if contender == name}
        for setting, speed in peer_speeds.items():
            print(f"{name} in {dtype}{f', {setting}' if setting else ''}: {speed:,.0f} tok/s")
        best = max(peer_speeds, key=lambda setting: peer_speeds[setting])
        label = f"pretrain_{name}" + ("" if dtype == DTYPES[0] else f"_{dtype}")
        setting = f"{dtype}, {best}" if best else dtype
        result_rows.append(
            Row(label, speeds["ours", ""], peer_speeds[best], "tok/s", name, its_version, GOAL, peer_setting=setting)
        )
    return result_rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", choices=DTYPES, help="this precision alone")
    parser.add_argument("--litgpt", type=Path)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    for name, value in (("layers", 6), ("vocabulary", 8192), ("rows", 8), ("rounds", 4), ("steps", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = start(parser).options
    warnings.simplefilter("ignore")
    peers = {"transformers": (need("transformers", "transformers"), trainer)}
    if options.litgpt is None:
        print("litgpt is left out: --litgpt names no place of it")
    else:
        # Behind what is installed, whose versions count for everything that both have.
        sys.path.append(str(options.litgpt))
        peers["litgpt"] = version("litgpt"), litgpt
    rows = documents(options.rows * (options.steps + 2), options.vocabulary)
    report([row for dtype in DTYPES if options.dtype in (None, dtype) for row in compared(options, dtype, rows, peers)])


if __name__ == "__main__":
    main()
