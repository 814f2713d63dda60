"""Worked examples in the prompt: random sets from train (balanced, where there are labels), the best chosen on valid.

Sets differ more than most choices do (six random ones of 8 read 0.555 to 0.862 on the reviews), so several are tried.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungPlan, RungResult, Skip, no_time
from bedplate.adaptation.rungs import successive_halving as halving
from bedplate.adaptation.rungs.rung import Rung, Traits
from bedplate.adaptation.rungs.zero_shot import finish
from bedplate.core.errors import ContextLengthExceeded
from bedplate.evaluation.examples import Example
from bedplate.skins.output import Output
from bedplate.skins.prompt import Demonstration, Prompt, answer_text, prompt_and_longest_answer

SIZES = (8, 4)
SMALL_SIZES = (2, 1)
"""For long rows whose answers are written: tried where fewer than two of the usual sizes fit."""

SETS = 6
FIRST_ROWS = 64
SHARE = 0.25


class FewShot(Rung):
    """A prompt skin with demonstrations."""

    name = "few_shot"
    traits = Traits(side="prompt", role="examples", whole_prompt=True)

    def plan(self, context: Context) -> RungPlan | Skip:
        sizes = self._sizes(context)
        limit = halving.prompt_limit(context)
        if not sizes:
            unit = "set with one example of each label" if context.labels else "worked example"
            return Skip(f"no {unit} fits {limit:,} prompt tokens beside the longest input")
        sets: list[list[Any]] = [["plain", sizes[0], number] for number in range(SETS)]
        sets += [["plain", k, 0] for k in sizes[1:]]
        if context.model.tokenizer.chat is not None:
            sets.append(["chat", sizes[0], 0])
        n, left_out, first_rows = len(context.valid), list[str](), halving.first_rows_of(context, FIRST_ROWS)
        # Rows differ in length, and so do sets of as many; the plain ones of sizes[0] have one that fits.
        drawn = len(sets)
        sets = [demo_set for demo_set in sets if self._fits(context, self._variant(context, *demo_set))]
        if len(sets) < drawn:
            left_out.append(f"{drawn - len(sets)} of {drawn} sets of demonstrations do not fit {limit:,} prompt tokens")
        planned = len(sets)
        while True:
            stages = halving.stages_for(n, first_rows, (3, 1))
            seconds = context.throughput.rows(halving.row_cost(stages, len(sets), n) + first_rows)
            seconds += context.throughput.passes(len(sets) * 2 * sizes[0])
            # attention over the demonstrations makes a row dearer than a bare one
            seconds = seconds * 1.3 + context.timing * 1.2
            if seconds <= context.room(SHARE) or len(sets) <= 1:
                break
            sets.pop()
        if seconds > context.seconds_left:
            return no_time(seconds)
        if len(sets) < planned:
            left_out.append(f"{planned - len(sets)} of {drawn} sets of demonstrations were not tried: no time")
        return RungPlan({"sets": sets, "first_rows": first_rows}, seconds, tuple(left_out))

    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        start = time.perf_counter()
        variants = [self._variant(context, *chosen) for chosen in plan.settings["sets"]]
        stages = halving.stages_for(len(context.valid), plan.settings["first_rows"], (3, 1))
        winner, order, tried = halving.choose(context, variants, stages)
        return finish(context, self.name, winner, order, tried, plan, start)

    def _sizes(self, context: Context) -> list[int]:
        """Set sizes to try, as many as SIZES has, that fit the prompt budget: near the usual ones, and where there are
        labels multiples of their number."""
        labels = len(context.labels)
        sizes = (max(labels, size // labels * labels) for size in SIZES) if labels else (*SIZES, *SMALL_SIZES)
        fitting = [
            size
            for size in dict.fromkeys(sizes)
            if any(self._fits(context, self._variant(context, "plain", size, i)) for i in range(SETS))
        ]
        return fitting[: len(SIZES)]

    def _fits(self, context: Context, variant: halving.Variant) -> bool:
        longest = max(context.valid, key=lambda e: sum(map(len, e.texts.values())))
        prompt, output, tokenizer = variant.prompt, variant.output, context.model.tokenizer
        limit = min(halving.prompt_limit(context), context.model.base.prompt_room(output.token_limit))
        try:
            prompt_and_longest_answer(prompt, tokenizer, longest.inputs, output, variant.demonstrations, limit=limit)
        except ContextLengthExceeded:
            return False
        return True

    def _variant(self, context: Context, prompt_format: str, size: int, number: int) -> halving.Variant:
        prompt, output = self._prompt(context, prompt_format)
        chosen = self.draw(context, size, number)
        shown = tuple(Demonstration(e.inputs, answer_text(prompt, output, e.target)) for e in chosen)
        return halving.Variant(f"{prompt_format}, set {number} of {size}", prompt, output, shown)

    @staticmethod
    def _prompt(context: Context, prompt_format: str) -> tuple[Prompt, Output]:
        if prompt_format == "plain":
            prompt, output = context.default_prompt()
            if prompt.format == "plain":
                return prompt, output
        return context.task_prompt("chat" if prompt_format == "chat" else "plain")

    @staticmethod
    def draw(context: Context, size: int, number: int) -> list[Example]:
        """A set from train in a random order, balanced where there are labels; the longest tenth of the rows is left
        out of the pool."""
        order = context.ordered(context.train, f"demonstrations/{number}")
        lengths = sorted(sum(map(len, e.texts.values())) for e in order)
        longest = lengths[int(0.9 * (len(lengths) - 1))]
        chosen: list[Example] = []
        pools = [[e for e in order if e.target == label] for label in context.labels] or [order]
        per_pool = size // len(pools)
        for pool in pools:
            short = [e for e in pool if sum(map(len, e.texts.values())) <= longest]
            chosen += (short if len(short) >= per_pool else pool)[:per_pool]
        return context.shuffled(chosen, f"demonstration order/{number}")
