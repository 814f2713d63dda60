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
from bedplate.adaptation.rungs.probe import FOLDS, LAYER_ROWS, features_of, features_on, fit_head, settled, wanted_of
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
from bedplate.training.sources import LabelledTextSource

POOLING: Literal["mean"] = "mean"


class Lora(TuningRung):
    """A skin with low-rank weights, PEFT-compatible on disk. On an encoder, which writes nothing, a head on its last
    states answers: it is fitted on the base as it is, and then learned with the low-rank weights (as Kumar et al. do
    with all weights, https://arxiv.org/abs/2202.10054: a head that starts at random bends the features first)."""

    traits = replace(TuningRung.traits, needs="base", worth=0.6)

    def __init__(self, name: str, config: LoraConfig, recipe: TuningRecipe, on_readers: TuningRecipe) -> None:
        self.name, self.config, self.recipe, self.on_readers = name, config, recipe, on_readers

    def described(self, context: Context) -> str:
        magnitudes = ", with magnitudes" if self.config.dora else ""
        head = f", and a head on {self._layer(context)}, {POOLING} of the tokens" if context.is_encoder else ""
        return f"r {self.config.r}, α {self.config.alpha:g}, all linears{magnitudes}{head}"

    def recipe_on(self, context: Context) -> TuningRecipe:
        return self.on_readers if context.is_encoder else self.recipe

    def unfit(self, context: Context) -> str | None:
        if not context.is_encoder:
            return super().unfit(context)
        if context.task.output.labels:
            return None
        return (
            f"a head on an encoder chooses among labels; it cannot write an answer of kind {context.task.output.kind}"
        )

    def goes_on_from(self, context: Context, parent: Skin) -> bool:
        if parent.lora is None or parent.lora.config != self.config:
            return False
        head = parent.probe
        if not context.is_encoder:
            return head is None
        place = self._layer(context), POOLING, context.task.output.labels
        return head is not None and (head.layer, head.pooling, head.head.labels) == place

    def lessons(
        self, context: Context, prompt: Prompt, output: Output, chosen: Sequence[Example], settings: Settings
    ) -> TrainingExamples:
        if not context.is_encoder:
            return super().lessons(context, prompt, output, chosen, settings)
        targets, parent, layer = wanted_of(context, chosen), self.start(context), self._layer(context)
        texts = [
            LabelledText(context.model.text_tokens(str(prompt.text(example.inputs))), tuple(marks.tolist()), example.id)
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

    def train(
        self, context: Context, lessons: TrainingExamples, config: TrainConfig, work: Path, output: Output
    ) -> tuple[Mapping[str, Any], TrainResult]:
        bank, parent = context.model.engine.bank, self.start(context)
        before = None if parent is None or parent.lora is None else parent.lora.tensors
        reading = None if lessons.head is None else self._reading(context, lessons.head)
        with context.model.engine.exclusive() as base:
            slot = bank.add(self.config, before, config.seed, trainable=True)
            bank.select(slot)
            try:
                result = train(
                    base.model,
                    lessons.source(config.seed),
                    Sft() if reading is None else reading,
                    config,
                    work,
                    [*bank.parameters(slot), *(() if reading is None else reading.parameters())],
                    identity={
                        "base": base.identity.weights_id,
                        "lora": self.config.model_dump(mode="json"),
                        **({} if before is None else {"start": list(context.parents)}),
                    },
                    description=f"{self.name}, seed {config.seed}",
                )
                parts: dict[str, Any] = {"lora": LoraPart(self.config, bank.state(slot), base.spec)}
                return (parts if reading is None else parts | self._answering(context, base, reading)), result
            finally:
                bank.select(None)
                bank.remove(slot)

    @staticmethod
    def _layer(context: Context) -> str:
        """What a head on an encoder reads: its last states."""
        return f"layers.{context.model.base.spec.layers}"

    def _reading(self, context: Context, head: Head) -> ClassificationObjective:
        device = context.model.base.device
        weight, bias = (nn.Parameter(tensor.to(device, copy=True)) for tensor in (head.weight, head.bias))
        return ClassificationObjective(
            weight, bias, context.model.base.spec.layers, POOLING, several=not context.labels
        )

    def _answering(self, context: Context, base: Base, reading: ClassificationObjective) -> dict[str, Any]:
        """The head as it was learned, as sure as rows of valid let it be; parts of a skin."""
        labels, layer = context.task.output.labels or (), self._layer(context)
        weight, bias = (tensor.detach().float().cpu().clone() for _, tensor in reading.parameters())
        rows = context.ordered(context.valid, "layer")[:LAYER_ROWS]
        features = features_on(context, base, rows, [layer], [POOLING])[layer, POOLING]
        head, _, output = settled(context, Head(weight, bias, labels), features, rows)
        return {"probe": ProbePart(head, layer, POOLING), "output": output}


LORA = Lora(
    "lora",
    LoraConfig(r=16, alpha=32.0),
    TuningRecipe(learning_rate=5e-4, cost=ADAPTER_COST),
    on_readers=TuningRecipe(learning_rate=5e-4, cost=ADAPTER_COST, epochs=3),
)

DORA = Lora(
    "dora",
    LoraConfig(r=16, alpha=32.0, dora=True),
    # as LoRA, and the products are kept and scaled; the norms of the weights once a micro-batch
    TuningRecipe(learning_rate=5e-4, cost=4.3),
    on_readers=TuningRecipe(learning_rate=5e-4, cost=4.3, epochs=3),
)
