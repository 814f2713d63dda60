"""Metrics that a task file describes instead of naming one of the table: a Python function, a judge (its spec), or US
dollars by a matrix of what each wrong answer costs or by a function; and how they are displayed.

metric: {python: closeness.py:score}                         # score(target, prediction) → 0 to 1
metric: {costs: {spam: {ham: 0.40}, ham: {spam: 5.00}}}      # right answer → given answer → dollars
metric: {cost: dear.py:usd, worst_usd: 20}                   # usd(target, prediction) → dollars, from 0 to 20

A row scores 1 - cost / worst, so that it lies in 0 to 1 and more is better, as of every other metric; the expected cost
is what is shown (`Scale`).
"""

from __future__ import annotations

import importlib.util
import json
import math
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from bedplate.core.config import Grown, Strict
from bedplate.core.display import chosen
from bedplate.core.endpoint_spec import Concurrency, KeyVariable, ModelName, Retries, Silence
from bedplate.core.errors import ConfigError, DataError
from bedplate.core.files import sha256_file, sha256_json
from bedplate.evaluation.metrics import AnsweredRow, Scoring


class JudgePrice(Strict):
    """US dollars for a million tokens: read, read from the server's cache (as the others, if not said), and written."""

    input: Annotated[float, Field(ge=0)]
    cached_input: Annotated[float, Field(ge=0)] | None = None
    output: Annotated[float, Field(ge=0)]


class JudgeSpec(Strict):
    """Who judges, and by what. `rubric`: a jinja template over the task's inputs, `target` and `prediction`; what form
    the answer takes is added to it. `scale`: the worst and the best number, which become 0 and 1. `max_usd`: what all
    answers of this judge together may cost, at `price`. The key is in the environment variable `api_key_env`."""

    endpoint: Annotated[str, Field(min_length=1)]
    model: ModelName
    rubric: Annotated[str, Field(min_length=1)]
    scale: tuple[float, float] = (0.0, 1.0)
    max_tokens: Annotated[int, Field(ge=1)] = 256
    api_key_env: KeyVariable | None = None
    concurrency: Concurrency = 8
    retries: Retries = 4
    timeout_s: Silence = 60.0
    price: JudgePrice | None = None
    max_usd: Annotated[float, Field(gt=0)] | None = None

    @field_validator("scale")
    @classmethod
    def _scale(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] == scale[1]:
            raise ValueError("the worst and the best number of the scale are the same")
        return scale

    @model_validator(mode="after")
    def _priced(self) -> JudgeSpec:
        if self.max_usd is not None and self.price is None:
            raise ValueError("`max_usd` needs a `price`: {input: …, output: …} in US dollars for a million tokens")
        return self

    @property
    def identity(self) -> str:
        """sha256 (hex) of what the scores depend on."""
        return sha256_json([self.endpoint, self.model, self.rubric, list(self.scale), self.max_tokens])


Dollars = Annotated[float, Field(ge=0)]


class MetricSpec(Grown):
    """`python`: path/to/file.py:function, relative to the task file; a `judge`; or US dollars of a call: `costs`, right
    answer → given answer → dollars, or `cost`, a Python function that gives them, `worst_usd` at most."""

    LATE = ("costs", "cost", "worst_usd")

    python: str | None = None
    judge: JudgeSpec | None = None
    costs: dict[str, dict[str, Dollars]] | None = None
    cost: str | None = None
    worst_usd: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check_exclusive(self) -> MetricSpec:
        if sum(option is not None for option in (self.python, self.judge, self.costs, self.cost)) != 1:
            raise ValueError(
                "give one of `python: path/to/file.py:function`, `judge: {…}`, `costs: {right: {given: dollars}}` and "
                "`cost: path/to/file.py:function`"
            )
        if (self.cost is None) != (self.worst_usd is None):
            raise ValueError("`cost` and `worst_usd`, what an answer costs at most, go together")
        return self


