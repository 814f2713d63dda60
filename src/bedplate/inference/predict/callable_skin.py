"""Skins that are called: rows in, predictions and label probabilities out; the checks of rows and inputs; cascades.

A cascade is two skins, of which the second is asked where the first is not sure (Chen et al., FrugalGPT, arXiv
2305.05176), with the first skin's own probability as the score.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from bedplate.core import display
from bedplate.core.closing import Closing
from bedplate.core.errors import (
    BedplateError,
    DataError,
    RequestError,
    SkinError,
    TemplateError,
    UnknownDataError,
    UsageError,
)
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.core.values import TaskInput, Value, Values, as_text, input_name
from bedplate.data.rows import blank
from bedplate.data.tables import is_table, records
from bedplate.skins.skin import Skin

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Prediction:
    """One row's answer.

    output: the parsed output (a label, a text). scores: each label's log-probability among the labels, or of being one
    of the right ones where there may be several. text: what was generated, or the label. seconds: wall time of the
    row's own call, or its share of its batch. usd: what a remote model charged for it, None where machine time is the
    whole cost, or no price is known. passed_on: a cascade's second skin was asked. passages: what the prompt held of
    documents (`citations`). finish_reason: why a generated text ended ("length": it was cut off), as the engine or the
    server says; None where none was generated.
    """

    output: str
    text: str
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    usd: float | None = None
    passed_on: bool = False
    passages: tuple[Mapping[str, Any], ...] = ()
    finish_reason: str | None = None

    def __repr__(self) -> str:
        output, sure, duration = self.shown
        return display.line("prediction", repr(output), sure and f"probability {sure}", duration)

    def _repr_html_(self) -> str:
        return display.table("prediction", _COLUMNS, [self.shown])

    @property
    def shown(self) -> tuple[str, str, str]:
        """The answer, its probability where there is one, and its time, for people."""
        sure = self.probabilities.get(self.output)
        duration = f"{1000 * self.seconds:.1f} ms"
        return display.shortened(self.output, 80), "" if sure is None else f"{sure:.3f}", duration

    @property
    def probabilities(self) -> dict[str, float]:
        """Each label's probability: `scores`, from logarithms."""
        return {label: math.exp(score) for label, score in self.scores.items()}


_COLUMNS = ("answer", "probability", "time")
PRINTED = 5
"""Predictions at either end that are printed of many."""


class Predictions(list[Prediction]):
    """The predictions of several rows, in order. As an array it is that of its answers, so that functions of numpy and
    scikit-learn take it: `accuracy_score(y, skin.predict(rows))`. Printed are the first and the last."""

    def __repr__(self) -> str:
        return "[" + ",\n ".join(self._ends([repr(prediction) for prediction in self], str)) + "]"

    def _repr_html_(self) -> str:
        rows = [(str(number), *prediction.shown) for number, prediction in enumerate(self)]
        ends = self._ends(rows, lambda more: ("", more, "", ""))
        return display.table(f"{len(self):,} predictions", ("row", *_COLUMNS), ends)

    def _ends(self, shown: list[R], left_out: Callable[[str], R]) -> list[R]:
        more = len(self) - 2 * PRINTED
        return shown if more <= 0 else [*shown[:PRINTED], left_out(f"… {more:,} more …"), *shown[-PRINTED:]]

    @property
    def answers(self) -> NDArray[np.object_]:
        """The parsed outputs [N]."""
        return np.array([prediction.output for prediction in self], dtype=object)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.answers if dtype is None else self.answers.astype(dtype)


RowsLike: TypeAlias = Iterable[TaskInput] | Any
"""Rows to ask a skin with: a list of texts (for a skin of one input) or of mappings, a column of a table, or a table
(pandas, polars, `datasets`, pyarrow) with the inputs as its columns."""


