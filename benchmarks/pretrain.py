"""Pretraining from random weights: tokens per second of the whole loop, beside transformers' Trainer and litgpt.

One llama-shaped architecture, the same rows of tokens, batch, precision, AdamW and clipping. Ours is `train` with its
source, packing, metrics and checks; the Trainer is used as it comes; litgpt's is its model and the step of its
`pretrain` (chunked cross-entropy, Fabric's clipping and precision). Each takes turns with a few steps, of which the
first, which warms up, does not count; of all steps the median does.

litgpt wants an older huggingface-hub than transformers does, so that it is in no extra. Give it a place of its own:
`pip install --no-deps --target DIR litgpt lightning lightning-utilities torchmetrics pytorch-lightning jsonargparse
typeshed_client`, then `--litgpt DIR`; without, it is left out, and said so.

usage: pretrain.py [--litgpt DIR] [--dtype float32] [--layers 6] [--vocabulary 8192] [--rows 8] [--rounds 4] [--steps 4]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import shaped
from bedplate.training.batch import PackedBatch
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives import NextToken
from bedplate.training.sources import DocumentSource
from comparison import Row, need, report, start

GOAL = 1.5
LENGTH, HIDDEN, HEADS, KV_HEADS, WIDE = 512, 512, 8, 4, 1536
RATE = 1e-4
Timed = Callable[[], list[float]]
"""Trains for some steps; seconds of each but the first."""


def _sizes(options: argparse.Namespace) -> shaped.Sizes:
    return shaped.Sizes(options.vocabulary, LENGTH, HIDDEN, options.layers, HEADS, KV_HEADS, WIDE)


def documents(rows: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, vocabulary, (LENGTH,), generator=generator).tolist() for _ in range(rows)]


def between(moments: list[float]) -> list[float]:
    return [b - a for a, b in itertools.pairwise(moments[1:])]


class Watched(DocumentSource):
    """Says when each step is drawn: from one to the next is all that a step takes."""

    moments: list[float]

    def __iter__(self) -> Iterator[tuple[PackedBatch, ...]]:
        self.moments = []
        for step in super().__iter__():
            self.moments.append(time.perf_counter())
            yield step


def ours(options: argparse.Namespace, rows: list[list[int]]) -> Timed:
    model = shaped.our_model(_sizes(options))
    config = TrainConfig(learning_rate=RATE, schedule="constant", save_seconds=None, dtype=options.dtype)

    def run() -> list[float]:
        source = Watched(rows, LENGTH, options.rows, epochs=1)
        with tempfile.TemporaryDirectory() as out:
            train(model, source, NextToken(), config, Path(out), model.named_parameters())
        return between(source.moments)

    return run


def trainer(options: argparse.Namespace, rows: list[list[int]]) -> Timed:
    from transformers import Trainer, TrainerCallback

    model = shaped.transformers_model(_sizes(options))
    data: Any = [{"input_ids": ids, "labels": ids} for ids in rows]

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.moments: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.moments.append(time.perf_counter())

    def run() -> list[float]:
        clock = Clock()
        with tempfile.TemporaryDirectory() as out:
            own = {"learning_rate": RATE, "lr_scheduler_type": "constant", "logging_steps": 1}
            arguments = shaped.trainer_arguments(out, options.rows, options.dtype, **own)
            Trainer(model, arguments, train_dataset=data, callbacks=[clock]).train()
        return between(clock.moments)

    return run


def litgpt(options: argparse.Namespace, rows: list[list[int]]) -> Timed:
    fabric = shaped.litgpt_fabric(options.dtype)
    model: Any = fabric.setup(shaped.litgpt_model(_sizes(options), fabric))
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    optimizer = fabric.setup_optimizers(optimizer)
    batches = torch.tensor(rows).split(options.rows)

    def run() -> list[float]:
        moments: list[float] = []
        for batch in batches:
            moments.append(time.perf_counter())
            shaped.litgpt_step(fabric, model, optimizer, batch, 1.0)
        return between(moments)

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--litgpt", type=Path)
    for name, value in (("layers", 6), ("vocabulary", 8192), ("rows", 8), ("rounds", 4), ("steps", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = start(parser).options
    warnings.simplefilter("ignore")
    peers = {"transformers": need("transformers", "transformers")}
    rows = documents(options.rows * (options.steps + 2), options.vocabulary)
    runs: dict[str, Timed] = {"ours": ours(options, rows), "transformers": trainer(options, rows)}
    if options.litgpt is None:
        print("litgpt is left out: --litgpt names no place of it")
    else:
        # Behind what is installed, whose versions count for everything that both have.
        sys.path.append(str(options.litgpt))
        peers["litgpt"] = version("litgpt")
        runs["litgpt"] = litgpt(options, rows)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            seconds[name] += run()
    tokens = options.rows * LENGTH
    speeds = {name: tokens / statistics.median(found) for name, found in seconds.items()}
    if options.profile:
        with torch.profiler.profile() as found:
            runs["ours"]()
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
    report(
        [Row(f"pretrain_{name}", speeds["ours"], speeds[name], "tok/s", name, of, GOAL) for name, of in peers.items()]
    )


if __name__ == "__main__":
    main()
