"""What a skin answers with. Each kind of output answers for itself: how an answer comes about, how it is read from what
the model gives, what holds generated text to its form. Nobody asks for an output's class."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, PlainValidator, SerializeAsAny, model_validator

from bedplate.core.config import Grown, Strict
from bedplate.core.errors import RequestError
from bedplate.core.json import plain_number
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.text.json_schema import check_schema, labels_rules, schema_form

AnsweredBy = Literal["generate", "score", "embed"]
GrammarSource = tuple[Literal["json_schema", "ebnf", "choice"], str]
ORDERED_LABELS = 90
"""More labels are not held to their order: a grammar has two rules for each (`grammar_rules.RULES`)."""


class Abstain(Strict):
    """Abstention: `answer` replaces a label whose probability among the labels is `below` this."""

    below: Annotated[float, Field(gt=0, le=1)]
    answer: Annotated[str, Field(min_length=1)] = "abstain"


class OutputForm(Grown):
    """What every kind of output answers for itself; the defaults are those of generated text.

    A new kind is one class and one row in OUTPUT_KINDS, and overrides what differs. `task_fields`: what a task file may
    say of it beside its kind; `needs`: those of them without which it is nothing.
    """

    is_one_label: ClassVar[bool] = False
    """Whether every answer is exactly one label, or an abstention."""
    structure: ClassVar[str | None] = None
    """The fixed structure of every answer, in a few words; None for free text and vectors."""
    task_fields: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()
    json_targets: ClassVar[bool] = False
    """Whether a right answer is a JSON value, which a row's cell may hold as such."""
    several_labels: ClassVar[bool] = False
    """Whether an answer is any number of labels."""

    kind: Any
    """The row's name in OUTPUT_KINDS, a literal in each class."""

    @property
    def answered_by(self) -> AnsweredBy:
        """How an answer comes about: scores decide between labels, the model writes it, or its states are it."""
        return "score" if self.scored_labels else "generate"

    @property
    def scored_labels(self) -> tuple[str, ...]:
        """The labels that scores decide between; () where the answer is written or is a vector."""
        return ()

    @property
    def all_labels(self) -> tuple[str, ...]:
        """The labels that answers consist of, scored or written; () for outputs without labels."""
        return self.scored_labels

    @property
    def label_texts(self) -> tuple[str, ...]:
        """The text that is scored after the prompt for each label; () where a head decides, or nothing is scored."""
        return ()

    @property
    def json_form(self) -> Mapping[str, Any] | None:
        """The JSON schema that a prompt describes the written answer by; None where it is no JSON."""
        return None

    @property
    def probability_threshold(self) -> float | None:
        """The probability from which a head gives a label, where any number of labels may be right."""
        return None

    @property
    def token_limit(self) -> int:
        """The most tokens of a written answer; 0 where nothing is written."""
        return 0

    @property
    def as_embedding(self) -> EmbeddingOutput | None:
        """The settings of the vector, where the answer is one."""
        return None

    def for_prompt(self, texts: tuple[str, ...], max_tokens: int, stop: tuple[str, ...]) -> Self:
        """The output of a skin with one prompt. texts: of the labels; max_tokens, stop: of written answers."""
        return self

    def answer(self, label: str, log_probabilities: Mapping[str, float]) -> str:
        """The label, unless its probability is so low that the output abstains."""
        return label

    def comparable(self, text: str) -> str:
        """The text as predictions and targets are compared. RequestError where it is no answer of this form."""
        return text

    def answer_text(self, target: str, lead_in: Callable[[str], str]) -> str:
        """The text that follows a prompt when `target` is the right answer. lead_in: joins free text to the prompt."""
        return lead_in(target)

    def read_text(self, text: str, *, finished: bool = True) -> str:
        """The answer in a generated text. finished: whether the model ended it by itself."""
        return text.strip()

    def read_scores(
        self, scores: Sequence[float], token_counts: Sequence[int] | None = None
    ) -> tuple[str, dict[str, float]]:
        """The answer that the labels' scores give, and each label's log-probability.

        scores: the total log-probability of each label's text (then with their `token_counts`), or a head's logits.
        RequestError when they are not numbers, or for outputs without scores.
        """
        raise RequestError("this output is not decided by scores")

    def grammar(self) -> GrammarSource | None:
        """Syntax and source of the grammar that generated text is held to; None for free text and for scores."""
        return None

    def generation_settings(self) -> dict[str, Any]:
        """Sampling settings that follow from the output."""
        return {"max_tokens": self.token_limit}

    def remote_settings(self) -> dict[str, Any]:
        """Fields of a chat completion that make a remote model answer in this form."""
        return {"max_tokens": self.token_limit}

    def with_bias(self, bias: Sequence[float]) -> Self:
        """The same output with this bias on its labels' scores."""
        return self

    def uncalibrated(self) -> Self:
        """The same output without what was fitted on validation rows: bias and abstention."""
        return self

    def bare(self) -> Self:
        """The same answers, without the texts and biases that belong to one prompt."""
        return self


