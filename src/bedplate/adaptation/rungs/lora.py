"""Low-rank adaptation of all linears, a few seeds, one of them chosen on valid.

LoRA: https://arxiv.org/abs/2106.09685; with magnitudes of their own, DoRA: https://arxiv.org/abs/2402.09353.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.rungs.tuning import ADAPTER_COST, Recipe, TuningRung
from bedplate.adaptation.task.task_prompt import TaskOutput
from bedplate.adapters.lora import LoraConfig
from bedplate.skins.skin import LoraPart, Skin
from bedplate.training.config import TrainConfig
from bedplate.training.loop import TrainResult, train
from bedplate.training.objectives import Sft
from bedplate.training.sources import ExampleSource


class Lora(TuningRung):
    """A skin with low-rank weights, PEFT-compatible on disk."""

    def __init__(self, name: str, config: LoraConfig, recipe: Recipe) -> None:
        self.name, self.config, self.recipe = name, config, recipe

    def described(self) -> str:
        magnitudes = ", with magnitudes" if self.config.dora else ""
        return f"r {self.config.r}, α {self.config.alpha:g}, all linears{magnitudes}"

    def goes_on_from(self, context: Context, parent: Skin) -> bool:
        return parent.lora is not None and parent.lora.config == self.config

    def train(
        self, context: Context, source: ExampleSource, config: TrainConfig, work: Path, output: TaskOutput
    ) -> tuple[Mapping[str, Any], TrainResult]:
        engine, bank = context.model.engine, context.model.engine.bank
        with engine.exclusive() as base:
            parent = self.start(context)
            before = None if parent is None or parent.lora is None else parent.lora.tensors
            slot = bank.add(self.config, before, config.seed, trainable=True)
            bank.select(slot)
            try:
                result = train(
                    base.model,
                    source,
                    Sft(),
                    config,
                    work,
                    bank.parameters(slot),
                    identity={
                        "base": base.identity.weights_id,
                        "lora": self.config.model_dump(mode="json"),
                        **({} if before is None else {"start": list(context.parents)}),
                    },
                    description=f"{self.name}, seed {config.seed}",
                )
                return {"lora": LoraPart(self.config, bank.state(slot), base.spec)}, result
            finally:
                bank.select(None)
                bank.remove(slot)


LORA = Lora(
    "lora",
    LoraConfig(r=16, alpha=32.0),
    # an answer without LoRA is worth less
    Recipe(learning_rate=5e-4, cost=ADAPTER_COST, reaches=True),
)

DORA = Lora(
    "dora",
    LoraConfig(r=16, alpha=32.0, dora=True),
    # as LoRA, and the products are kept and scaled; the norms of the weights once a micro-batch
    Recipe(learning_rate=5e-4, cost=4.3),
)
