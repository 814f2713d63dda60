"""Low-rank adaptation of all linears (https://arxiv.org/abs/2106.09685), a few seeds, one of them chosen on valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bedplate.adaptation.context import Context
from bedplate.adaptation.rungs.answers import ask, export, longest_prompt, measure
from bedplate.adaptation.rungs.base import Plan, Result, Skip
from bedplate.adapters.lora import LoraConfig
from bedplate.core.errors import UsageError
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Evaluation, Predicts, evaluate_predictions
from bedplate.inference.predict import Prediction
from bedplate.models.decoder import Decoder
from bedplate.skins.files import read_skin, skin_id
from bedplate.skins.output import LabelOutput
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import LoraPart, Skin
from bedplate.training.batch import Example as TrainingExample
from bedplate.training.config import TrainConfig
from bedplate.training.examples import completion_example
from bedplate.training.loop import train
from bedplate.training.objectives import Sft
from bedplate.training.sources import ExampleSource
from bedplate.training.state import STATE_FILE

ROWS, SEEDS, BATCH = 600, 3, 16
MINIMUM_ROWS = 64
LEARNING_RATE = 5e-4
TRAINING_COST = 3.3
"""A training token against a prefill token: forward, backward through the activations, the low-rank updates."""


class Lora:
    """A LoRA skin, PEFT-compatible on disk."""

    name = "lora"
    reference = False

    def plan(self, context: Context) -> Plan | Skip:
        if not isinstance(context.model.base.model, Decoder):
            return Skip("LoRA is for decoders here")
        n, left = len(context.train), context.left
        valid = context.pace.rows(len(context.valid)) + 66 * context.pace.call

        def seconds(rows: int, seeds: int) -> float:
            return seeds * (context.pace.rows(rows) * TRAINING_COST + valid) * 1.05

        def fits(rows: int, seeds: int) -> bool:
            return seconds(rows, seeds) <= left

        rows, seeds = min(ROWS, n), 1
        while not fits(rows, 1) and rows > min(MINIMUM_ROWS, n):
            rows = max(min(MINIMUM_ROWS, n), int(rows * 0.8))
        # the smallest run may go into the time kept for test a little: an answer without LoRA is worth less
        if seconds(rows, 1) > left + 0.3 * context.test_reserve:
            return Skip(f"it needs about {seconds(rows, 1):.0f} s, {max(left, 0):.0f} s of the budget are left")
        if rows == min(ROWS, n) and fits(rows, 2):
            seeds = 2
            # labels are worth more than a third seed
            rows = next((more for more in range(n, rows, -BATCH) if fits(more, seeds)), rows)
            seeds = SEEDS if rows == n and fits(rows, SEEDS) else seeds
        left_out: list[str] = []
        if rows < n:
            left_out.append(f"{n - rows} of {n} train rows were left out: no time")
        if seeds < SEEDS:
            left_out.append(f"{SEEDS - seeds} of {SEEDS} seeds were left out: no time")
        settings = {"rows": rows, "seeds": seeds, "batch": BATCH, "learning_rate": LEARNING_RATE, "epochs": 1}
        return Plan(settings, seconds(rows, seeds), tuple(left_out))

    def fit(self, context: Context, plan: Plan, directory: Path) -> Result:
        prompt, output = context.default_prompt()
        chosen = context.ordered(context.train, "lora")[: plan.settings["rows"]]
        examples = self._examples(context, prompt, output, chosen)
        trained: list[_Trained] = []
        for number in range(plan.settings["seeds"]):
            seed = context.seed + number
            work = directory / f"seed-{seed}"
            tensors, seconds = self._train(context, plan, examples, seed, work)
            skin = context.skin(self.name, "lora", prompt, output, lora=LoraPart(_CONFIG, tensors), seed=seed)
            trained.append(self._judge(context, export(context, skin, work / "skin"), seed, seconds))
        best = max(trained, key=lambda t: (t.evaluation.estimate, -t.seed))
        result = self._finish(context, plan, best, trained)
        for one in trained:  # finished: the optimizer's state has no further use
            (directory / f"seed-{one.seed}" / STATE_FILE).unlink(missing_ok=True)
        return result

    @staticmethod
    def _examples(
        context: Context, prompt: Prompt, output: LabelOutput, chosen: Sequence[Example]
    ) -> list[TrainingExample]:
        """Exactly the tokens that scoring will ask for: the prompt, and the right label's continuation to learn."""
        found: list[TrainingExample] = []
        for example in chosen:
            ids, answers = prompt.label_tokens(
                context.model.tokenizer, example.inputs, (), output, limit=context.model.base.spec.context_length
            )
            found.append(completion_example(ids, answers[output.labels.index(example.target)], example.id))
        return found

    @staticmethod
    def _train(
        context: Context, plan: Plan, examples: Sequence[TrainingExample], seed: int, work: Path
    ) -> tuple[Mapping[str, Tensor], float]:
        """One seed's adapter; a saved state in `work` is resumed bit by bit."""
        engine, bank = context.model.engine, context.model.engine.bank
        if bank is None:
            raise UsageError("LoRA needs a decoder")
        source = ExampleSource(
            examples, plan.settings["batch"], seed=seed, epochs=plan.settings["epochs"], order="shuffled"
        )
        steps = source.steps or 1
        config = TrainConfig(
            learning_rate=plan.settings["learning_rate"], seed=seed, save_steps=max(1, steps // 6), save_seconds=None
        )
        with engine.exclusive() as base:
            assert isinstance(base.model, Decoder)
            slot = bank.add(_CONFIG, None, seed)
            bank.select(slot)
            try:
                result = train(
                    base.model,
                    source,
                    Sft(),
                    config,
                    work,
                    bank.parameters(slot),
                    identity={"base": base.identity.weights_id, "lora": _CONFIG.model_dump(mode="json")},
                    description=f"lora, seed {seed}",
                )
                return bank.state(slot), result.seconds
            finally:
                bank.select(None)
                bank.remove(slot)

    @staticmethod
    def _judge(context: Context, skin: Skin, seed: int, seconds: float) -> _Trained:
        predictor = context.predictor(skin)
        try:
            predictions = ask(predictor, context.valid)
        finally:
            predictor.close()
        evaluation = evaluate_predictions(context.task, context.valid, predictions, seed=context.seed)
        by_id = {e.id: p for e, p in zip(context.valid, predictions, strict=True)}
        return _Trained(skin, seed, seconds, evaluation, by_id)

    def _finish(self, context: Context, plan: Plan, best: _Trained, trained: Sequence[_Trained]) -> Result:
        directory = context.out / "skins" / self.name
        skin = export(context, best.skin, directory)
        predictor = context.predictor(skin)
        try:
            timing, exported = measure(context, predictor, best.by_id)
            longest = longest_prompt(predictor, context.valid)
        finally:
            predictor.close()
        seeds: list[dict[str, Any]] = [
            {
                "seed": t.seed,
                "estimate": t.evaluation.estimate,
                "interval": list(t.evaluation.interval),
                "train_seconds": t.seconds,
                "chosen": t is best,
            }
            for t in trained
        ]
        settings = plan.settings
        return Result(
            rung=self.name,
            evaluation=best.evaluation,
            latency=timing,
            train_seconds=sum(t.seconds for t in trained),
            reason=(
                f"r {_CONFIG.r}, α {_CONFIG.alpha:g}, all linears, {settings['rows']} train rows, one epoch; "
                f"seed {best.seed} is the best of {len(trained)} on valid"
            ),
            skin=str(directory.relative_to(context.out)),
            skin_id=skin_id(skin),
            prompt_tokens=longest,
            seeds=tuple(seeds),
            left_out=plan.left_out,
            export=exported,
            details={"rows": settings["rows"], "seed": best.seed, "learning_rate": settings["learning_rate"]},
        )

    def predictor(self, context: Context, result: Result) -> Predicts:
        assert result.skin is not None
        return context.predictor(read_skin(context.out / result.skin))


_CONFIG = LoraConfig(r=16, alpha=32.0)


class _Trained:
    """One seed's skin, read back from disk, and how it does on valid."""

    def __init__(
        self,
        skin: Skin,
        seed: int,
        seconds: float,
        evaluation: Evaluation,
        by_id: Mapping[str, Prediction | None],
    ) -> None:
        self.skin, self.seed, self.seconds = skin, seed, seconds
        self.evaluation, self.by_id = evaluation, by_id