class SkinPredictor(Closing, display.Displayable):
    """Predicts rows for a skin, whatever is behind it: an engine, an endpoint, other skins. Call it with one text or
    mapping of inputs for one answer, or with several rows for a list of answers."""

    skin: Skin
    warnings: list[str]
    row_errors: ClassVar[tuple[type[BedplateError], ...]] = (RequestError, TemplateError, SkinError)
    """Errors that one row can be at fault for; others end the work, which can be resumed."""

    @abstractmethod
    def predict(self, rows: RowsLike, *, one_by_one: bool = False, tenant: str = "") -> Predictions: ...

    @overload  # one text is also several of one letter, for type checkers
    def __call__(self, inputs: TaskInput) -> str: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, inputs: RowsLike) -> list[str]: ...
    def __call__(self, inputs: Any) -> str | list[str]:
        """The parsed output for one input, or a list of them for several rows (as `predict` takes them)."""
        if isinstance(inputs, Value | Mapping):
            return self.predict([inputs])[0].output
        return [prediction.output for prediction in self.predict(inputs)]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the skin chooses from, in the order of `predict_proba`'s columns; () where it writes text."""
        return self.skin.output.all_labels

    def predict_proba(self, rows: RowsLike) -> NDArray[np.float64]:
        """The probability of each label for each row [N, L], in the order of `labels`: a row sums to 1, or where there
        may be several labels each number is that of its label being right. A row is NaN where a remote model tells too
        little. UsageError for a skin that scores no labels."""
        labels = self.labels
        if not labels:
            raise UsageError(f"skin {self.skin.name!r} gives {self.skin.output.kind}, no labels with probabilities")
        if not self.skin.output.scored_labels:
            raise UsageError(f"skin {self.skin.name!r} writes its labels and scores none of them")
        predictions = self.predict(rows)
        table = np.full((len(predictions), len(labels)), np.nan)
        for row, prediction in enumerate(predictions):
            if prediction.scores:
                table[row] = [math.exp(prediction.scores[label]) for label in labels]
        return table

    @property
    def execution(self) -> dict[str, str]:
        """What its answers depend on besides the skin: of an engine its base, and how that is computed."""
        return {}

    @property
    def facts(self) -> Mapping[str, str]:
        """The skin's key facts, a few words each."""
        return self.skin.facts


def rows_for(skin: Skin, rows: RowsLike) -> list[TaskInput]:
    """Rows as a skin is asked with them. Of a table only the skin's inputs are read (`text` stands for the only one).
    UsageError for what is not rows, DataError for a table without a column that is needed."""
    if isinstance(rows, Value | Mapping):
        raise UsageError(f"rows is one {type(rows).__name__}; give a list of them, or call the skin with it")
    if is_table(rows):
        return [dict(zip(skin.inputs, cells, strict=True)) for cells in _cells(skin, rows)]
    if isinstance(rows, bytes) or not isinstance(rows, Iterable):
        raise UsageError(f"rows is {type(rows).__name__}; give a list of texts or of mappings of inputs, or a table")
    inputs = _listed(rows)
    wrong = next((i for i, row in enumerate(inputs) if not isinstance(row, Value | Mapping)), None)
    if wrong is not None:
        missing = inputs[wrong] is None or inputs[wrong] != inputs[wrong]  # nan
        shown = "a missing value" if missing else type(inputs[wrong]).__name__
        raise UsageError(f"rows[{wrong}] is {shown}; give texts or mappings of the inputs")
    return inputs


def _listed(rows: Iterable[Any]) -> list[Any]:
    """A column of a table gives its values as Python's own."""
    for name in ("tolist", "to_list", "to_pylist"):
        if hasattr(rows, name):
            return list(getattr(rows, name)())
    return list(rows)


def columns_for(inputs: Sequence[str], columns: Sequence[str], location: str) -> dict[str, str]:
    """Input → the column that it is read from: of its name, of the one name that a task drafted from the column gives
    it, or the column `text` for a skin's only input. DataError where there is none."""
    column_by_input: dict[str, str] = {}
    for name in inputs:
        alike = [column for column in columns if input_name(column) == name]
        alone = ["text"] if len(inputs) == 1 and "text" in columns else []
        column_by_input[name] = name if name in columns else (alike if len(alike) == 1 else alone or [name])[0]
        if column_by_input[name] not in columns:
            hint = did_you_mean(nearest(name, columns), f"the columns are {', '.join(columns)}")
            raise UnknownDataError(f"{location}: no column {name!r} for the skin's input of this name; {hint}")
    return column_by_input


def _cells(skin: Skin, table: Any) -> Iterable[list[Value]]:
    columns: dict[str, str] | None = None
    for number, row in enumerate(records(table, "rows"), start=1):
        if columns is None:
            columns = columns_for(list(skin.inputs), list(row), "rows")
        odd = next((column for column in columns.values() if not isinstance(row.get(column), Value)), None)
        if odd is not None:
            raise DataError(f"rows, row {number}: column {odd!r} holds {row.get(odd)!r}, which is not a text")
        yield [cast(Value, row[column]) for column in columns.values()]