@dataclass(frozen=True)
class PythonMetric:
    """`function(target, prediction)` scores a row in 0 to 1: two texts, or for JSON and several labels two values. What
    could not be parsed scores 0 unasked. `sha256`: of the function's file."""

    name: str
    function: Callable[[Any, Any], object]
    sha256: str
    values: bool
    scoring: Scoring = "real"

    def ready(self) -> None:
        """It was ready when it was read."""

    def score(self, rows: Sequence[AnsweredRow]) -> list[float]:
        """DataError naming the row for which the function fails, or gives no number in 0 to 1."""
        return [self._score(row) for row in rows]

    def _score(self, row: AnsweredRow) -> float:
        if row.prediction is None:
            return 0.0
        number = self.value(row)
        if not 0 <= number <= 1:  # not so for NaN either
            raise DataError(f"the metric {self.name} gives {number!r} for row {row.id}; a score must lie in 0 to 1")
        return number

    def value(self, row: AnsweredRow) -> float:
        """What the function gives for a row that has a prediction. DataError where it fails, or gives no number."""
        assert row.prediction is not None
        read: Callable[[str], Any] = json.loads if self.values else str
        try:
            score = self.function(read(row.target), read(row.prediction))
        except Exception as error:
            raise DataError(
                f"the metric {self.name} fails on row {row.id} ({type(error).__name__}: {error}); "
                f"its prediction is {row.prediction[:200]!r}"
            ) from error
        if not isinstance(score, numbers.Real):
            raise DataError(f"the metric {self.name} gives {score!r} for row {row.id}; a score must be a number")
        return float(score)


def python_metric(reference: str, directory: Path, *, values: bool) -> PythonMetric:
    """The metric that `path/to/file.py:function` names, the path relative to `directory`. ConfigError where there is no
    such file or function, or where the file cannot be run. values: whether the function gets JSON values."""
    file, _, name = reference.rpartition(":")
    path = directory / file
    if not file or not name.isidentifier():
        raise ConfigError(f"metric: python is {reference!r}; write it as path/to/file.py:function")
    if not path.is_file():
        raise ConfigError(f"metric: the Python file {path} does not exist; the path is relative to the task file")
    digest = sha256_file(path)
    function: object = getattr(_module(path, digest), name, None)
    if function is None:
        raise ConfigError(f"metric: {path} has no function {name!r}")
    if not callable(function):
        raise ConfigError(f"metric: {name!r} in {path} is not a function but {type(function).__name__}")
    return PythonMetric(f"{name} ({path.name}, {digest[:8]})", function, digest, values)


