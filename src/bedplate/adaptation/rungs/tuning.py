"""What the rungs that train weights share: how much to train in the time there is, seeds, the choice on valid."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import (
    KEPT_WITHIN,
    OutOfTime,
    RungPlan,
    RungResult,
    Skip,
    no_time,
    rows_left_out,
)
from bedplate.adaptation.rungs.answers import answers_in_time, export, judged
from bedplate.adaptation.rungs.rung import Rung, Traits
from bedplate.adapters.head import Head
from bedplate.core.errors import BedplateError
from bedplate.core.files import atomic_write, read_text
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Evaluation, Predicts, evaluate_predictions
from bedplate.inference.predict.predictor import Prediction
from bedplate.skins.files import read_skin
from bedplate.skins.output import Output
from bedplate.skins.prompt import Prompt, target_tokens
from bedplate.skins.skin import Skin
from bedplate.training.batch import TrainingExample, completion_example
from bedplate.training.config import TrainConfig
from bedplate.training.loop import TrainResult
from bedplate.training.precision import token_seconds
from bedplate.training.sources import BatchSource, ExampleSource
from bedplate.training.state import StateFile

ADAPTER_COST = 3.3
"""Cost of a training token against a prefill token, with low-rank weights on all linears: forward, backward through the
activations, the low-rank updates."""


OVERHEAD = 1.4
"""Times what a base's blocks were measured to take at best: a step has head, optimizer, packing and saving too."""

FIT_FILE = "fit.json"
"""What a finished fit took, beside its skin."""

Settings = Mapping[str, Any]
"""A plan's."""


@dataclass(frozen=True)
class TuningRecipe:
    """How a rung trains. cost: a training token against a prefill token. rows: trained on with one seed before there is
    a second. min_rows: fewer rows are not worth the rung."""

    learning_rate: float
    cost: float
    epochs: int = 1
    batch: int = 16
    seeds: int = 3
    rows: int = 600
    min_rows: int = 64


@dataclass(frozen=True)
class TrainingExamples:
    """What is learned. source: in the order that a seed gives it. head: what answers to begin with, where a head does
    and is learned as well."""

    source: Callable[[int], BatchSource[Any]]
    head: Head | None = None


@dataclass(frozen=True, eq=False)
class Trained:
    """One seed's skin on one prompt, read back from disk, and how it does on valid."""

    skin: Skin
    seed: int
    seconds: float
    computed_in: str
    evaluation: Evaluation
    prompt: str
    by_id: Mapping[str, Prediction | None] = field(repr=False)


def best_of(trained: Sequence[Trained]) -> Trained:
    """The best seed on the shortest prompt that keeps the score on valid: the bare one, unless another's best is more
    than KEPT_WITHIN above its best."""
    by_prompt = {fit.prompt: max((t for t in trained if t.prompt == fit.prompt), key=_standing) for fit in trained}
    best = max(by_prompt.values(), key=_standing)
    bare = by_prompt.get("bare", best)
    return bare if bare.evaluation.estimate >= best.evaluation.estimate - KEPT_WITHIN else best


def _standing(fit: Trained) -> tuple[float, int]:
    return fit.evaluation.estimate, -fit.seed


def chosen_by(best: Trained, trained: Sequence[Trained]) -> str:
    """Which of the fits is the rung's, and why, in a few words."""
    names = list(dict.fromkeys(fit.prompt for fit in trained))
    reason = f"seed {best.seed} is the best of {sum(t.prompt == best.prompt for t in trained)} on valid"
    if len(names) == 1:
        return reason if best.prompt == "chosen" else f"{reason}; trained on the bare inputs, for lack of room for more"
    tops = {name: max(t.evaluation.estimate for t in trained if t.prompt == name) for name in names}
    scores = " and ".join(f"{tops[name]:.3f} on the {name} prompt" for name in names)
    return f"{scores} on valid, so the {best.prompt} one is kept; {reason}"


def finished_fit(places: Sequence[Path]) -> tuple[Skin, float, str] | None:
    """The skin of a seed that an earlier run, or the smaller fit that this one follows, has finished in one of these
    directories, with its seconds and what it was computed in. None where none is whole: then it is made."""
    for place in places:
        try:
            values = json.loads(read_text(place / FIT_FILE))
            return read_skin(place / "skin"), float(values["seconds"]), str(values["computed_in"])
        except (OSError, ValueError, KeyError, BedplateError):
            continue
    return None


