"""Metrics described in the task file instead of named from the table: a Python function, a judge, or costs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from bedplate.core.config import Grown, Strict
from bedplate.core.endpoint_spec import Concurrency, KeyVariable, ModelName, Retries, Silence
from bedplate.core.files import sha256_json


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
