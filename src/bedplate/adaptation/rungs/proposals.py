"""Other ways to say a task's instructions: fixed rewrites, and what a model proposes that has seen examples of train.

Zhou et al., Large Language Models Are Human-Level Prompt Engineers (https://arxiv.org/abs/2211.01910): a model is shown
inputs with their answers and writes the instruction that they follow.
"""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.bases import source_of
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.task.adapt_parts import ProposerSpec
from bedplate.core.errors import (
    BusyError,
    ConfigError,
    ContextLengthExceeded,
    DeadlineError,
    EndpointError,
    RequestError,
)
from bedplate.core.files import append_jsonl, read_jsonl
from bedplate.core.progress import progress
from bedplate.inference.predict.hosted_predictor import open_endpoint
from bedplate.inference.remote.endpoint import Endpoint

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
    except (EndpointError, DeadlineError, BusyError, RequestError) as error:
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
            raise ConfigError(f"{context.task.path}: adapt.proposer.base: {spec.base} is an encoder and writes nothing")

    def __call__(self, number: int) -> tuple[str, str]:
        """The question, with as many rows as fit, and what was answered."""
        for max_rows in range(_SHOWN, 0, -1):
            prompt_text = question(self._context, number, max_rows)
            try:
                return prompt_text, self._answer(prompt_text, self._context.seed * 1000 + number)
            except ContextLengthExceeded:
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
            except RequestError as error:
                # what some servers have no such field for is not what the proposal depends on
                if error.param not in self._settings:
                    raise
                del self._settings[error.param]

    def close(self) -> None:
        if self._endpoint is not None:
            self._endpoint.close()