def inputs_of(skin: Skin, row: TaskInput) -> Values:
    """A row's inputs by name; one alone is a skin's only one. RequestError for missing, unknown or other ones, and for
    a row without a text, which no task has either."""
    names = list(skin.inputs)
    if isinstance(row, Value):
        if len(names) != 1:
            raise RequestError(f"skin {skin.name!r} takes a mapping of the inputs {', '.join(names)}")
        row = {names[0]: row}
    missing, unknown = sorted(set(names) - row.keys()), sorted(row.keys() - set(names))
    if missing or unknown:
        problem = f"lacks the input {missing[0]!r}" if missing else f"has an unknown input {unknown[0]!r}"
        raise RequestError(f"the row {problem}; skin {skin.name!r} takes: {', '.join(names)}", param="input")
    wrong = next((name for name in names if type(as_text(row[name])) is not str), None)
    if wrong is not None:
        raise RequestError(f"the input {wrong!r} is not a text but {row[wrong]!r}", param="input")
    if all(blank(row[name]) for name in names):
        fields = f"the input {names[0]!r} is" if len(names) == 1 else f"the inputs {', '.join(names)} are all"
        raise RequestError(f"{fields} empty; skin {skin.name!r} answers about a text: give one", param="input")
    return row


def inputs_of_rows(skin: Skin, rows: Sequence[TaskInput]) -> list[Values]:
    """`inputs_of` each row. Of several, a RequestError names the row."""
    return for_each(rows, lambda row: inputs_of(skin, row))


def for_each(rows: Sequence[R], compute: Callable[[R], T]) -> list[T]:
    """What is computed of each row, in order. Of several, a RequestError names the row."""
    results: list[T] = []
    for number, row in enumerate(rows):
        try:
            results.append(compute(row))
        except RequestError as error:
            error.row = number if len(rows) > 1 else error.row
            raise
    return results


class CascadePredictor(SkinPredictor):
    """A cascade on its two skins' predictors. Closing it closes what was `opened` for it, else nothing."""

    def __init__(
        self, skin: Skin, first: SkinPredictor, second: SkinPredictor, opened: ExitStack | None = None
    ) -> None:
        if skin.cascade is None:
            raise SkinError(f"skin {skin.name!r} of kind {skin.kind!r} is not a cascade")
        self.skin, self.parts = skin, skin.cascade
        self.first, self.second, self._opened = first, second, opened
        self.warnings = [*first.warnings, *second.warnings]

    def predict(self, rows: RowsLike, *, one_by_one: bool = False, tenant: str = "") -> Predictions:
        """Predictions for rows, in order. What both skins were asked counts the tokens, seconds and dollars of both."""
        inputs = inputs_of_rows(self.skin, rows_for(self.skin, rows))
        predictions = self.first.predict(inputs, one_by_one=one_by_one, tenant=tenant)
        unsure = [i for i, prediction in enumerate(predictions) if is_unsure(self.parts.threshold, prediction)]
        if unsure:
            try:
                rest = [inputs[i] for i in unsure]
                second_predictions = self.second.predict(rest, one_by_one=one_by_one, tenant=tenant)
            except RequestError as error:
                error.row = unsure[error.row or 0] if len(inputs) > 1 else None
                raise
            for i, prediction in zip(unsure, second_predictions, strict=True):
                predictions[i] = merge_predictions(predictions[i], prediction)
        return predictions

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()


def confidence(prediction: Prediction) -> float:
    """The probability that an answer gives its own label, 0 where it says nothing of it."""
    scores = prediction.scores
    return math.exp(scores[prediction.output]) if prediction.output in scores else 0.0


def is_unsure(threshold: float, prediction: Prediction) -> bool:
    """Whether a cascade with this threshold asks the second skin after this answer of the first."""
    return confidence(prediction) < threshold


def merge_predictions(first: Prediction, second: Prediction) -> Prediction:
    """The second skin's answer, with what the two took together."""
    charged = [prediction.usd for prediction in (first, second) if prediction.usd is not None]
    return replace(
        second,
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        completion_tokens=first.completion_tokens + second.completion_tokens,
        cached_tokens=first.cached_tokens + second.cached_tokens,
        seconds=first.seconds + second.seconds,
        usd=sum(charged) if charged else None,
        passed_on=True,
    )
