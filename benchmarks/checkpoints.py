"""How long training stands still for a checkpoint that two ranks write, beside the time between two checkpoints.

Two processes (gloo) shard a decoder of some 20 M parameters. `States.save` copies what each holds and writes the copy
while training goes on; the peer is the same state written before training goes on. A save a step is far more than
anybody wants: the share of the interval is given for the default, one a minute, as well.

usage: checkpoints.py [--steps 8]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bedplate.models.decoder import Decoder
from bedplate.models.specs.transformer import (
    AttentionSpec,
    FeedForwardSpec,
    NormSpec,
    PositionSpec,
    Rope,
    TransformerSpec,
)
from bedplate.training.config import ParallelConfig, TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.language import NextToken
from bedplate.training.parallel.apply import parallelised
from bedplate.training.parallel.launch import launched
from bedplate.training.parallel.sharded_states import DistributedStates
from bedplate.training.ranks import Ranks
from bedplate.training.sources import DocumentSource
from bedplate.training.state import RunState
from comparison import Row, report, start

SPEC = TransformerSpec(
    kind="decoder",
    vocab_size=4096,
    hidden_size=512,
    layers=6,
    context_length=256,
    attention=AttentionSpec(heads=8, kv_heads=4, head_dim=64),
    feedforward=FeedForwardSpec(size=1536),
    norm=NormSpec(eps=1e-5),
    position=PositionSpec(rope=Rope()),
    tied_head=True,
)
RANKS, LENGTH, ROWS, GOAL = 2, 256, 8, 20.0
WORKER = "BEDPLATE_BENCH_WORKER"


class Timed(DistributedStates):
    """Says how long each save takes until training goes on, and, with `waits`, until it is on the disk."""

    def __init__(self, out: Path, ranks: Ranks, waits: bool) -> None:
        super().__init__(out, ranks)
        self._waits, self.seconds = waits, list[float]()

    def save(self, step: int, state: RunState) -> None:
        began = time.perf_counter()
        super().save(step, state)
        if self._waits:
            self.settle()
        self.seconds.append(time.perf_counter() - began)


def worker(steps: int, result: Path) -> None:
    lines: list[str] = []
    with launched(), tempfile.TemporaryDirectory() as shared:
        for waits in (False, True):
            torch.manual_seed(0)
            model = Decoder(SPEC)
            ranks = parallelised(model, ParallelConfig())
            documents = torch.randint(
                0, 4096, (ROWS * steps, LENGTH), generator=torch.Generator().manual_seed(0)
            ).tolist()
            source = DocumentSource(documents, LENGTH, ROWS, shard=ranks.shard)
            out = Path(os.environ.get("BEDPLATE_BENCH_OUT", shared)) / str(waits)
            out.mkdir(exist_ok=True)
            store = Timed(out, ranks, waits)
            config = TrainConfig(save_seconds=None, save_steps=1, dtype="float32")
            trained = train(model, source, NextToken(), config, out, model.named_parameters(), store=store, ranks=ranks)
            lines.append(f"{statistics.median(store.seconds[1:-1])} {trained.seconds / trained.steps}")
        if ranks.main:
            result.write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    if WORKER in os.environ:
        worker(parser.parse_known_args()[0].steps, Path(os.environ[WORKER]))
        return
    options = start(parser).options
    with tempfile.TemporaryDirectory() as out:
        result = Path(out) / "result"
        environment = {**os.environ, WORKER: str(result), "BEDPLATE_BENCH_OUT": out}
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS), __file__]
        subprocess.run([sys.executable, *command, "--steps", str(options.steps)], env=environment, check=True)
        (stall, step), (waiting, _) = (map(float, line.split()) for line in result.read_text().splitlines())
    print(
        f"a step takes {step:.3f} s; a save holds it up for {stall:.3f} s, {stall / step:.1%} of a step, and "
        f"{stall / 60:.2%} of the minute between two saves"
    )
    report(
        [
            Row("checkpoint_stall", stall, waiting, "s", "the same, waited for", torch.__version__, None, True),
            Row("checkpoint_share", stall, 60.0, "s", "the interval between two", "-", GOAL, True),
        ]
    )


if __name__ == "__main__":
    main()
