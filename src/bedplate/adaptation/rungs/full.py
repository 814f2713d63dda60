"""Every weight of the base trained on the task: a child base of its own, and the prompt that it learned to answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungPlan, Skip
from bedplate.adaptation.rungs.children import CHILDREN, no_room, on_child, trainable_copy, write_child
from bedplate.adaptation.rungs.rung import Traits
from bedplate.adaptation.rungs.tuning import TrainingExamples, TuningRecipe, TuningRung
from bedplate.core.version import __version__
from bedplate.skins.output import Output
from bedplate.training.config import TrainConfig
from bedplate.training.loop import TrainResult, train
from bedplate.training.objectives.language import Sft

LEAST_LABELS = 64
"""Fewer are not worth every weight of a base: runs differ more by seed than by what they learned (Mosbach et al. 2021,
https://arxiv.org/abs/2006.04884)."""

SAVE_SECONDS = 120.0
"""A state holds masters and moments of every weight, 12 bytes each: it is not written as often as a small adapter's."""


class Full(TuningRung):
    """A prompt skin on a child base."""

    traits = Traits(side="weights", trained=True, makes_child=True, least_labels=LEAST_LABELS, worth=0.6)

    def __init__(self, name: str, recipe: TuningRecipe) -> None:
        self.name, self.recipe = name, recipe

    def described(self, context: Context) -> str:
        return "every weight, a child base"

    def plan(self, context: Context) -> RungPlan | Skip:
        step = self.recipe.batch * max(1, round(context.throughput.tokens + context.throughput.target))
        return no_room(context, step) or super().plan(context)

    def saving(self, steps: int) -> dict[str, Any]:
        return {"save_steps": None, "save_seconds": SAVE_SECONDS}

    def standing(self, context: Context) -> Context:
        return on_child(context, self.name)

    def child(self) -> str:
        return f"{CHILDREN}/{self.name}"

    def train(
        self, context: Context, lessons: TrainingExamples, config: TrainConfig, work: Path, output: Output
    ) -> tuple[Mapping[str, Any], TrainResult]:
        with context.model.engine.exclusive() as base:
            model = trainable_copy(base)
            result = train(
                model,
                lessons.source(config.seed),
                Sft(),
                config,
                work,
                model.named_parameters(),
                identity={"base": base.identity.weights_id},
                description=f"{self.name}, seed {config.seed}",
            )
        provenance = {
            "objective": "sft",
            "config": config.numbers(),
            "examples": lessons.source(config.seed).identity["examples"],
            "steps": result.steps,
            "arithmetic": result.arithmetic.to_json(),
            "code_version": __version__,
        }
        write_child(context, self.name, model, provenance)
        return {}, result


FULL = Full(
    "full",
    # forward, backward through activations and weights, and an optimizer that reads and writes 16 bytes a weight
    TuningRecipe(learning_rate=3e-5, cost=4.5, seeds=1, min_rows=200),
)
