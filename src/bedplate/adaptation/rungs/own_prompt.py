"""The team's own prompt, as it stands in the task file: one more candidate, calibrated and judged like the others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungPlan, RungResult, Skip, no_time
from bedplate.adaptation.rungs.rung import Rung, Traits
from bedplate.adaptation.rungs.successive_halving import HalvingStage, Variant, choose
from bedplate.adaptation.rungs.zero_shot import finish
from bedplate.adaptation.task.task_prompt import task_output


class OwnPromptRung(Rung):
    """A prompt skin of `adapt.prompt`."""

    name = "own_prompt"
    traits = Traits(side="prompt", learns=False, own_prompt=True)

    def plan(self, context: Context) -> RungPlan | Skip:
        prompt_spec = context.spec.prompt
        if prompt_spec is None:
            return Skip("the task file gives no `adapt.prompt`")
        if prompt_spec.format == "chat" and context.model.tokenizer.chat is None:
            return Skip(f"`adapt.prompt` is a chat and {context.model.base.name} has no chat template")
        # its length against the plain prompt's, on one row
        row = context.valid[0].inputs
        plain, _ = context.default_prompt()
        tokenizer = context.model.tokenizer
        share = len(prompt_spec.prompt.tokens(tokenizer, row)) / max(1, len(plain.tokens(tokenizer, row)))
        rows = len(context.valid) * max(1.0, share)
        seconds = context.throughput.rows(rows) + context.timing * max(1.0, share)
        if seconds > context.seconds_left:
            return no_time(seconds, context.seconds_left)
        return RungPlan({"format": prompt_spec.format}, seconds)

    def settings(self, context: Context) -> Any:
        return None if context.spec.prompt is None else context.spec.prompt.model_dump(mode="json")

    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        start = time.perf_counter()
        prompt_spec = context.spec.prompt
        assert prompt_spec is not None
        variant = Variant("own", prompt_spec.prompt, task_output(context.task, context.written, prompt_spec.format))
        winner, order, tried = choose(context, [variant], [HalvingStage(None, 1)])
        return finish(context, self.name, winner, order, tried, plan, start)
