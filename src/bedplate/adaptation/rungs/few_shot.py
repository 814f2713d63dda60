"""Worked examples in the prompt: random balanced sets from train, the best chosen on valid.

Sets differ more than most choices do (six random ones of 8 read 0.555 to 0.862 on the reviews), so several are tried.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bedplate.adaptation.context import Context
from bedplate.adaptation.rungs.base import Plan, Result, Skip
from bedplate.adaptation.rungs.search import Variant, choose, row_cost, stages_for
from bedplate.adaptation.rungs.zero_shot import finish
from bedplate.core.errors import ContextLengthExceeded
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Predicts
from bedplate.skins.files import read_skin
from bedplate.skins.output import LabelOutput
from bedplate.skins.phrasings import default_continuations, default_prompt
from bedplate.skins.prompt import Demonstration, Prompt

SIZES = (8, 4)
SETS = 6
FIRST_ROWS = 64
SHARE = 0.25


class FewShot:
    """A prompt skin with demonstrations."""

    name = "few_shot"
    reference = False

    def plan(self, context: Context) -> Plan | Skip:
        sizes = self._sizes(context)
        limit = self._limit(context)
        if not sizes:
            return Skip(f"no set with one example of each label fits {limit:,} prompt tokens beside the longest input")
        sets: list[list[Any]] = [["plain", sizes[0], number] for number in range(SETS)]
        sets += [["plain", k, 0] for k in sizes[1:]]
        if context.model.tokenizer.chat is not None:
            sets.append(["chat", sizes[0], 0])
        n, left_out = len(context.valid), list[str]()
        wanted = len(sets)
        while True:
            stages = stages_for(n, FIRST_ROWS, (3, 1))
            seconds = context.pace.rows(row_cost(stages, len(sets), n) + 64 + len(sets) * 2 * sizes[0])
            # attention over the demonstrations makes a row dearer than a bare one
            seconds = seconds * 1.3 + 66 * context.pace.call * 1.2
            if seconds <= context.left * SHARE or len(sets) <= 2:
                break
            sets.pop()
        if seconds > context.left:
            return Skip(f"it needs about {seconds:.0f} s, {max(context.left, 0):.0f} s of the budget are left")
        if len(sets) < wanted:
            left_out.append(f"{wanted - len(sets)} of {wanted} sets of demonstrations were not tried: no time")
        return Plan({"sets": sets, "first_rows": FIRST_ROWS}, seconds, tuple(left_out))

    def fit(self, context: Context, plan: Plan, directory: Path) -> Result:
        start = time.perf_counter()
        variants = [self._variant(context, *chosen) for chosen in plan.settings["sets"]]
        variants = [variant for variant in variants if self._fits(context, variant)]
        stages = stages_for(len(context.valid), plan.settings["first_rows"], (3, 1))
        winner, order, tried = choose(context, variants, stages)
        return finish(context, self.name, winner, order, tried, plan, start)

    def predictor(self, context: Context, result: Result) -> Predicts:
        assert result.skin is not None
        return context.predictor(read_skin(context.out / result.skin))

    @staticmethod
    def _limit(context: Context) -> int:
        budget = context.spec.budget.max_prompt_tokens
        context_length = context.model.base.spec.context_length
        return context_length if budget is None else min(budget, context_length)

    def _sizes(self, context: Context) -> list[int]:
        """Set sizes to try: multiples of the number of labels, near the usual ones, that fit the prompt budget."""
        labels = len(context.labels)
        rounded = dict.fromkeys(max(labels, size // labels * labels) for size in SIZES)
        return [
            size
            for size in rounded
            if any(self._fits(context, self._variant(context, "plain", size, i)) for i in range(SETS))
        ]

    def _fits(self, context: Context, variant: Variant) -> bool:
        longest = max(context.valid, key=lambda e: sum(map(len, e.inputs.values())))
        try:
            variant.prompt.label_tokens(
                context.model.tokenizer,
                longest.inputs,
                variant.demonstrations,
                variant.output,
                limit=self._limit(context),
            )
        except ContextLengthExceeded:
            return False
        return True

    def _variant(self, context: Context, kind: str, size: int, number: int) -> Variant:
        prompt, output = self._prompt(context, kind)
        answers = dict(zip(output.labels, output.continuations, strict=True))
        chosen = self._draw(context, size, number)
        shown = tuple(Demonstration(e.inputs, answers[e.target]) for e in chosen)
        return Variant(f"{kind}, set {number} of {size}", prompt, output, shown)

    @staticmethod
    def _prompt(context: Context, kind: str) -> tuple[Prompt, LabelOutput]:
        if kind == "plain":
            prompt, output = context.default_prompt()
            if prompt.format == "plain":
                return prompt, output
        chosen = "chat" if kind == "chat" else "plain"
        return (
            default_prompt(context.task.task, context.task.instructions, context.fields, context.labels, chosen),
            LabelOutput(labels=context.labels, continuations=default_continuations(context.labels, chosen)),
        )

    @staticmethod
    def _draw(context: Context, size: int, number: int) -> list[Example]:
        """A balanced set from train in a random order; the longest tenth of the rows is left out of the pool."""
        each = size // len(context.labels)
        order = context.ordered(context.train, f"demonstrations/{number}")
        lengths = sorted(sum(map(len, e.inputs.values())) for e in order)
        longest = lengths[int(0.9 * (len(lengths) - 1))]
        chosen: list[Example] = []
        for label in context.labels:
            pool = [e for e in order if e.target == label]
            short = [e for e in pool if sum(map(len, e.inputs.values())) <= longest]
            chosen += (short if len(short) >= each else pool)[:each]
        return context.shuffled(chosen, f"demonstration order/{number}")
