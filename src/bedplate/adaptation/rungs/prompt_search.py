"""Instructions and demonstrations searched together on valid by successive halving.

Instructions are fixed rewrites of the task's own, and what a model proposes that is shown examples of train with their
answers (Zhou et al., https://arxiv.org/abs/2211.01910); the best of them are tried with sets of demonstrations from
train. Searching both, as in Opsahl-Ong et al. (https://arxiv.org/abs/2406.11695).
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.bases import source_of
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.embedding import named_weights
from bedplate.adaptation.context.outcome import RungPlan, RungResult, Skip, no_time
from bedplate.adaptation.rungs import successive_halving as halving
from bedplate.adaptation.rungs.few_shot import FewShot
from bedplate.adaptation.rungs.rung import Rung, Traits
from bedplate.adaptation.rungs.zero_shot import finish
from bedplate.adaptation.task.adapt_parts import ProposerSpec
from bedplate.adaptation.task.task_prompt import task_prompt
from bedplate.core import errors
from bedplate.core.files import append_jsonl, read_jsonl
from bedplate.core.progress import progress
from bedplate.evaluation.examples import Example
from bedplate.inference.predict.hosted_predictor import open_endpoint
from bedplate.inference.remote.endpoint import Endpoint
from bedplate.skins.prompt import Demonstration, Format, answer_text

MAX_CHARACTERS = 600
"""A longer proposal is a sign that it is no instruction, but an essay about one."""
_SHOWN, _SHOWN_CHARACTERS, _MAX_TOKENS = 6, 300, 120
_REWRITES = (
    "{said}",
    "{said} Answer with {answers}.",
    "Read the {inputs} with care. {said}",
    "Task: {said}",
    "{said} If it is not clear, choose what is most likely.",
    "You are an expert. {said}",
)


@dataclass(frozen=True)
class Proposal:
    """An instruction, and where it comes from: "rewrite 2", "proposal 5"."""

    name: str
    text: str


def rewrites(context: Context) -> list[Proposal]:
    """The task's own instructions, and fixed changes to them."""
    instructions = context.task.instructions.strip()
    if not instructions:
        return []
    answers = "one of " + ", ".join(context.labels) if context.labels else "nothing else than the answer"
    inputs = " and the ".join(context.fields)
    rewritten = [
        template.format(said="\0", answers=answers, inputs=inputs).replace("\0", instructions) for template in _REWRITES
    ]
    return [Proposal("the task's own" if i == 0 else f"rewrite {i}", text) for i, text in enumerate(rewritten)]


def propose(context: Context, number: int, cache_file: Path) -> tuple[list[Proposal], str | None]:
    """Rewrites, and `number` proposals of the task's proposer, or of the base itself, each text once; and why there are
    no more, if the proposer failed. cache_file: a file of what was answered already, which is asked only once."""
    answers = [row["answer"] for row in read_jsonl(cache_file, allow_torn_tail=True)] if cache_file.is_file() else []
    failure: str | None = None
    try:
        if len(answers) < number:
            with closing(_Asker(context)) as proposer:
                for i in progress(range(len(answers), number), "asking for instructions", unit="proposals"):
                    prompt_text, answer = proposer(i)
                    answers.append(answer)
                    append_jsonl(cache_file, [{"number": i, "question": prompt_text, "answer": answer}])
    except (errors.EndpointError, errors.DeadlineError, errors.BusyError, errors.RequestError) as error:
        failure = f"the proposer failed after {len(answers)} of {number} proposals: {error.message}"
    listed: dict[str, Proposal] = {}
    for rewrite in rewrites(context):
        listed.setdefault(rewrite.text, rewrite)
    for i, answer in enumerate(answers[:number]):
        text = cleaned(answer)
        if text is not None:
            listed.setdefault(text, Proposal(f"proposal {i}", text))
    return list(listed.values()), failure


def question(context: Context, number: int, max_rows: int) -> str:
    """What the proposer is asked: `max_rows` rows of train, others for each proposal, and the task's own
    instruction."""
    rows = context.ordered(context.train, f"proposals/{number}")[:max_rows]
    shown: list[str] = []
    for row in rows:
        inputs = [f"{name}: {_short(row.texts[name])}" for name in context.fields]
        shown.append("\n".join([*inputs, f"answer: {_short(row.target)}"]))
    instruction = context.task.instructions.strip()
    instruction_note = f"\n\nSo far the instruction is: {instruction}" if instruction else ""
    return (
        "Here are inputs with their right answers.\n\n"
        + "\n\n".join(shown)
        + instruction_note
        + "\n\nWrite one clear instruction, in one or two sentences, that makes a language model give these answers. "
        "Reply with the instruction alone."
    )


def cleaned(answer: str) -> str | None:
    """The instruction in a proposer's answer; None where there is none of a usable length."""
    text = re.sub(r"\s+", " ", answer).strip()
    text = re.sub(r"^(?:\*\*)?(?:the\s+)?instruction(?:\*\*)?\s*:\s*(?:\*\*)?\s*", "", text, flags=re.IGNORECASE)
    if len(text) > 1 and text[0] in "\"'“" and text[-1] in "\"'”":
        text = text[1:-1].strip()
    return text if 8 <= len(text) <= MAX_CHARACTERS else None


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " …"


class _Asker:
    """The proposer, asked for its n-th proposal; the seed decides what a base of this machine says."""

    def __init__(self, context: Context) -> None:
        self._context = context
        spec = context.spec.proposer or ProposerSpec()
        endpoint = spec.endpoint
        self._endpoint: Endpoint | None = None
        self._settings: dict[str, Any] = {"temperature": 1.0, "max_tokens": 4 * _MAX_TOKENS}
        if endpoint is not None:
            self._model = endpoint.model
            self._endpoint = open_endpoint(endpoint)
            return
        self._local = context.model if spec.base is None else context.embedder(source_of(spec.base, context.task))
        if not self._local.base.writes:
            raise errors.ConfigError(
                f"{context.task.path}: adapt.proposer.base: {spec.base} is an encoder and writes nothing"
            )

    def __call__(self, number: int) -> tuple[str, str]:
        """The question, with as many rows as fit, and what was answered."""
        for max_rows in range(_SHOWN, 0, -1):
            prompt_text = question(self._context, number, max_rows)
            try:
                return prompt_text, self._answer(prompt_text, self._context.seed * 1000 + number)
            except errors.ContextLengthExceeded:
                if max_rows == 1:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _answer(self, prompt_text: str, seed: int) -> str:
        messages = [{"role": "user", "content": prompt_text}]
        if self._endpoint is None:
            prompt = f"{prompt_text}\n\nInstruction:" if self._local.tokenizer.chat is None else messages
            reply = self._local.generate(prompt, max_tokens=_MAX_TOKENS, temperature=0.8, top_p=0.95, seed=seed)
            return reply.text
        while True:
            try:
                return self._endpoint.complete(self._model, messages, **self._settings).text
            except errors.RequestError as error:
                # what some servers have no such field for is not what the proposal depends on
                if error.param not in self._settings:
                    raise
                del self._settings[error.param]

    def close(self) -> None:
        if self._endpoint is not None:
            self._endpoint.close()


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
