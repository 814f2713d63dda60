"""Vectors before the prompt, trained while the base stays as it is (prompt tuning, https://arxiv.org/abs/2104.08691).

They start from the embeddings of the task's own words: the labels' continuations, then the instructions, repeated or
cut to the number of vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungPlan, Skip
from bedplate.adaptation.rungs.tuning import TrainingExamples, TuningRecipe, TuningRung
from bedplate.adapters.soft_prompt import SoftPrompt, initial_vectors, stand_ins, standing_in
from bedplate.evaluation.examples import Example
from bedplate.skins.output import Output
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import Skin
from bedplate.training.batch import TrainingExample
from bedplate.training.config import TrainConfig
from bedplate.training.loop import TrainResult, train
from bedplate.training.objectives.language import Sft

VECTORS = 32
"""A multiple of the blocks that keys and values are kept in on GPUs."""


class SoftPrompts(TuningRung):
    """A skin with a soft prompt, which peft loads as PromptTuning once it is exported."""

    traits = replace(TuningRung.traits, continues=True)
    virtual = VECTORS

    def __init__(self, name: str, recipe: TuningRecipe) -> None:
        self.name, self.recipe = name, recipe

    def described(self, context: Context) -> str:
        return f"{VECTORS} vectors before the prompt"

    def plan(self, context: Context) -> RungPlan | Skip:
        length = context.model.base.spec.context_length
        if length < 4 * VECTORS:
            return Skip(f"{VECTORS} vectors would fill too much of the context of {length} tokens")
        return super().plan(context)

    def examples(
        self, context: Context, prompt: Prompt, output: Output, chosen: Sequence[Example]
    ) -> list[TrainingExample]:
        before = stand_ins(VECTORS)
        unseen = (False,) * VECTORS
        return [
            TrainingExample((*before, *example.ids), (*unseen, *example.loss), example.id)
            for example in super().examples(context, prompt, output, chosen)
        ]

    def goes_on_from(self, context: Context, parent: Skin) -> bool:
        soft_prompt, size = parent.soft_prompt, (VECTORS, context.model.base.spec.hidden_size)
        return soft_prompt is not None and (len(soft_prompt), soft_prompt.size) == size

    def train(
        self, context: Context, lessons: TrainingExamples, config: TrainConfig, work: Path, output: Output
    ) -> tuple[Mapping[str, Any], TrainResult]:
        ids = self._first_ids(context, output)
        with context.model.engine.exclusive() as base:
            model = base.model
            first, parent = initial_vectors(model, ids, VECTORS), self.start(context)
            before = None if parent is None else parent.soft_prompt
            vectors = nn.Parameter(first if before is None else before.vectors.clone().to(first))
            with standing_in(model, vectors):
                result = train(
                    model,
                    lessons.source(config.seed),
                    Sft(),
                    config,
                    work,
                    [("soft_prompt", vectors)],
                    identity={
                        "base": base.identity.weights_id,
                        "start": ids if before is None else list(context.parents),
                    },
                    on_checkpoint=context.check_step,
                    description=f"{self.name}, seed {config.seed}",
                )
        return {"soft_prompt": SoftPrompt(vectors.detach().float().cpu())}, result

    @staticmethod
    def _first_ids(context: Context, output: Output) -> list[int]:
        """Tokens of the task's own words: each label's continuation, then the instructions, or else its name."""
        tokenizer = context.model.tokenizer
        words = list(output.label_texts)
        words.append(context.task.instructions or ("" if words else context.task.task))
        return [i for text in words for i in tokenizer.encode(text, add_special_tokens=False, parse_special=False)]


SOFT_PROMPT = SoftPrompts("soft_prompt", TuningRecipe(learning_rate=1e-2, cost=3.0, epochs=2, min_rows=300))