@lru_cache(maxsize=32)
def _module(path: Path, digest: str) -> object:
    spec = importlib.util.spec_from_file_location(f"bedplate_metric_{digest[:16]}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"metric: {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks up what its annotations mean
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[spec.name]
        if not isinstance(error, Exception):
            raise
        raise ConfigError(f"metric: {path} cannot be run ({type(error).__name__}: {error})") from error
    return module


@dataclass(frozen=True)
class Scale:
    """worst_usd: what a call costs at worst, where scores stand for costs; None for every other metric."""

    worst_usd: float | None = None

    @property
    def lower_is_better(self) -> bool:
        return self.worst_usd is not None

    def value(self, score: float) -> float:
        """A score as it is said."""
        return score if self.worst_usd is None else self.worst_usd * (1 - score)

    def score(self, value: float) -> float:
        """The score that is said so."""
        return value if self.worst_usd is None else 1 - value / self.worst_usd

    def difference(self, score_difference: float) -> float:
        """A difference of scores as one of what is said."""
        return score_difference if self.worst_usd is None else -self.worst_usd * score_difference

    def ends(self, low: float, high: float) -> tuple[float, float]:
        """Ends of an interval of scores, the lower first."""
        return (low, high) if self.worst_usd is None else (self.value(high), self.value(low))

    def format_score(self, score: float) -> str:
        return f"{score:.3f}" if self.worst_usd is None else f"${self.value(score):.4f}"

    def bar(self, score: float) -> str:
        """What a target asks for, without digits that say nothing."""
        return chosen(score) if self.worst_usd is None else f"${chosen(self.value(score))}"

    @property
    def lower_phrase(self) -> str:
        """What a lower bound of a score is called."""
        return "at most" if self.lower_is_better else "at least"

    @property
    def upper_phrase(self) -> str:
        return "at least" if self.lower_is_better else "at most"

    @property
    def lower_bound(self) -> str:
        """The bound of what is said that a lower bound of a score is."""
        return "upper bound" if self.lower_is_better else "lower bound"

    @property
    def upper_bound(self) -> str:
        return "lower bound" if self.lower_is_better else "upper bound"


PLAIN = Scale()


@dataclass(frozen=True)
class CostMetric:
    """Costs by a matrix `costs`, right label → answer → dollars, where the right answer costs nothing unless it is
    said; or of a `function`. worst_usd: no answer costs more. An answer that cannot be used costs as much as the worst
    for its row (the matrix) or as the worst of all (the function)."""

    name: str
    worst_usd: float
    costs: Mapping[str, Mapping[str, float]] | None = None
    function: PythonMetric | None = None
    scoring: Scoring = "real"

    def ready(self) -> None:
        """It was ready when it was read."""

    def score(self, rows: Sequence[AnsweredRow]) -> list[float]:
        """DataError naming the row for which the function fails, or gives no number from 0 to `worst_usd`."""
        return [1 - self.cost(row) / self.worst_usd for row in rows]

    def cost(self, row: AnsweredRow) -> float:
        """US dollars."""
        if self.costs is not None:
            costs = self.costs[row.target]
            worst = max(costs.values())
            return worst if row.prediction is None else costs.get(row.prediction, 0.0)
        if row.prediction is None:
            return self.worst_usd
        assert self.function is not None
        usd = self.function.value(row)
        if not (math.isfinite(usd) and 0 <= usd <= self.worst_usd):
            bound = f"it must lie in 0 to worst_usd, ${self.worst_usd:g}"
            raise DataError(f"the cost {self.name} is {usd!r} for row {row.id}; {bound}")
        return usd


def matrix_metric(costs: Mapping[str, Mapping[str, float]]) -> CostMetric:
    """The metric of a matrix that fits its task (`check_costs`)."""
    worst = max(cost for line in costs.values() for cost in line.values())
    digest = sha256_json({right: dict(sorted(line.items())) for right, line in sorted(costs.items())})
    return CostMetric(f"usd_per_call ({digest[:8]})", worst, costs)


def function_metric(function: PythonMetric, worst_usd: float) -> CostMetric:
    """The metric of a Python function."""
    return CostMetric(f"usd_per_call: {function.name}, at most {worst_usd:g}", worst_usd, function=function)


def check_costs(costs: Mapping[str, Mapping[str, float]], labels: Sequence[str], abstain: str | None) -> None:
    """Raises ValueError unless each wrong answer, and abstaining where the task has it, has a cost for every label."""
    answers = (*labels, *([abstain] if abstain is not None else []))
    unknown = [answer for answer in costs if answer not in labels]
    unknown += [answer for line in costs.values() for answer in line if answer not in answers]
    if unknown:
        raise ValueError(f"costs: {unknown[0]!r} is no answer of this task; there are {', '.join(answers)}")
    for right in labels:
        for answer in answers:
            if answer != right and answer not in costs.get(right, {}):
                raise ValueError(
                    f"costs: say what it costs to answer {answer!r} where {right!r} is right: {right}: {{{answer}: …}}"
                )
    if not any(cost > 0 for line in costs.values() for cost in line.values()):
        raise ValueError("costs: every answer costs nothing, so there is nothing to choose by")
