"""The base as it is: a few ways to ask, plain or through the chat template, chosen and (labels) calibrated on valid;
and the team's own prompt, calibrated and judged like the others."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungPlan, RungResult, Skip, no_time, rows_left_out
from bedplate.adaptation.rungs import successive_halving as halving
from bedplate.adaptation.rungs.answers import judged, with_bias
from bedplate.adaptation.rungs.rung import Rung, Traits
from bedplate.adaptation.task.task_prompt import phrasings, task_output
from bedplate.evaluation.examples import Example
from bedplate.skins.files import read_skin
from bedplate.skins.prompt import Format

FIRST_ROWS = 80
MIN_ROWS = 64
"""The fewest rows of valid that a prompt is judged on."""
SHARE = 0.3
"""At most so much of the time that is left."""


class ZeroShot(Rung):
    """A prompt skin without demonstrations."""

    name = "zero_shot"
    traits = Traits(side="prompt", role="baseline", learns=False, own_prompt=True, worth=0.25)

    def plan(self, context: Context) -> RungPlan | Skip:
        first, second, *extra_phrasings = [f"plain/{name}" for name in phrasings(context.task)]
        chat = ["chat"] if context.model.tokenizer.chat is not None else []
        # where answers are written, a base that was tuned for chat ends them as its template does: what is tried first
        names = [first, second, *chat, *extra_phrasings] if context.labels else [*chat, first, second, *extra_phrasings]
        n, room, first_rows = len(context.valid), context.room(SHARE), halving.first_rows_of(context, FIRST_ROWS)
        left_out: list[str] = []
        while True:
            # what is answered twice, where there is a choice
            rows = halving.row_cost(halving.stages_for(n, first_rows), len(names), n)
            rows += first_rows if len(names) > 1 else 0
            seconds = context.throughput.rows(rows) + context.timing
            if seconds <= room or len(names) == 1:
                break
            left_out.append(f"the phrasing {names.pop()} was not tried: no time")
        if seconds <= context.seconds_left:
            return RungPlan({"variants": names, "first_rows": first_rows}, seconds, tuple(left_out))
        asked, seconds = rows_in_time(context)
        if seconds > context.seconds_left:
            return no_time(seconds)
        left_out.append(rows_left_out(asked, n, "valid"))
        return RungPlan({"variants": names, "first_rows": first_rows, "rows": asked}, seconds, tuple(left_out))

    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        start = time.perf_counter()
        variants = [self._variant(context, name) for name in plan.settings["variants"]]
        rows = plan.settings.get("rows")
        stages = halving.stages_for(len(context.valid), plan.settings["first_rows"])
        stages = stages if rows is None else [halving.HalvingStage(rows, 1)]
        winner, order, tried = halving.choose(context, variants, stages)
        context.chosen.prompt = (winner.prompt, winner.output)
        details = {"phrasings": halving.spread(variants)}
        return finish(context, self.name, winner, order, tried, plan, start, details)

    def remember(self, context: Context, result: RungResult) -> None:
        assert result.skin is not None
        skin = read_skin(context.out / result.skin)
        context.chosen.prompt = (skin.prompt, skin.output.uncalibrated())

    @staticmethod
    def _variant(context: Context, name: str) -> halving.Variant:
        prompt_format: Format = "chat" if name == "chat" else "plain"
        return halving.Variant(name, *context.task_prompt(prompt_format, name.partition("/")[2] or "form"))


def rows_in_time(context: Context, times: float = 1.0) -> tuple[int, float]:
    """How many rows of valid there is the time to ask, a few at least, and the seconds of that and timing. times:
    what a row takes of one with the plain prompt."""
    rows, least = len(context.valid), min(MIN_ROWS, len(context.valid))
    while (seconds := times * (context.throughput.rows(rows) + context.timing)) > context.seconds_left and rows > least:
        rows = max(least, int(rows * 0.8))
    return rows, seconds


def finish(
    context: Context,
    rung: str,
    winner: halving.Variant,
    order: Sequence[Example],
    tried: Sequence[Mapping[str, Any]],
    plan: RungPlan,
    start: float,
    details: Mapping[str, Any] | None = None,
) -> RungResult:
    """Export the winner of a search as a skin, measure it, and report it on all of valid. details: the rung's own."""
    output = winner.output.with_bias(winner.bias)
    predictions = with_bias(winner.predictions, output)
    skin = halving.variant_skin(context, rung, winner, output)
    seconds = time.perf_counter() - start
    bias = ", ".join(f"{label} {b:+.2f}" for label, b in zip(context.labels, winner.bias, strict=True))
    bias = f"; label bias {bias} fitted on valid" if bias else ""
    written = context.written
    beyond = (
        f"; {written.beyond} of {len(context.train)} train answers are longer than max_tokens, {written.max_tokens}"
    )
    shown = f", {len(winner.demonstrations)} demonstrations" if winner.demonstrations else ""
    best = f": the best of {len(tried)} on valid" if len(tried) > 1 else ""
    part = "" if len(predictions) == len(order) else f"; judged on {len(predictions)} of {len(order)} valid rows"
    reason = f"{winner.name}{shown}{best}{bias}{part}{beyond if written.beyond else ''}"
    by_id = {e.id: p for e, p in zip(order[: len(predictions)], predictions, strict=True)}
    facts = {"variant": winner.name, "uncalibrated": winner.raw_estimate, "bias": list(winner.bias)}
    return replace(
        judged(context, rung, skin, seconds, reason, by_id),
        search=tuple(tried),
        left_out=plan.left_out,
        details={**facts, **(details or {})},
    )


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
        n, (rows, seconds) = len(context.valid), rows_in_time(context, max(1.0, share))
        if seconds > context.seconds_left:
            return no_time(seconds)
        settings = {"format": prompt_spec.format}
        if rows == n:
            return RungPlan(settings, seconds)
        return RungPlan({**settings, "rows": rows}, seconds, (rows_left_out(rows, n, "valid"),))

    def settings(self, context: Context) -> Any:
        return None if context.spec.prompt is None else context.spec.prompt.model_dump(mode="json")

    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        start = time.perf_counter()
        prompt_spec = context.spec.prompt
        assert prompt_spec is not None
        variant = halving.Variant(
            "own", prompt_spec.prompt, task_output(context.task, context.written, prompt_spec.format)
        )
        winner, order, tried = halving.choose(context, [variant], [halving.HalvingStage(plan.settings.get("rows"), 1)])
        return finish(context, self.name, winner, order, tried, plan, start)
