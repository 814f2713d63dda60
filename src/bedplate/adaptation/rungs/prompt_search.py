"""Instructions and demonstrations searched together on valid by successive halving.

Instructions are rewrites and what a proposer writes (`proposals`); the best of them are tried with sets of
demonstrations from train. Searching both, as in Opsahl-Ong et al. (https://arxiv.org/abs/2406.11695).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.embedding import named_weights
from bedplate.adaptation.context.outcome import RungPlan, RungResult, Skip, no_time
from bedplate.adaptation.rungs import successive_halving as halving
from bedplate.adaptation.rungs.few_shot import FewShot
from bedplate.adaptation.rungs.proposals import Proposal, propose, rewrites
from bedplate.adaptation.rungs.rung import Rung, Traits
from bedplate.adaptation.rungs.zero_shot import finish
from bedplate.adaptation.task.task_prompt import task_prompt
from bedplate.evaluation.examples import Example
from bedplate.skins.prompt import Demonstration, Format, answer_text

NUMBER = 8
"""Proposals of the base itself, where the task names no proposer."""
FIRST_ROWS, SECOND_ROWS = 40, 100
KEPT_INSTRUCTIONS = 3
SETS = ((4, 0), (8, 1), (8, 2))
"""Size and number of the sets of demonstrations."""
SHARE = 0.35


class PromptSearch(Rung):
    """A prompt skin."""

    name = "prompt_search"
    traits = Traits(side="prompt", whole_prompt=True, dear=True)

    def plan(self, context: Context) -> RungPlan | Skip:
        proposer = context.spec.proposer
        if not context.task.instructions and proposer is None:
            return Skip("the task has no `instructions` to rewrite, and names no `adapt.proposer`")
        proposals = NUMBER if proposer is None else proposer.number
        n, sets = len(context.valid), [list(demo_set) for demo_set in SETS]
        first_rows, second_rows = (halving.first_rows_of(context, rows) for rows in (FIRST_ROWS, SECOND_ROWS))
        planned = (proposals, len(sets))
        while True:
            instructions = proposals + len(rewrites(context))
            rows = halving.row_cost([halving.HalvingStage(first_rows, KEPT_INSTRUCTIONS)], instructions, n)
            row_factor = 1 + sum(size for size, _ in sets) / max(1, len(sets))
            candidates = KEPT_INSTRUCTIONS * (1 + len(sets))
            rows += halving.row_cost(halving.stages_for(n, second_rows, (2, 1)), candidates, n) * row_factor
            seconds = (
                context.throughput.rows(rows) * 1.2
                + context.timing * row_factor
                + proposals * 40 * context.throughput.call
            )
            if seconds <= context.room(SHARE) or (proposals <= 2 and not sets):
                break
            if len(sets) * 3 >= proposals:
                sets.pop()
            else:
                proposals -= 1
        if seconds > context.seconds_left:
            return no_time(seconds)
        left_out: list[str] = []
        if (proposals, len(sets)) != planned:
            left_out.append(
                f"{planned[0] - proposals} of {planned[0]} proposals and {planned[1] - len(sets)} of {planned[1]} "
                "sets of demonstrations were not tried: no time"
            )
        settings = {"proposals": proposals, "sets": sets, "first_rows": first_rows, "second_rows": second_rows}
        return RungPlan(settings, seconds, tuple(left_out))

    def settings(self, context: Context) -> Any:
        proposer = context.spec.proposer
        if proposer is None:
            return None
        base_names = () if proposer.base is None else (proposer.base,)
        return [proposer.model_dump(mode="json", exclude={"timeout_s", "retries"}), named_weights(context, base_names)]

    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        start = time.perf_counter()
        settings = plan.settings
        proposals, failure = propose(context, settings["proposals"], directory / "proposals.jsonl")
        left_out = plan.left_out if failure is None else (*plan.left_out, failure)
        texts_by_name = {proposal.name: proposal.text for proposal in proposals}
        answers = directory / "answers"
        alone = [self._variant(context, proposal, ()) for proposal in proposals]
        first = [halving.HalvingStage(settings["first_rows"], KEPT_INSTRUCTIONS)]
        best, _, tried = halving.halve(context, alone, first, answers)
        by_name = {proposal.name: proposal for proposal in proposals}
        crossed = [
            variant for survivor in best for variant in self._crossed(context, by_name[survivor.name], settings["sets"])
        ]
        stages = halving.stages_for(len(context.valid), settings["second_rows"], (2, 1))
        winners, order, demo_trials = halving.halve(context, [*best, *crossed], stages, answers)
        record = [{**row, "stage": "instructions", "text": texts_by_name[row["name"]]} for row in tried]
        record += [
            {**row, "stage": "with demonstrations", "text": texts_by_name[_origin(row["name"])]} for row in demo_trials
        ]
        plan = RungPlan(settings, plan.seconds, left_out)
        winner = winners[0]
        details = {"instructions": texts_by_name[_origin(winner.name)], "proposals": len(proposals)}
        return finish(context, self.name, winner, order, record, plan, start, details)

    @staticmethod
    def _variant(
        context: Context, proposal: Proposal, shown: Sequence[Example], name: str | None = None
    ) -> halving.Variant:
        """The task with these instructions, in the format that zero-shot chose, with rows of train shown."""
        chosen: Format = context.default_prompt()[0].format
        task = context.task.model_copy(update={"instructions": proposal.text})
        prompt, output = task_prompt(task, context.written, chosen)
        demonstrations = tuple(Demonstration(e.inputs, answer_text(prompt, output, e.target)) for e in shown)
        return halving.Variant(name or proposal.name, prompt, output, demonstrations)

    def _crossed(self, context: Context, proposal: Proposal, sets: Sequence[Sequence[int]]) -> list[halving.Variant]:
        """One instruction with each set of demonstrations that fits."""
        variants: list[halving.Variant] = []
        tokenizer = context.model.tokenizer
        labels = len(context.labels)
        for about, number in sets:
            size = max(labels, about // labels * labels) if labels else about
            rows = FewShot.draw(context, size, number)
            name = f"{proposal.name}{_WITH}set {number} of {size}"
            variant = self._variant(context, proposal, rows, name)
            inputs = context.valid[0].inputs
            bare = len(variant.prompt.tokens(tokenizer, inputs))
            demo_tokens = len(variant.prompt.tokens(tokenizer, inputs, variant.demonstrations)) - bare
            if demo_tokens <= halving.room_beside(context, variant.prompt, variant.output):
                variants.append(variant)
        return variants


_WITH = ", with "


def _origin(name: str) -> str:
    return name.partition(_WITH)[0]
