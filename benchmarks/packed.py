"""Packed training of documents of very different lengths against as many tokens in equal rows: processor time and peak
memory of a step's forward and backward pass, each in a process of its own.

Two shapes: rows in which a long document stands beside short ones, and the rows of continued pretraining (many short
texts, some long ones). The peer is the same model on the same number of tokens, each row one document, by torch's own
attention.

usage: packed.py [--turns 3] [--layers 4]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch

from bedplate.data.packing import pack_documents
from bedplate.models.decoder import Decoder
from bedplate.models.inputs import Inputs
from bedplate.models.specs.transformer import AttentionSpec, FeedForwardSpec, PositionSpec, Rope, TransformerSpec
from bedplate.training.batch import PackedBatch, rows_batch
from bedplate.training.objectives.language import NextToken
from bedplate.training.objectives.token_term import token_losses
from comparison import Row, report, start

ROW = 2048
SHAPES: dict[str, tuple[int, list[int]]] = {
    "1,500 tokens beside 8": (ROW, [1500] * 2 + [8] * 136),
    "continued pretraining": (512, [40, 90, 25, 300, 60, 15, 150, 512] * 3 + [30, 70, 200, 124]),
}
"""The rows' length, and the documents'."""
GOAL = 1 / 1.2


def spec(layers: int) -> TransformerSpec:
    """SmolLM2-135M's blocks."""
    return TransformerSpec(
        kind="decoder",
        vocab_size=4096,
        hidden_size=576,
        layers=layers,
        context_length=ROW,
        attention=AttentionSpec(heads=9, kv_heads=3, head_dim=64),
        feedforward=FeedForwardSpec(size=1536),
        position=PositionSpec(rope=Rope(100_000.0)),
    )


def packed(row: int, lengths: list[int]) -> PackedBatch:
    documents = [[(7 * number + i) % 4096 for i in range(length)] for number, length in enumerate(lengths)]
    rows = pack_documents(lengths, row).rows
    return rows_batch(rows, documents, [str(number) for number in range(len(documents))], row)


def measure(shape: str, mode: str, turns: int, layers: int) -> dict[str, float]:
    """Seconds of the best turn, and the peak of this process's memory beyond what it took before, in MB."""
    torch.manual_seed(0)
    model = Decoder(spec(layers)).train()
    batch = packed(*SHAPES[shape])

    def loss() -> torch.Tensor:
        if mode == "packed":
            return NextToken()({"policy": model}, batch)["next_token"].total
        tokens = batch.tokens[:, : batch.token_count // len(batch.tokens)]
        hidden = model(Inputs(tokens)).hidden[:, :-1]
        return token_losses(model, hidden.reshape(-1, hidden.shape[-1]), tokens[:, 1:].reshape(-1))

    before, best = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, float("inf")
    for _ in range(turns):
        started = time.process_time()
        loss().backward()
        best = min(best, time.process_time() - started)
        model.zero_grad(set_to_none=True)
    return {"seconds": best, "mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def measure_isolated(shape: str, mode: str, options: argparse.Namespace) -> dict[str, float]:
    """`one` in its own process."""
    sizes = ["--turns", str(options.turns), "--layers", str(options.layers)]
    completed = subprocess.run(
        [sys.executable, __file__, "--one", shape, mode, *sizes], check=True, capture_output=True, text=True
    )
    result: dict[str, float] = json.loads(completed.stdout.splitlines()[-1])
    print(f"{shape}, {mode}: {result['seconds']:.2f} s, {result['mb']:,.0f} MB", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    if "--one" in sys.argv:
        parser.add_argument("--one", nargs=2)
        options = parser.parse_args()
        shape, mode = options.one
        print(json.dumps(measure(shape, mode, options.turns, options.layers)))
        return
    options = start(parser).options
    rows: list[Row] = []
    peer_fields: dict[str, Any] = {"peer_name": "torch, equal rows", "peer_version": torch.__version__}
    for shape in SHAPES:
        ours, peer = (measure_isolated(shape, mode, options) for mode in ("packed", "equal rows"))
        time_of, memory_of = (f"packed rows: {shape}, {quantity}" for quantity in ("a step", "peak memory"))
        rows.append(Row(time_of, ours["seconds"], peer["seconds"], "s", goal=GOAL, lower_is_better=True, **peer_fields))
        rows.append(Row(memory_of, ours["mb"], peer["mb"], "MB", goal=GOAL, lower_is_better=True, **peer_fields))
    report(rows)


if __name__ == "__main__":
    main()
