"""Measures LoRA training steps of a base on this machine, for `economics`: a few steps of several sizes, fitted.
seconds = fixed + token_seconds · tokens + pair_seconds · query-key pairs + target_seconds · tokens to learn"""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.core.errors import UsageError
from bedplate.core.progress import Progress
from bedplate.economics.hardware.machine import TuningSpeed
from bedplate.economics.serving.replica import shape_of
from bedplate.models.checkpoints.base import Base
from bedplate.models.model import Model
from bedplate.models.precision import dtype_name
from bedplate.training.batch import TrainingExample
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.language import Sft
from bedplate.training.sources import ExampleSource

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
