"""What a skin answers with, and how an answer is read from what the model gives."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from bedplate.core.config import Grown, Strict
from bedplate.core.errors import RequestError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.text.json_schema import check_schema


class Abstain(Strict):
    """Where no label is given: `answer` stands for one whose probability among the labels is `below` this."""

    below: Annotated[float, Field(gt=0, le=1)]
    answer: Annotated[str, Field(min_length=1)] = "abstain"


class LabelOutput(Grown):
    """One label out of a list, or `abstain`'s answer.

    `continuations`: the text that is scored for each label after the prompt (" positive"); empty where a head decides.
    `bias` is added to each label's log-score (all zeros by default). `normalise`: "none" compares total
    log-probabilities, "tokens" divides each by its number of tokens.
    """

    LATE = ("abstain",)

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
        if len(set(self.labels)) != count or not all(self.labels):
            raise ValueError(f"labels must be different and not empty, got {list(self.labels)}")
        if self.continuations and len(self.continuations) != count:
            raise ValueError(f"{len(self.continuations)} continuations for {count} labels; give one for each label")
        if len(set(self.continuations)) != len(self.continuations) or not all(self.continuations):
            raise ValueError(f"continuations must be different and not empty, got {list(self.continuations)}")
        if len(self.bias) != count:
            raise ValueError(f"{len(self.bias)} biases for {count} labels; give one for each label")
        if self.abstain is not None and self.abstain.answer in self.labels:
            raise ValueError(f"{self.abstain.answer!r} is a label; abstaining needs another answer")
        return self

    def parse(self, totals: Sequence[float], token_counts: Sequence[int] | None = None) -> tuple[str, dict[str, float]]:
        """The label (or `abstain`'s answer) and each label's log-probability among the labels.

        `totals`: total log-probability of each continuation, or a head's logits (then without `token_counts`).
        The first label wins a tie. Raises RequestError when the scores are not numbers.
        """
        if len(totals) != len(self.labels):
            raise RequestError(f"{len(totals)} scores for {len(self.labels)} labels")
        scores = list(totals)
        if self.normalise == "tokens" and token_counts is not None:
            scores = [score / count for score, count in zip(totals, token_counts, strict=True)]
        scores = [score + bias for score, bias in zip(scores, self.bias, strict=True)]
        highest = max(scores)
        if not math.isfinite(highest) or any(math.isnan(score) for score in scores):
            raise RequestError(f"the model's scores for the labels are not numbers: {list(totals)}")
        normaliser = highest + math.log(sum(math.exp(score - highest) for score in scores))
        log_probabilities = {name: score - normaliser for name, score in zip(self.labels, scores, strict=True)}
        return self.answer(self.labels[scores.index(highest)], log_probabilities), log_probabilities

    def answer(self, label: str, log_probabilities: Mapping[str, float]) -> str:
        """The label, or `abstain`'s answer where its probability among the labels is too low. One whose probability
        nobody tells stands."""
        if self.abstain is None or label not in log_probabilities:
            return label
        return self.abstain.answer if math.exp(log_probabilities[label]) < self.abstain.below else label


class TextOutput(Strict):
    """Free text of at most `max_tokens` tokens, ended by any of the `stop` strings; where there are `choices`, one of
    them and nothing else."""

    kind: Literal["text"] = "text"
    max_tokens: Annotated[int, Field(ge=1)] = 128
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    choices: tuple[Annotated[str, Field(min_length=1)], ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> TextOutput:
        if len(set(self.choices)) != len(self.choices) or any(choice != choice.strip() for choice in self.choices):
            raise ValueError(f"choices must be different and without white space around them, got {self.choices}")
        return self

    def parse(self, text: str) -> str:
        """The generated text without white space around it."""
        return text.strip()


class EmbeddingOutput(Strict):
    """One vector for each text.

    `pooling`: over the tokens' states ("mean"), the first's or the last's; None is what the base's own configuration
    says. `depth`: after that many blocks; None after the last, and its norm. `dimensions`: only the first so many
    numbers. `normalise`: to unit length.
    """

    kind: Literal["embedding"] = "embedding"
    pooling: Literal["mean", "first", "last"] | None = None
    depth: Annotated[int, Field(ge=0)] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    normalise: bool = True

    def parse(self, vector: Sequence[float]) -> tuple[float, ...]:
        """The vector as this output wants it, from the whole pooled one. RequestError when it is not finite."""
        if not all(map(math.isfinite, vector)):
            raise RequestError("the model's vector for the text is not finite")
        truncated = tuple(vector[: self.dimensions])
        if not self.normalise:
            return truncated
        length = math.sqrt(sum(number * number for number in truncated)) or 1.0
        return tuple(number / length for number in truncated)


class JsonOutput(Strict):
    """A JSON value that `json_schema` describes, of at most `max_tokens` tokens. What is generated is held to the
    schema, so its keywords must be ones that can be enforced (`bedplate.text.json_schema`)."""

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
    def schema_text(self) -> str:
        return json.dumps(self.json_schema, ensure_ascii=False)

    def parse(self, text: str) -> str:
        """The value as JSON with sorted keys and without white space, so that equal values are equal texts.

        Raises RequestError where the text is no JSON of the schema: it was cut off, or a stop string cut it.
        """
        from jsonschema import Draft202012Validator

        value = _json_value(text)
        wrong = next(Draft202012Validator(self.json_schema).iter_errors(value), None)
        if wrong is not None:
            raise RequestError(f"the output does not fit the schema at {wrong.json_path}: {wrong.message[:200]}")
        return _compact(value)


class LabelsOutput(Grown):
    """Any of the labels, each at most once, as a JSON list in the order of `labels`: written, in at most `max_tokens`
    tokens, or, where there is a `threshold`, those whose probability by a head is at least that."""

    LATE = ("threshold",)

    kind: Literal["labels"] = "labels"
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    max_tokens: Annotated[int, Field(ge=1)] = 256
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _distinct(self) -> LabelsOutput:
        if len(set(self.labels)) != len(self.labels) or not all(self.labels):
            raise ValueError(f"labels must be different and not empty, got {list(self.labels)}")
        return self

    def canonical(self, chosen: Iterable[str]) -> str:
        """The JSON list of some labels in their order, without white space; one that stands twice is one label.
        RequestError for what is none of them."""
        names = set(chosen)
        for name in sorted(names.difference(self.labels)):
            hint = did_you_mean(nearest(name, self.labels), f"labels: {', '.join(self.labels)}")
            raise RequestError(f"{name!r} is not one of the labels; {hint}")
        return _compact([label for label in self.labels if label in names])

    def parse(self, text: str) -> str:
        """A JSON list of labels, in any order, in canonical form. RequestError where the text is something else: it was
        cut off, or holds what is no label."""
        value = _json_value(text)
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise RequestError(f"the output is not a JSON list of labels: {text[:80]!r}")
        return self.canonical(value)

    def choose(self, logits: Sequence[float]) -> tuple[str, dict[str, float]]:
        """The labels that a head gives, as `canonical` writes them, and each label's log-probability of being right,
        independent of the others'. RequestError where the logits are not numbers."""
        assert self.threshold is not None
        if len(logits) != len(self.labels) or any(math.isnan(logit) for logit in logits):
            raise RequestError(f"the head's scores are not one number for each of {len(self.labels)} labels")
        log_probabilities = {name: -_softplus(-logit) for name, logit in zip(self.labels, logits, strict=True)}
        return self.canonical(
            name for name, log_probability in log_probabilities.items() if log_probability >= math.log(self.threshold)
        ), log_probabilities


def _softplus(x: float) -> float:
    """log(1 + e^x) without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _json_value(text: str) -> Any:
    """JSON text as a value. RequestError for anything else, numbers without a finite value included."""
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        raise RequestError(f"the output is not JSON, or not the whole of it: {text[:80]!r}…") from None


def _finite(text: str) -> float | int:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    # 4.0 and 4 are one JSON number; beyond 2^53 a float no longer names one whole number
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


Output: TypeAlias = Annotated[
    LabelOutput | LabelsOutput | TextOutput | JsonOutput | EmbeddingOutput, Field(discriminator="kind")
]

OUTPUT_KINDS: Mapping[str, type[LabelOutput | LabelsOutput | TextOutput | JsonOutput | EmbeddingOutput]] = {
    "label": LabelOutput,
    "labels": LabelsOutput,
    "text": TextOutput,
    "json": JsonOutput,
    "embedding": EmbeddingOutput,
}


def labels_by_score(output: Output) -> tuple[str, ...]:
    """The labels that are told apart by their scores, where one or some of them are the answer; () where the answer is
    written."""
    if isinstance(output, LabelsOutput):
        return () if output.threshold is None else output.labels
    return output.labels if isinstance(output, LabelOutput) else ()
