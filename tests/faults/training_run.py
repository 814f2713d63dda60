"""A tiny training run as a process of its own, for the tests that kill it. Prints the hash of the final weights.

usage: training_run.py OUT [--at-step N [--signal NAME] | --kill-in-save N | --kill-after-save N] [--learning-rate X]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
from pathlib import Path

import torch

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.core.files import sha256_bytes
from bedplate.models.decoder import Decoder
from bedplate.models.specs.transformer import AttentionSpec, FeedForwardSpec, PositionSpec, Rope, TransformerSpec
from bedplate.training import loop, state
from bedplate.training.batch import TrainingExample
from bedplate.training.config import TrainConfig
from bedplate.training.objectives.language import Sft
from bedplate.training.sources import ExampleSource


def examples() -> list[TrainingExample]:
    draw = random.Random(1)
    samples = []
    for i in range(20):
        ids = (1, 2, 3, 4, 5, 6, *(draw.randrange(61) for _ in range(draw.randint(3, 9))))
        samples.append(TrainingExample(ids, (*(False,) * (len(ids) - 1), True), f"e{i}"))
    return samples


class Watched(Sft):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int | None, number: signal.Signals) -> None:
        super().__init__()
        self._countdown, self._number = step, number

    def __call__(self, models, batch):  # type: ignore[no-untyped-def]
        if self._countdown is not None:
            self._countdown -= 1
            if self._countdown == 0:
                os.kill(os.getpid(), self._number)
        return super().__call__(models, batch)


def kill_in_save(count: int, half_written: bool) -> None:
    """SIGKILL in the count-th save: after half of the file's bytes, or once the new file is in place."""
    real, countdown = state.save_file, [count]

    def save_file(tensors, path, header):  # type: ignore[no-untyped-def]
        real(tensors, path, header)
        countdown[0] -= 1
        if countdown[0] == 0:
            content = Path(path).read_bytes()
            if half_written:
                Path(path).write_bytes(content[: len(content) // 2])
            else:
                Path(path).replace(Path(path).with_name(state.STATE_FILE))
            os.kill(os.getpid(), signal.SIGKILL)

    state.save_file = save_file


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--at-step", type=int)
    parser.add_argument("--signal", default="SIGKILL")
    parser.add_argument("--kill-in-save", type=int)
    parser.add_argument("--kill-after-save", type=int)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--first-word", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = TransformerSpec(
        kind="decoder",
        vocab_size=61,
        hidden_size=32,
        layers=2,
        context_length=64,
        attention=AttentionSpec(heads=4, kv_heads=2, head_dim=8),
        feedforward=FeedForwardSpec(size=48),
        position=PositionSpec(rope=Rope()),
    )
    model = Decoder(spec, dtype=torch.bfloat16).requires_grad_(False)
    bank = Bank(model)
    slot = bank.add(LoraConfig(r=4, dropout=0.2), None, 0, trainable=True)
    bank.select(slot)
    if arguments.kill_in_save or arguments.kill_after_save:
        kill_in_save(arguments.kill_in_save or arguments.kill_after_save, bool(arguments.kill_in_save))
    data = examples()
    if arguments.first_word != 1:
        data[0] = TrainingExample((arguments.first_word, *data[0].ids[1:]), data[0].loss, "e0")
    config = TrainConfig(learning_rate=arguments.learning_rate, save_steps=3, save_seconds=None, seed=5)
    source = ExampleSource(data, 4, seed=5, epochs=4, order="shuffled", micro_tokens=30)
    objective = Watched(arguments.at_step, signal.Signals[arguments.signal])
    result = loop.train(model, source, objective, config, arguments.out, bank.parameters(slot))
    weights = b"".join(t.numpy().tobytes() for _, t in sorted(bank.state(slot).items()))
    lines = len(result.metrics_path.read_text().splitlines())
    sys.stdout.write(f"{sha256_bytes(weights)} {result.steps} {result.resumed_at} {lines}\n")


if __name__ == "__main__":
    main()
