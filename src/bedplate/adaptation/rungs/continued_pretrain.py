"""The base trained further on raw text of the task's domain (https://arxiv.org/abs/2004.10964), then adapted: a child
base, and the best skin of a few rungs on it.

The text needs no labels. It is packed into rows, no document seeing another, and every token is predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungPlan, RungResult, Skip, no_time
from bedplate.adaptation.rungs.answers import export
from bedplate.adaptation.rungs.full import CHILDREN, no_room, on_child, trainable_copy, write_child
from bedplate.adaptation.rungs.rung import Rung, Traits
from bedplate.adaptation.task.adapt_parts import inputs_in
from bedplate.core.errors import TrainingError
from bedplate.core.files import sha256_json
from bedplate.core.version import __version__
from bedplate.evaluation.harness import Predicts
from bedplate.skins.files import read_skin, skin_id
from bedplate.training.config import TrainConfig
from bedplate.training.loop import TrainResult, train
from bedplate.training.objectives.language import NextToken
from bedplate.training.raw_text import EncodedText, encode_text, first_tokens, heldout_batches, heldout_loss
from bedplate.training.sources import DocumentSource
from bedplate.training.state import StateFile

ROW, BATCH_ROWS, MICRO_TOKENS = 512, 8, 2048
LEARNING_RATE = 1e-4
COST = 5.0
"""A training token against a prefill token: forward, backward, the head on every token."""
LEAST_TOKENS = 10_000
"""Fewer do not move a base."""
SHARE = 0.5
"""At most so much of the time that is left goes into the text; the rest is for the skins on the child."""
CHILD_RUNGS = ("zero_shot", "few_shot", "lora")
"""What is climbed on the child."""

HOLDOUT_SHARE, HELD_ROWS = 0.05, 16
"""Documents that are kept from training, to see what it did; at most so many rows of them are read."""


class ContinuedPretrain(Rung):
    """The best of a few skins on a child base that knows the domain's text."""

    name = "continued_pretrain"
    traits = Traits(side="weights", continues=True, makes_child=True, no_curve="it learns from raw text", worth=0.5)

    def plan(self, context: Context) -> RungPlan | Skip:
        text = context.raw_text
        if text is None:
            return Skip("the task file names no text of the domain (`adapt.raw_text`)")
        unfit = no_room(context, MICRO_TOKENS)
        if unfit is not None:
            return unfit
        tokens = sum(map(len, self._documents(context).learned.values()))
        token_limit = None if context.spec.raw_text is None else context.spec.raw_text.tokens
        target_tokens = tokens if token_limit is None else min(tokens, token_limit)
        if target_tokens < min(LEAST_TOKENS, token_limit or LEAST_TOKENS):
            return Skip(f"{text.source} holds {tokens:,} tokens; fewer than {LEAST_TOKENS:,} do not move a base")
        token_seconds = context.throughput.token * COST
        # at the least zero-shot on the child
        child_seconds = 3 * context.throughput.rows(len(context.valid)) + context.timing
        room = min(context.seconds_left * SHARE, context.seconds_left - child_seconds) / token_seconds
        if room < min(target_tokens, LEAST_TOKENS):
            needed = min(target_tokens, LEAST_TOKENS) * token_seconds + child_seconds
            return no_time(needed)
        trained = int(min(target_tokens, room))
        note = f"{target_tokens - trained:,} of {target_tokens:,} tokens were left out: no time"
        left_out = () if trained == target_tokens else (note,)
        row = min(ROW, context.model.base.spec.context_length)
        settings = {"tokens": trained, "row": row, "learning_rate": LEARNING_RATE, "text": text.sha256}
        return RungPlan(settings, trained * token_seconds + child_seconds, left_out)

    def settings(self, context: Context) -> Any:
        spec, text = context.spec.raw_text, context.raw_text
        return None if spec is None or text is None else [text.sha256, spec.tokens]

    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        text = context.raw_text
        assert text is not None
        trained, losses = self._pretrain(context, plan, directory / "text")
        climb, child = context.climb, on_child(context, self.name, directory / "skins")
        assert climb is not None
        outcomes = {name: climb(child, name, directory / "rungs" / name) for name in CHILD_RUNGS}
        results = {name: o.result for name, o in outcomes.items() if o.result is not None}
        skipped = [f"{name} on the child: {o.reason}" for name, o in outcomes.items() if o.result is None]
        if not results:
            why = "; ".join(f"{name}: {o.reason}" for name, o in outcomes.items())
            raise TrainingError(f"no skin could be made on the child base ({why})")
        best = max(results.values(), key=lambda result: result.evaluation.estimate)  # a tie goes to the cheaper rung
        assert best.skin is not None
        child_skin = read_skin(directory / "skins" / best.skin)
        # the same skin under this rung's name, for which the others were climbed
        provenance = child_skin.provenance.model_copy(update={"rung": self.name})
        place = context.out / "skins" / self.name
        skin = export(replace(child_skin, name=context.skin_name(self.name), provenance=provenance), place)
        search = [
            {"name": name, "estimate": r.evaluation.estimate, "n": r.evaluation.n, "split": "valid"}
            for name, r in results.items()
        ]
        StateFile(directory / "text").remove()
        return replace(
            best,
            rung=self.name,
            train_seconds=trained.seconds + sum(result.train_seconds for result in results.values()),
            reason=f"{trained.tokens:,} tokens of {text.source}; then {best.rung}: {best.reason}",
            skin=str(place.relative_to(context.out)),
            skin_id=skin_id(skin),
            search=tuple(search),
            left_out=(*plan.left_out, *skipped, *best.left_out),
            details={
                **best.details,
                "then": best.rung,
                "tokens": trained.tokens,
                "valid_inputs_in_text": inputs_in(text, context.valid),
                **losses,
            },
            child=f"{CHILDREN}/{self.name}",
        )

    def predictor(self, context: Context, result: RungResult) -> Predicts:
        assert result.skin is not None
        return on_child(context, self.name).predictor(read_skin(context.out / result.skin))

    # --- the text

    def _documents(self, context: Context) -> EncodedText:
        assert context.raw_text is not None
        return encode_text(context.raw_text.documents, context.model.tokenizer, context.seed, HOLDOUT_SHARE)

    def _pretrain(self, context: Context, plan: RungPlan, work: Path) -> tuple[TrainResult, dict[str, float]]:
        """Trains the child and writes it; the loss per token of kept documents before and after, where there are."""
        text = self._documents(context)
        chosen = first_tokens(text.learned, plan.settings["tokens"])
        row = plan.settings["row"]
        micro = max(1, MICRO_TOKENS // row)
        made_from = {
            "text": plan.settings["text"],
            "tokenizer": context.model.base.identity.tokenizer_id,
            "held": HOLDOUT_SHARE,
            "tokens": plan.settings["tokens"],
            "seed": context.seed,
        }
        source = DocumentSource(
            list(chosen.values()),
            row,
            BATCH_ROWS,
            micro_rows=micro,
            seed=context.seed,
            ids=list(chosen),
            content=sha256_json(made_from),
        )
        config = TrainConfig(
            learning_rate=plan.settings["learning_rate"],
            weight_decay=0.1,
            seed=context.seed,
            save_seconds=120.0,
            dtype=context.spec.train_dtype,
        )
        with context.model.engine.exclusive() as base:
            model = trainable_copy(base)
            eval_batches = heldout_batches(first_tokens(text.heldout, HELD_ROWS * row), row, micro)
            before = heldout_loss(model, eval_batches)
            result = train(
                model,
                source,
                NextToken(),
                config,
                work,
                model.named_parameters(),
                identity={"base": base.identity.weights_id, "text": plan.settings["text"]},
                on_checkpoint=context.check_step,
                description=f"{self.name}: text",
            )
            after = heldout_loss(model, eval_batches)
        assert context.raw_text is not None
        provenance: Mapping[str, Any] = {
            "objective": "next_token",
            "text": {"source": context.raw_text.source, "sha256": context.raw_text.sha256},
            "tokens": result.tokens,
            "config": config.numbers(),
            "steps": result.steps,
            "arithmetic": result.arithmetic.to_json(),
            "code_version": __version__,
        }
        write_child(context, self.name, model, provenance)
        losses_by_name = {"held_out_loss_before": before, "held_out_loss": after}
        return result, {name: loss for name, loss in losses_by_name.items() if loss is not None}
