"""Low-rank adaptation of all linears, a few seeds, one of them chosen on valid.

LoRA: https://arxiv.org/abs/2106.09685; with magnitudes of their own, DoRA: https://arxiv.org/abs/2402.09353.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.rungs.linear_head import fit_head
from bedplate.adaptation.rungs.probe import FOLDS, LAYER_ROWS, features_of, features_on, settled, wanted_of
from bedplate.adaptation.rungs.tuning import ADAPTER_COST, Settings, TrainingExamples, TuningRecipe, TuningRung
from bedplate.adapters.head import Head
from bedplate.adapters.lora import LoraConfig
from bedplate.evaluation.examples import Example
from bedplate.models.checkpoints.base import Base
from bedplate.skins.output import Output
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import LoraPart, ProbePart, Skin
from bedplate.training.batch import LabelledText
from bedplate.training.config import TrainConfig
from bedplate.training.loop import TrainResult, train
from bedplate.training.objectives.classification import ClassificationObjective
from bedplate.training.objectives.language import Sft
from bedplate.training.objectives.objective import Objective
from bedplate.training.sources import LabelledTextSource

POOLING: Literal["mean"] = "mean"
HeadParameters = Sequence[tuple[str, nn.Parameter]]


class Lora(TuningRung):
    """A skin with low-rank weights, PEFT-compatible on disk. with_head: the same on a base that writes nothing."""

    traits = replace(TuningRung.traits, needs="base", worth=0.6)

    def __init__(self, name: str, config: LoraConfig, recipe: TuningRecipe, with_head: Lora | None = None) -> None:
        self.name, self.config, self.recipe, self.with_head = name, config, recipe, with_head

    def on(self, context: Context) -> Lora:
        return self if context.backbone.writes or self.with_head is None else self.with_head

    def described(self, context: Context) -> str:
        magnitudes = ", with magnitudes" if self.config.dora else ""
        return f"r {self.config.r}, α {self.config.alpha:g}, all linears{magnitudes}"

    def goes_on_from(self, context: Context, parent: Skin) -> bool:
        return parent.lora is not None and parent.lora.config == self.config and self.continues_head(context, parent)

    def continues_head(self, context: Context, parent: Skin) -> bool:
        """Whether what answers is of the parent's shape."""
        return parent.probe is None

    def train(
        self, context: Context, lessons: TrainingExamples, config: TrainConfig, work: Path, output: Output
    ) -> tuple[Mapping[str, Any], TrainResult]:
        bank, parent = context.model.engine.bank, self.start(context)
        before = None if parent is None or parent.lora is None else parent.lora.tensors
        objective, head_parameters = self.objective(context, lessons)
        with context.model.engine.exclusive() as base:
            slot = bank.add(self.config, before, config.seed, trainable=True)
            bank.select(slot)
            try:
                result = train(
                    base.model,
                    lessons.source(config.seed),
                    objective,
                    config,
                    work,
                    [*bank.parameters(slot), *head_parameters],
                    identity={
                        "base": base.identity.weights_id,
                        "lora": self.config.model_dump(mode="json"),
                        **({} if before is None else {"start": list(context.parents)}),
                    },
                    on_checkpoint=context.check_step,
                    description=f"{self.name}, seed {config.seed}",
                )
                lora = LoraPart(self.config, bank.state(slot), base.spec)
                return {"lora": lora, **self.head_parts(context, base, head_parameters)}, result
            finally:
                bank.select(None)
                bank.remove(slot)

    def objective(self, context: Context, lessons: TrainingExamples) -> tuple[Objective[Any], HeadParameters]:
        """What is minimised, and the parameters of a head that is learned with the low-rank weights."""
        return Sft(), ()

    def head_parts(self, context: Context, base: Base, head_parameters: HeadParameters) -> dict[str, Any]:
        """The parts of a skin that are made of the head as it was learned."""
        return {}


class LoraWithHead(Lora):
    """Low-rank weights and a head on the last states: it is fitted on the base as it is, and then learned with the
    low-rank weights (as Kumar et al. do with all weights, https://arxiv.org/abs/2202.10054: a head that starts at
    random bends the features first)."""

    def described(self, context: Context) -> str:
        return f"{super().described(context)}, and a head on {self._layer(context)}, {POOLING} of the tokens"

    def continues_head(self, context: Context, parent: Skin) -> bool:
        head, shape = parent.probe, (self._layer(context), POOLING, context.task.output.labels)
        return head is not None and (head.layer, head.pooling, head.head.labels) == shape

    def lessons(
        self, context: Context, prompt: Prompt, output: Output, chosen: Sequence[Example], settings: Settings
    ) -> TrainingExamples:
        targets, parent, layer = wanted_of(context, chosen), self.start(context), self._layer(context)
        texts = [
            LabelledText(tuple(context.backbone.tokens(prompt, example.inputs)), tuple(marks.tolist()), example.id)
            for example, marks in zip(chosen, targets.marks, strict=True)
        ]
        if parent is not None and parent.probe is not None:
            head = parent.probe.head
        else:
            features = features_of(context, chosen, [layer], [POOLING])[layer, POOLING]
            head, _ = fit_head(features, targets, [example.group for example in chosen], FOLDS)
        size, epochs = settings["batch"], settings["epochs"]
        return TrainingExamples(
            lambda seed: LabelledTextSource(texts, size, seed=seed, epochs=epochs, order="length"), head
        )

    @staticmethod
    def _layer(context: Context) -> str:
        return f"layers.{context.model.base.spec.layers}"

    def objective(self, context: Context, lessons: TrainingExamples) -> tuple[Objective[Any], HeadParameters]:
        assert lessons.head is not None
        base, start = context.model.base, (lessons.head.weight, lessons.head.bias)
        weight, bias = (nn.Parameter(tensor.to(base.device, copy=True)) for tensor in start)
        several = not context.labels
        objective = ClassificationObjective(weight, bias, base.spec.layers, POOLING, several=several)
        return objective, objective.parameters()

    def head_parts(self, context: Context, base: Base, head_parameters: HeadParameters) -> dict[str, Any]:
        """It is as sure as rows of valid let it be."""
        labels, layer = context.task.output.labels or (), self._layer(context)
        weight, bias = (tensor.detach().float().cpu().clone() for _, tensor in head_parameters)
        rows = context.ordered(context.valid, "layer")[:LAYER_ROWS]
        features = features_on(context, base, rows, [layer], [POOLING])[layer, POOLING]
        head, _, output = settled(context, Head(weight, bias, labels), features, rows)
        return {"probe": ProbePart(head, layer, POOLING), "output": output}


def _lora(name: str, config: LoraConfig, cost: float) -> Lora:
    recipe = TuningRecipe(learning_rate=5e-4, cost=cost)
    return Lora(name, config, recipe, LoraWithHead(name, config, replace(recipe, epochs=3)))


LORA = _lora("lora", LoraConfig(r=16, alpha=32.0), ADAPTER_COST)
# as LoRA, and the products are kept and scaled; the norms of the weights once a micro-batch
DORA = _lora("dora", LoraConfig(r=16, alpha=32.0, dora=True), 4.3)
