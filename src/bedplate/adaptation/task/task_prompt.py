"""How a task is put to a base, whatever its output: its prompt, what the skin answers with, a right answer's text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bedplate.core.errors import ConfigError, DataError, RequestError
from bedplate.evaluation.examples import Example
from bedplate.evaluation.task import Task
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Grammar
from bedplate.skins.output import Output
from bedplate.skins.phrasings import (
    BELOW,
    CONTINUATION,
    PHRASINGS,
    default_continuations,
    default_prompt,
    generation_prompt,
)
from bedplate.skins.prompt import Format, Prompt, answer_text
from bedplate.text.tokenizer import Tokenizer

STOPS = ("\n", "\n\n")
"""What ends a text after a plain prompt, where no answer of train holds it."""


@dataclass(frozen=True)
class AnswerLengths:
    """How long answers are where the model writes them, from train's targets. mean, longest: in tokens, the end token
    counted. max_tokens: what a skin may write, the task's own number or a quarter more than the longest. stop: after a
    plain prompt. beyond: targets that are longer than `max_tokens`."""

    mean: float = 0.0
    longest: int = 0
    max_tokens: int = 0
    stop: tuple[str, ...] = ()
    beyond: int = 0

    @classmethod
    def of(cls, task: Task, tokenizer: Tokenizer, train: Sequence[Example]) -> AnswerLengths:
        """Nothing is written for a label, which is chosen by score."""
        if task.labels:
            return cls()
        texts = [answer_text(Prompt("{{ inputs }}"), _bare_output(task), e.target) for e in train]
        lengths = [len(ids) + 1 for ids in tokenizer.encode_batch(texts, parse_special=False)]
        longest = max(lengths)
        max_tokens = task.output.max_tokens or _with_room(longest)
        stop = task.output.stop
        if stop is None:
            stop = next(((mark,) for mark in STOPS if not any(mark in text.strip() for text in texts)), ())
        return cls(sum(lengths) / len(lengths), longest, max_tokens, stop, sum(n > max_tokens for n in lengths))


def _with_room(longest: int) -> int:
    """Tokens for answers that are a quarter longer than the longest of train."""
    return math.ceil((longest * 1.25 + 8) / 8) * 8


def task_prompt(
    task: Task, written: AnswerLengths, format: Format = "plain", phrasing: str = "form"
) -> tuple[Prompt, Output]:
    """The task's prompt in one of its phrasings, and the output that fits it."""
    fields, schema = list(task.inputs), task.output.form.json_form
    if task.labels:
        prompt = default_prompt(task.task, task.instructions, fields, task.labels, format, phrasing)
    else:
        prompt = generation_prompt(task.task, task.instructions, fields, schema, format, phrasing)
    return prompt, task_output(task, written, format)


def task_output(task: Task, written: AnswerLengths, format: Format) -> Output:
    """What a skin with a prompt of this format answers with."""
    stop = task.output.stop if format == "chat" else written.stop
    return task.output.form.for_prompt(default_continuations(task.labels, format), written.max_tokens, stop or ())


def phrasings(task: Task) -> list[str]:
    """The ways to ask in a plain prompt, in the order in which a short time drops the last. What says nothing without
    instructions is not among them without any."""
    names = [name for name in PHRASINGS if task.instructions or name in ("form", "bare")]
    names.sort(key=lambda name: name not in ("form", "bare"))
    if task.output.kind == "text" and len(task.inputs) == 1:
        names.insert(1, CONTINUATION)
    if task.output.kind == "text":
        names.insert(1, BELOW)
    return names


def check_answers(task: Task, engine: Engine, examples: Sequence[Example]) -> None:
    """Every answer must be one that the model can be held to: ConfigError for a schema that no text satisfies, or that
    the base's grammars cannot be made for; DataError naming a row whose target the grammar does not let through."""
    if task.labels:
        return
    output = _bare_output(task)
    source = output.grammar()
    if source is None:
        return
    grammar = Grammar(*source)
    try:
        engine.compile(grammar)
    except RequestError as error:
        raise ConfigError(f"{task.path}: output: no answer can be held to it: {error.message}") from error
    prompt = Prompt("{{ inputs }}")
    for example in examples:
        text = answer_text(prompt, output, example.target)
        if not engine.grammars.accepts(grammar, text):
            raise DataError(
                f"row {example.id}: the target {text[:200]} is valid, but no text that the grammar of the output lets "
                "a model write; simplify the schema, or remove the row"
            )


def check_lengths(task: Task, written: AnswerLengths, targets: int) -> None:
    """ConfigError where the task's `max_tokens` cuts off more than half of the train targets: no model can answer
    these rows."""
    if 2 * written.beyond > targets:
        raise ConfigError(
            f"{task.path}: output.max_tokens: {written.max_tokens} cuts off {written.beyond:,} of the {targets:,} "
            f"train targets (the longest has {written.longest} tokens), so that no model can write them; set it to "
            f"{_with_room(written.longest)}, or leave it out, and it is taken from the targets"
        )


def _bare_output(task: Task) -> Output:
    """The kind of output alone, for what does not depend on lengths."""
    return task_output(task, AnswerLengths(max_tokens=1), "plain")