def _need_distinct(name: str, texts: Sequence[str]) -> None:
    if len(set(texts)) != len(texts) or not all(texts):
        raise ValueError(f"{name} must be different and not empty, got {list(texts)}")


class LabelOutput(OutputForm):
    """One label out of a list, or `abstain`'s answer.

    `continuations`: the text that is scored for each label after the prompt (" positive"); empty where a head decides.
    `bias` is added to each label's log-score (all zeros by default). `normalise`: "none" compares total
    log-probabilities, "tokens" divides each by its number of tokens.
    """

    LATE = ("abstain",)
    is_one_label = True
    structure = "one of few labels"
    task_fields = frozenset({"labels", "abstain"})
    needs = frozenset({"labels"})

    kind: Literal["label"] = "label"
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    continuations: tuple[str, ...] = ()
    bias: tuple[float, ...] = ()
    normalise: Literal["none", "tokens"] = "none"
    abstain: Abstain | None = None

    @model_validator(mode="before")
    @classmethod
    def _zero_bias(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and not values.get("bias") and isinstance(values.get("labels"), Sequence):
            return {**values, "bias": (0.0,) * len(values["labels"])}
        return values

    @model_validator(mode="after")
    def _one_each(self) -> LabelOutput:
        count = len(self.labels)
        _need_distinct("labels", self.labels)
        _need_distinct("continuations", self.continuations)
        if self.continuations and len(self.continuations) != count:
            raise ValueError(f"{len(self.continuations)} continuations for {count} labels; give one for each label")
        if len(self.bias) != count:
            raise ValueError(f"{len(self.bias)} biases for {count} labels; give one for each label")
        if self.abstain is not None and self.abstain.answer in self.labels:
            raise ValueError(f"{self.abstain.answer!r} is a label; abstaining needs another answer")
        return self

    @property
    def scored_labels(self) -> tuple[str, ...]:
        return self.labels

    @property
    def label_texts(self) -> tuple[str, ...]:
        return self.continuations

    def for_prompt(self, texts: tuple[str, ...], max_tokens: int, stop: tuple[str, ...]) -> Self:
        return type(self)(labels=self.labels, continuations=texts)

    def answer_text(self, target: str, lead_in: Callable[[str], str]) -> str:
        return self.continuations[self.labels.index(target)]

    def read_scores(
        self, scores: Sequence[float], token_counts: Sequence[int] | None = None
    ) -> tuple[str, dict[str, float]]:
        """The label, or `abstain`'s answer; the first label wins a tie."""
        if len(scores) != len(self.labels):
            raise RequestError(f"{len(scores)} scores for {len(self.labels)} labels")
        totals = list(scores)
        if self.normalise == "tokens" and token_counts is not None:
            totals = [score / count for score, count in zip(scores, token_counts, strict=True)]
        totals = [total + bias for total, bias in zip(totals, self.bias, strict=True)]
        highest = max(totals)
        if not math.isfinite(highest) or any(math.isnan(total) for total in totals):
            raise RequestError(f"the model's scores for the labels are not numbers: {list(scores)}")
        normaliser = highest + math.log(sum(math.exp(total - highest) for total in totals))
        log_probabilities = {name: total - normaliser for name, total in zip(self.labels, totals, strict=True)}
        return self.answer(self.labels[totals.index(highest)], log_probabilities), log_probabilities

    def answer(self, label: str, log_probabilities: Mapping[str, float]) -> str:
        """The label, or `abstain`'s answer. A label without a reported probability is never withheld."""
        if self.abstain is None or label not in log_probabilities:
            return label
        return self.abstain.answer if math.exp(log_probabilities[label]) < self.abstain.below else label

    def remote_settings(self) -> dict[str, Any]:
        # no token is shorter than a byte; a few more for quotes and the like
        return {"max_tokens": 8 + max(len(label.encode()) for label in self.labels)}

    def with_bias(self, bias: Sequence[float]) -> Self:
        return self.model_copy(update={"bias": tuple(bias)})

    def uncalibrated(self) -> Self:
        return self.model_copy(update={"bias": (0.0,) * len(self.labels), "abstain": None})

    def bare(self) -> Self:
        return type(self)(labels=self.labels)


class TextOutput(OutputForm):
    """Free text, ended by any of the `stop` strings; where there are `choices`, one of them and nothing else."""

    task_fields = frozenset({"max_tokens", "stop"})

    kind: Literal["text"] = "text"
    max_tokens: Annotated[int, Field(ge=1)] = 128
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    choices: tuple[Annotated[str, Field(min_length=1)], ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> TextOutput:
        if len(set(self.choices)) != len(self.choices) or any(choice != choice.strip() for choice in self.choices):
            raise ValueError(f"choices must be different and without white space around them, got {self.choices}")
        return self

    @property
    def token_limit(self) -> int:
        return self.max_tokens

    def for_prompt(self, texts: tuple[str, ...], max_tokens: int, stop: tuple[str, ...]) -> Self:
        return type(self)(max_tokens=max_tokens, stop=stop)

    def grammar(self) -> GrammarSource | None:
        if not self.choices:
            return None
        # after a prompt like "Answer:" the natural token begins with a space, which `read_text` removes
        return "choice", json.dumps([space + choice for choice in self.choices for space in ("", " ")])

    def generation_settings(self) -> dict[str, Any]:
        return {"max_tokens": self.max_tokens, "stop": self.stop}

    def remote_settings(self) -> dict[str, Any]:
        return {"max_tokens": self.max_tokens, **({"stop": list(self.stop)} if self.stop else {})}


class EmbeddingOutput(OutputForm):
    """One vector for each text.

    `pooling`: over the tokens' states ("mean"), the first's or the last's; None is what the base's own configuration
    says. `depth`: after that many blocks; None after the last, and its norm. `dimensions`: only the first so many
    numbers. `normalise`: to unit length.
    """

    task_fields = frozenset({"documents", "separator"})
    needs = frozenset({"documents"})

    kind: Literal["embedding"] = "embedding"
    pooling: Literal["mean", "first", "last"] | None = None
    depth: Annotated[int, Field(ge=0)] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    normalise: bool = True

    @property
    def answered_by(self) -> AnsweredBy:
        return "embed"

    @property
    def as_embedding(self) -> EmbeddingOutput:
        return self

    def full_size(self, pooled: int, hidden: int) -> int:
        """The size of an uncut vector. pooled: of the base's own pooling; hidden: of a state."""
        return pooled if self.pooling is None and self.depth is None else hidden

    def parse(self, vector: Sequence[float]) -> tuple[float, ...]:
        """The answer from the whole pooled vector: cut and normalised. RequestError when it is not finite."""
        if not all(map(math.isfinite, vector)):
            raise RequestError("the model's vector for the text is not finite")
        truncated = tuple(vector[: self.dimensions])
        if not self.normalise:
            return truncated
        length = math.sqrt(sum(number * number for number in truncated)) or 1.0
        return tuple(number / length for number in truncated)


class JsonText(OutputForm):
    """An answer that is written as JSON, and compared in one way of writing it."""

    def read_text(self, text: str, *, finished: bool = True) -> str:
        """The parsed answer. Text that is none (cut off, or with a number such as 1e999, which the grammar allows and
        no float holds) is returned unchanged: it equals no parsed answer."""
        try:
            return self.comparable(text) if finished else text
        except RequestError:
            return text


class JsonOutput(JsonText):
    """A JSON value that `json_schema` describes, of at most `max_tokens` tokens. What is generated is held to the
    schema, so its keywords must be ones that can be enforced (`bedplate.text.json_schema`)."""

    structure = "JSON of one schema"
    task_fields = frozenset({"json_schema", "max_tokens"})
    needs = frozenset({"json_schema"})
    json_targets = True

    kind: Literal["json"] = "json"
    json_schema: Mapping[str, Any]
    max_tokens: Annotated[int, Field(ge=1)] = 512

    @model_validator(mode="after")
    def _enforceable(self) -> JsonOutput:
        try:
            check_schema(self.json_schema)
        except RequestError as error:
            raise ValueError(error.message) from None
        return self

    @property
    def token_limit(self) -> int:
        return self.max_tokens

    @property
    def json_form(self) -> Mapping[str, Any]:
        return self.json_schema

    def for_prompt(self, texts: tuple[str, ...], max_tokens: int, stop: tuple[str, ...]) -> Self:
        return type(self)(json_schema=self.json_schema, max_tokens=max_tokens)

    def grammar(self) -> GrammarSource:
        return "json_schema", json.dumps(self.json_schema, ensure_ascii=False)

    def answer_text(self, target: str, lead_in: Callable[[str], str]) -> str:
        return schema_form(self.json_schema, json.loads(target))

    def remote_settings(self) -> dict[str, Any]:
        schema = {"name": "answer", "schema": dict(self.json_schema), "strict": True}
        return {**super().remote_settings(), "response_format": {"type": "json_schema", "json_schema": schema}}

    def comparable(self, text: str) -> str:
        """The value as JSON with sorted keys and without white space, so that equal values are equal texts.

        Raises RequestError where the text is no JSON of the schema: it was cut off, or a stop string cut it.
        """
        from jsonschema import Draft202012Validator

        value = _json_value(text)
        wrong = next(Draft202012Validator(self.json_schema).iter_errors(value), None)
        if wrong is not None:
            raise RequestError(f"the output does not fit the schema at {wrong.json_path}: {wrong.message[:200]}")
        return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


class LabelsOutput(JsonText):
    """Any of the labels, each at most once, as a JSON list in the order of `labels`: written, in at most `max_tokens`
    tokens, or, where there is a `threshold`, those whose probability by a head is at least that."""

    LATE = ("threshold",)
    structure = "some of few labels"
    task_fields = frozenset({"labels", "max_tokens", "separator"})
    needs = frozenset({"labels"})
    json_targets = True
    several_labels = True

    kind: Literal["labels"] = "labels"
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    max_tokens: Annotated[int, Field(ge=1)] = 256
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _distinct(self) -> LabelsOutput:
        _need_distinct("labels", self.labels)
        return self

    @property
    def scored_labels(self) -> tuple[str, ...]:
        return () if self.threshold is None else self.labels

    @property
    def all_labels(self) -> tuple[str, ...]:
        return self.labels

    @property
    def json_form(self) -> Mapping[str, Any]:
        return {"type": "array", "items": {"enum": list(self.labels)}}

    @property
    def probability_threshold(self) -> float | None:
        return self.threshold

    def for_prompt(self, texts: tuple[str, ...], max_tokens: int, stop: tuple[str, ...]) -> Self:
        return type(self)(labels=self.labels, max_tokens=max_tokens)

    @property
    def token_limit(self) -> int:
        return self.max_tokens

    def grammar(self) -> GrammarSource | None:
        if self.threshold is not None:
            return None
        if len(self.labels) <= ORDERED_LABELS:
            return "ebnf", labels_rules(self.labels)
        return "json_schema", json.dumps({**self.json_form, "maxItems": len(self.labels)})

    def answer_text(self, target: str, lead_in: Callable[[str], str]) -> str:
        return target

    def canonical(self, chosen: Iterable[str]) -> str:
        """The JSON list of some labels in their order, each once. RequestError for what is none of them."""
        names = set(chosen)
        for name in sorted(names.difference(self.labels)):
            hint = did_you_mean(nearest(name, self.labels), f"labels: {', '.join(self.labels)}")
            raise RequestError(f"{name!r} is not one of the labels; {hint}")
        chosen = [label for label in self.labels if label in names]
        return json.dumps(chosen, ensure_ascii=False, separators=(",", ":"))

    def comparable(self, text: str) -> str:
        """A JSON list of labels in canonical form. RequestError where the text is something else or cut off."""
        value = _json_value(text)
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise RequestError(f"the output is not a JSON list of labels: {text[:80]!r}")
        return self.canonical(value)

    def read_scores(
        self, scores: Sequence[float], token_counts: Sequence[int] | None = None
    ) -> tuple[str, dict[str, float]]:
        """The labels that a head's logits give; each label's log-probability is independent of the others'."""
        assert self.threshold is not None
        if len(scores) != len(self.labels) or any(math.isnan(logit) for logit in scores):
            raise RequestError(f"the head's scores are not one number for each of {len(self.labels)} labels")
        # the logarithm of the sigmoid, without overflow
        values = [-max(-logit, 0.0) - math.log1p(math.exp(-abs(logit))) for logit in scores]
        log_probabilities = dict(zip(self.labels, values, strict=True))
        least = math.log(self.threshold)
        return self.canonical(name for name, value in log_probabilities.items() if value >= least), log_probabilities


def _json_value(text: str) -> Any:
    """JSON text as a value. RequestError for anything else, numbers without a finite value included."""
    try:
        return json.loads(text, parse_float=plain_number, parse_constant=plain_number)
    except (ValueError, RecursionError):
        raise RequestError(f"the output is not JSON, or not the whole of it: {text[:80]!r}…") from None


OUTPUT_KINDS: dict[str, type[OutputForm]] = {
    "label": LabelOutput,
    "labels": LabelsOutput,
    "text": TextOutput,
    "json": JsonOutput,
    "embedding": EmbeddingOutput,
}


def _of_kind(values: Any) -> OutputForm:
    if isinstance(values, OutputForm):
        return values
    kind = values.get("kind") if isinstance(values, Mapping) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if kind not in OUTPUT_KINDS:
        raise ValueError(f"no output kind {kind!r}; there are {', '.join(OUTPUT_KINDS)}")
    return OUTPUT_KINDS[kind].model_validate(values)


Output: TypeAlias = Annotated[SerializeAsAny[OutputForm], PlainValidator(_of_kind)]
