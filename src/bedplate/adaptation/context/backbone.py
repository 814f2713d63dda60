"""How a base takes part in a task: one class for each way to read its rows and to answer, which is asked whatever
depends on it, so that a base with another input (images, sound) is one class more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from bedplate.adaptation.context import throughput as speed
from bedplate.adaptation.context.bases import TaskBase
from bedplate.adaptation.task.task_prompt import AnswerLengths, task_prompt
from bedplate.core.values import Values
from bedplate.evaluation.examples import Example
from bedplate.evaluation.task import Task
from bedplate.inference.predict.predictor import Predictor
from bedplate.skins.output import LabelOutput, LabelsOutput, Output
from bedplate.skins.phrasings import text_prompt
from bedplate.skins.prompt import Prompt, answer_text, prompt_and_longest_answer

Pooling = Literal["last", "mean", "first"]


@dataclass(frozen=True)
class TimedRows:
    """Rows that are timed with a prompt. predictor: makes what answers them, where that takes no head."""

    prompt: Prompt
    rows: Sequence[Values]
    predictor: Callable[[], Predictor]

    @property
    def texts(self) -> list[str]:
        return [str(self.prompt.text(row)) for row in self.rows]


@dataclass(frozen=True)
class Backbone:
    """A base that continues text."""

    task: Task
    at: TaskBase

    writes: ClassVar[bool] = True
    """Whether it answers in its own tokens, as a prompt asks it to; else a head on its states answers."""
    poolings: ClassVar[tuple[Pooling, ...]] = ("last", "mean")
    """The ways in which a head may pool its states."""
    fixed_format: ClassVar[str | None] = None
    """Why its skins are served in the weights that they were made with; None where other formats are tried."""

    @property
    def unfit(self) -> str | None:
        """Why it cannot answer this task, whatever is done with it."""
        return None

    def missing(self, *, writing: bool, continuing: bool) -> str | None:
        """What a rung that needs a base which writes, or continues text, lacks in it."""
        return None

    @property
    def capacity(self) -> str:
        """How long a row may be, as the end of a sentence about one that is longer."""
        return f"more than the context of {self.at.base_name} holds ({self.at.model.base.spec.context_length:,})"

    def prompt(self, written: AnswerLengths, phrasing: str) -> tuple[Prompt, Output]:
        """The task in one of its plain phrasings, and the output that fits it."""
        return task_prompt(self.task, written, "plain", phrasing)

    def tokens(self, prompt: Prompt, inputs: Values) -> Sequence[int]:
        """A row as the base reads it. ContextLengthExceeded."""
        model = self.at.model
        return prompt.tokens(model.tokenizer, inputs, limit=model.base.spec.context_length)

    def shared_tokens(self, prompt: Prompt) -> int:
        """The number of tokens that all rows begin with, whose states are computed once."""
        return len(prompt.constant_prefix(self.at.model.tokenizer, fields=list(self.task.inputs)))

    def row_tokens(self, prompt: Prompt, output: Output, example: Example) -> tuple[int, int]:
        """The numbers of tokens of a row and of its longest answer."""
        tokenizer = self.at.model.tokenizer
        prompt_tokens, max_answer = prompt_and_longest_answer(prompt, tokenizer, example.inputs, output)
        if output.answered_by == "generate":
            answer = answer_text(prompt, output, example.target)
            max_answer = max(max_answer, len(tokenizer.encode(answer, parse_special=False)) + 1)
        return len(prompt_tokens), max_answer

    def throughput(self, timed: TimedRows, written: AnswerLengths, room: float) -> speed.Throughput:
        """Its speed on these rows, measured in about `room` seconds."""
        with timed.predictor() as predictor:
            return speed.measure_throughput(predictor, timed.rows, written, room)

    def calls(self, timed: TimedRows, limit: float, tenant: str) -> speed.CallTimings:
        """What single calls of these rows take: the least of a few medians, until one is within `limit` seconds."""
        with timed.predictor() as predictor:
            return speed.read_calls(predictor, timed.rows, limit, tenant)


class EncoderDecoder(Backbone):
    """A base that reads one text and writes another."""

    def missing(self, *, writing: bool, continuing: bool) -> str | None:
        return f"a base that continues text; {self.at.base_name} has an encoder" if continuing else None

    @property
    def capacity(self) -> str:
        spec = self.at.model.base.spec
        return f"but {self.at.base_name} reads {spec.context_length:,} at most and writes {spec.main.context_length:,}"


class Encoder(Backbone):
    """A base that reads and does not write: it is given the inputs alone, and a head answers with a label."""

    writes = False
    poolings = ("mean", "first")
    fixed_format = "an encoder runs in its own weights"

    @property
    def unfit(self) -> str | None:
        no_answer = f"{self.at.base_name} is an encoder, which writes no answer of kind {self.task.output.kind}"
        return None if self.task.output.labels else no_answer

    def missing(self, *, writing: bool, continuing: bool) -> str | None:
        return f"a decoder; {self.at.base_name} is an encoder" if writing else None

    def prompt(self, written: AnswerLengths, phrasing: str) -> tuple[Prompt, Output]:
        several = LabelsOutput(labels=self.task.output.labels or (), threshold=0.5)
        output = LabelOutput(labels=self.task.labels) if self.task.labels else several
        return text_prompt(list(self.task.inputs)), output

    def tokens(self, prompt: Prompt, inputs: Values) -> Sequence[int]:
        return self.at.model.text_tokens(str(prompt.text(inputs)))

    def shared_tokens(self, prompt: Prompt) -> int:
        return 0  # a state depends on what follows as well

    def row_tokens(self, prompt: Prompt, output: Output, example: Example) -> tuple[int, int]:
        return len(self.tokens(prompt, example.inputs)), 0

    def throughput(self, timed: TimedRows, written: AnswerLengths, room: float) -> speed.Throughput:
        return speed.embedding_throughput(self.at.model, timed.texts, room)

    def calls(self, timed: TimedRows, limit: float, tenant: str) -> speed.CallTimings:
        return speed.read_texts(self.at.model, timed.texts, limit)


def backbone_of(task: Task, at: TaskBase) -> Backbone:
    """The class of the base, which is loaded for it."""
    if at.facts.architecture == "encoder":
        return Encoder(task, at)
    return (EncoderDecoder if at.facts.has_encoder else Backbone)(task, at)
