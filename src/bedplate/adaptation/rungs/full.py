"""Every weight of the base trained on the task: a child base of its own, and the prompt that it learned to answer.

A child base is a copy of a base whose every weight may be trained, written out as a base of its own. A rung that makes
one leaves it below `children` in the directory of the run and names it in `RungResult.child`; its skin stands on it.
The base of the context is its parent, and is not changed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungPlan, Skip
from bedplate.adaptation.rungs.rung import Traits
from bedplate.adaptation.rungs.tuning import TrainingExamples, TuningRecipe, TuningRung
from bedplate.core.version import __version__
from bedplate.economics.model.footprint import kept_bytes
from bedplate.models.build import build
from bedplate.models.checkpoints.base import Base, parameter_count
from bedplate.models.checkpoints.export import export_base
from bedplate.models.device_memory import free_on
from bedplate.models.model import Model
from bedplate.skins.output import Output
from bedplate.training.config import TrainConfig
from bedplate.training.loop import TrainResult, train
from bedplate.training.objectives.language import Sft

CHILDREN = "children"
"""Where child bases lie in a run's directory; what is made on the task's further bases lies in `bases`."""
_MASTER, _GRADIENT, _MOMENTS = 4, 4, 8
_SLACK = 1.15
"""Times the memory, for what allocators and the export's check of what it wrote take."""


def training_bytes(base: Base, step_tokens: int) -> float:
    """Bytes that training every weight takes beside the base that is there: a copy of the weights, where they are of
    half precision float32 masters as well, gradients, AdamW's moments, and a step's activations."""
    size = base.dtype.itemsize
    bytes_per_weight = size + _GRADIENT + _MOMENTS + (_MASTER if size < 4 else 0)
    activations = kept_bytes(base.spec, step_tokens, bytes_per_value=size).total
    return (parameter_count(base.model) * bytes_per_weight + activations) * _SLACK


def no_room(context: Context, step_tokens: int) -> Skip | None:
    """Why every weight of this base cannot be trained on this machine, or None."""
    base = context.model.base
    memory, needed = free_on(base.device), training_bytes(base, step_tokens)
    if memory is not None and needed > memory:
        return Skip(
            f"its weights, gradients and optimizer need about {needed / 1e9:.1f} GB beside the base, "
            f"{memory / 1e9:.1f} GB of memory are free"
        )
    # two states of masters and moments (one is written while the one before it is kept), and the child
    disk = parameter_count(base.model) * (2 * (_MASTER + _MOMENTS) + base.dtype.itemsize)
    place = context.out.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if disk > free:
        return Skip(f"its state and the child need about {disk / 1e9:.1f} GB on disk, {free / 1e9:.1f} GB are free")
    return None


def trainable_copy(base: Base) -> Model:
    """The same weights in a model of their own, without adapters."""
    model = build(base.spec, base.dtype, "meta")
    model.load_state_dict({name: tensor.clone() for name, tensor in base.model.state_dict().items()}, assign=True)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def write_child(context: Context, rung: str, model: Model, provenance: Mapping[str, Any]) -> Path:
    """Write `model` as the rung's child base, anew where there is one, with what made it as its lineage; returns the
    directory. It stands in the base's format of its family's own library, in the base's dtype."""
    base, directory = context.model.base, context.out / CHILDREN / rung
    if directory.exists():
        shutil.rmtree(directory)
    identity = replace(base.identity, equivalent_of=None)  # it is no longer what a file of the parent's holds
    lineage = {key: value for key, value in base.lineage.items() if key not in ("parent", "source", "same_values")}
    lineage["made"] = {"data": dict(context.hashes), "task": context.task.task, "rung": rung, **provenance}
    export_base(replace(base, raw_model=model, identified=identity, lineage=lineage), directory)
    context.at.child(directory, fresh=True)
    return directory


def on_child(context: Context, rung: str, out: Path | None = None) -> Context:
    """The context of the rung's child base. out: where what is made on it goes, when not where the rung's own does."""
    return context.on(context.at.child(context.out / CHILDREN / rung), context.out if out is None else out)


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
                on_checkpoint=context.check_step,
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