class TuningRung(Rung):
    """A rung that trains some weights beside the frozen base, on exactly the tokens that scoring will ask for."""

    recipe: TuningRecipe
    traits = Traits(side="weights", trained=True, whole_prompt=True, worth=0.5)
    virtual = 0
    """Positions that stand before every prompt."""

    # --- on which prompt

    def prompts(self, context: Context) -> dict[str, tuple[Prompt, Output]]:
        """The prompts that a skin may be trained on, by name, the shortest last: "chosen", which the base as it is
        chose (or the parent was trained on), and "bare", the inputs and the cue. What is trained needs no instructions,
        and the shortest that keeps the score is the cheapest to serve."""
        chosen, parent = context.default_prompt(), self.start(context)
        if parent is not None:
            same_format = parent.prompt.format == chosen[0].format
            return {"chosen": (parent.prompt, chosen[1]) if same_format else chosen}
        bare = context.plain_prompt("bare")
        row, tokenizer = context.valid[0].inputs, context.model.tokenizer
        shorter = len(bare[0].tokens(tokenizer, row)) < len(chosen[0].tokens(tokenizer, row))
        return {"chosen": chosen, "bare": bare} if shorter else {"chosen": chosen}

    def lightest(self, context: Context) -> tuple[Prompt, Output]:
        return list(self.prompts(context).values())[-1]

    # --- how much

    def plan(self, context: Context) -> RungPlan | Skip:
        recipe, n, seconds_left = self.recipe, len(context.train), context.seconds_left
        before = context.before or {}
        finished = int(before["seeds"]) if before.get("rows") == n else 0
        usual_rows = n if finished else min(recipe.rows, n)

        def expected(rows: int, seeds: int) -> float:
            """What is finished is only asked again on valid."""
            taken_over = min(finished, seeds) if rows == n else 0
            judging = taken_over * context.throughput.rows(len(context.valid), tuned=True)
            return self.seconds(context, rows, seeds - taken_over) + judging

        def fits(rows: int, seeds: int) -> bool:
            return expected(rows, seeds) <= seconds_left

        min_rows, rows, seeds = min(recipe.min_rows, n), usual_rows, 1
        while not fits(rows, 1) and rows > min_rows:
            rows = max(min_rows, int(rows * 0.8))
        if not fits(rows, 1):
            return no_time(expected(rows, 1))
        max_seeds = recipe.seeds if context.most_seeds is None else min(recipe.seeds, context.most_seeds)
        if rows == usual_rows and fits(rows, min(2, max_seeds)):
            seeds = min(2, max_seeds)
            # labels are worth more than a third seed
            rows = next((count for count in range(n, rows, -recipe.batch) if fits(count, seeds)), rows)
            seeds = max_seeds if rows == n and fits(rows, max_seeds) else seeds
        left_out: list[str] = []
        if rows < n:
            left_out.append(rows_left_out(rows, n))
        if seeds < max_seeds:
            left_out.append(f"{max_seeds - seeds} of {max_seeds} seeds were left out: no time")
        how = {"batch": recipe.batch, "learning_rate": recipe.learning_rate, "epochs": recipe.epochs}
        order = dict.fromkeys([*(before.get("prompts", ("chosen",)) if finished else ()), *self._order(context)])
        settings = {"rows": rows, "seeds": seeds, "prompts": list(order)[:seeds], **how}
        if rows == n and 0 < finished < seeds:
            settings["takes_over"] = finished
        return RungPlan(settings, expected(rows, seeds), tuple(left_out))

    def _order(self, context: Context) -> list[str]:
        """The prompts of the first fits: the one that the base chose, then the others. One whose calls would be over
        the budget is not trained on."""
        names = list(self.prompts(context))
        fitting = [name for name in names if not self._too_slow(context, name)]
        return fitting or names[-1:]

    def _too_slow(self, context: Context, name: str) -> bool:
        """Whether the chosen prompt was timed to be over the budget; the lightest was looked at by the planner."""
        budget, prompts = context.spec.budget.p95_ms, self.prompts(context)
        if budget is None or context.exhaustive or name == list(prompts)[-1]:
            return False
        limit = budget / 1000 * context.format_gain
        return context.throughput.call > limit and context.cached_reading(*prompts[name], limit).quiet > limit

    def seconds(self, context: Context, rows: int, seeds: int) -> float:
        """Expected: training at the measured speed, and valid with each seed's skin."""
        speed, recipe = context.throughput, self.recipe
        virtual = self.virtual / recipe.batch  # a batch computes its shared beginning once
        tokens = rows * (speed.tokens + speed.target + virtual)
        training = tokens * self.token_seconds(context) * recipe.epochs * OVERHEAD
        return seeds * (training + speed.rows(len(context.valid), tuned=True) + context.timing) * 1.05

    def token_seconds(self, context: Context) -> float:
        """Expected of a training token: what a step of the base was measured to take, since inference may be fast in
        ways that training has not; no less than the prefill that was measured among this task's other work."""
        model, cost = context.model.base.model, self.recipe.cost
        measured = token_seconds(model, context.spec.train_dtype) if model.writes else None
        return max(context.throughput.token * cost, (measured or 0.0) * cost / ADAPTER_COST)

    def saving(self, steps: int) -> dict[str, Any]:
        """How often a run of so many steps saves its state: fields of `TrainConfig`."""
        return {"save_steps": max(1, steps // 6), "save_seconds": None}

    def start(self, context: Context) -> Skin | None:
        """The parent, where training goes on from its weights: it stands on this base, and they have this shape."""
        parent = None if context.parent is None else context.parent.skin
        if parent is None or not parent.base.has_weights_of(context.at.facts.identity):
            return None
        return parent if self.goes_on_from(context, parent) else None

    def goes_on_from(self, context: Context, parent: Skin) -> bool:
        """Whether a skin on this base has weights of this rung's shape."""
        return False

    # --- on which base

    def standing(self, context: Context) -> Context:
        """The context of the base that its skins stand on: this one, unless the rung makes a base of its own."""
        return context

    def child(self) -> str | None:
        """The base that it makes, a directory relative to the run's."""
        return None

    # --- training

    @abstractmethod
    def train(
        self, context: Context, lessons: TrainingExamples, config: TrainConfig, work: Path, output: Output
    ) -> tuple[Mapping[str, Any], TrainResult]:
        """One seed's weights, as arguments of `Context.skin`; a saved state in `work` is resumed bit by bit."""

    def lessons(
        self, context: Context, prompt: Prompt, output: Output, chosen: Sequence[Example], settings: Settings
    ) -> TrainingExamples:
        """What is learned from these rows."""
        examples = self.examples(context, prompt, output, chosen)
        size, epochs = settings["batch"], settings["epochs"]
        return TrainingExamples(lambda seed: ExampleSource(examples, size, seed=seed, epochs=epochs, order="shuffled"))

    @abstractmethod
    def described(self, context: Context) -> str:
        """What is trained, in a few words."""

    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        settings, trained = plan.settings, list[Trained]()
        try:
            self._fit_seeds(context, plan, directory, trained)
        except OutOfTime:
            if not trained:
                raise
            left_out = f"{settings['seeds'] - len(trained)} of {settings['seeds']} seeds were left out: no time"
            settings = {**settings, "seeds": len(trained)}
            plan = replace(plan, settings=settings, left_out=(*plan.left_out, left_out))
        result = self._finish(context, plan, best_of(trained), trained)
        result = replace(result, settings=settings)
        for seed_fit in trained:  # the optimizer's state of what is finished has no further use
            assert seed_fit.skin.directory is not None
            StateFile(seed_fit.skin.directory.parent).remove()
        return result

    def _fit_seeds(self, context: Context, plan: RungPlan, directory: Path, trained: list[Trained]) -> None:
        """Fits one seed after the other into `trained`. OutOfTime."""
        settings, prompts = plan.settings, self.prompts(context)
        names = [name for name in settings.get("prompts", ("chosen",)) if name in prompts] or ["chosen"]
        # the same rows for every rung of this kind: what differs is how they are learned
        chosen = context.ordered(context.train, "lora")[: settings["rows"]]
        # a plan may have been taken over from elsewhere, and then there is no smaller fit
        takes_over = 0 if context.before is None else settings.get("takes_over", 0)
        for number in range(settings["seeds"]):
            # the first seed on each prompt, and the next ones on the prompt that is kept
            first = number < len(names)
            name = names[number] if first else best_of(trained).prompt
            seed = context.seed + (0 if first else number - len(names) + 1)
            work = directory / (f"seed-{seed}" if name == "chosen" else f"seed-{seed}-{name}")
            smaller = [context.out.parent / work.relative_to(context.out)] if number < takes_over else []
            # a base that the rung makes is whole only with its result
            fit = finished_fit([work, *smaller]) if self.child() is None else None
            if fit is None:
                prompt, output = prompts[name]
                lessons = self.lessons(context, prompt, output, chosen, settings)
                saving = self.saving(lessons.source(seed).steps or 1)
                config = TrainConfig(
                    learning_rate=settings["learning_rate"], seed=seed, dtype=context.spec.train_dtype, **saving
                )
                parts, run = self.train(context, lessons, config, work, output)
                skin_parts: dict[str, Any] = {"output": output, **parts}
                skin = self.standing(context).skin(self.name, prompt, seed=seed, **skin_parts)
                fit = export(skin, work / "skin"), run.seconds, run.arithmetic.name
                atomic_write(work / FIT_FILE, json.dumps({"seconds": fit[1], "computed_in": fit[2]}) + "\n")
            trained.append(self._judge(self.standing(context), *fit, seed, name))

    def examples(
        self, context: Context, prompt: Prompt, output: Output, chosen: Sequence[Example]
    ) -> list[TrainingExample]:
        """Exactly the tokens that will be asked for: the prompt, and to learn the right label's continuation, or the
        answer as it will be written with the token that ends it."""
        examples: list[TrainingExample] = []
        base, tokenizer = context.model.base, context.model.tokenizer
        limit = base.spec.context_length - self.virtual
        for example in chosen:
            ids, answer = target_tokens(prompt, tokenizer, example.inputs, output, example.target, limit=limit)
            examples.append(completion_example(ids, answer, example.id, base.decoder_start))
        return examples

    @staticmethod
    def _judge(context: Context, skin: Skin, seconds: float, computed_in: str, seed: int, prompt: str) -> Trained:
        with context.predictor(skin) as predictor:
            by_id = answers_in_time(context, predictor)
        answered = [e for e in context.valid if e.id in by_id]
        evaluation = evaluate_predictions(context.task, answered, [by_id[e.id] for e in answered], seed=context.seed)
        return Trained(skin, seed, seconds, computed_in, evaluation, prompt, by_id)

    def _finish(self, context: Context, plan: RungPlan, best: Trained, trained: Sequence[Trained]) -> RungResult:
        seeds: list[dict[str, Any]] = []
        for fit in trained:
            estimate = {"estimate": fit.evaluation.estimate, "interval": list(fit.evaluation.interval)}
            how = {"train_seconds": fit.seconds, "chosen": fit is best, "prompt": fit.prompt}
            seeds.append({"seed": fit.seed, **estimate, **how})
        settings, parent = plan.settings, self.start(context)
        epochs = "one epoch" if settings["epochs"] == 1 else f"{settings['epochs']} epochs"
        start = "" if parent is None else f", from the weights of {parent.name}"
        summary = f"{self.described(context)}{start}, {settings['rows']} train rows, {epochs}"
        reason = f"{summary}; {chosen_by(best, trained)}"
        seconds, place = sum(t.seconds for t in trained), self.standing(context)
        result = judged(
            context, self.name, best.skin, seconds, reason, best.by_id, evaluation=best.evaluation, skin_context=place
        )
        return replace(
            result,
            prompt_tokens=result.prompt_tokens + self.virtual,
            seeds=tuple(seeds),
            left_out=(*plan.left_out, *result.left_out),
            details={
                "rows": settings["rows"],
                "seed": best.seed,
                "prompt": best.prompt,
                "learning_rate": settings["learning_rate"],
                "computed_in": best.computed_in,
                **({} if context.parent is None else {"goes_on_from": None if parent is None else context.parent.id}),
            },
            child=self.child(),
        )

    def predictor(self, context: Context, result: RungResult) -> Predicts:
        assert result.skin is not None
        return self.standing(context).predictor(read_skin(context.out / result.skin))
