"""What a task file says of production: the system that runs today, and the traffic that it sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from bedplate.core.config import Strict

Share = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


class CurrentSpec(Strict):
    """The system that runs today, by what it answered: the `column` of its recorded answers (a text alone is that), and
    what a call of it costs and takes, where that is known. A row without an answer counts as wrong."""

    column: Annotated[str, Field(min_length=1)]
    usd_per_1k_calls: NotNegative | None = None
    p50_ms: NotNegative | None = None
    p95_ms: NotNegative | None = None

    @model_validator(mode="before")
    @classmethod
    def _column(cls, values: Any) -> Any:
        return {"column": values} if isinstance(values, str) else values


class TrafficSpec(Strict):
    """How much of production each row stands for. duplicates: a text that stands in the data several times counts as
    often as it stands there (its copies are dropped all the same). shares: of one column the share of calls that has
    each value, as {language: {en: 0.7, de: 0.3}}; rows of a value then weigh as much as their share together."""

    duplicates: bool = False
    shares: dict[str, dict[str, Share]] = Field(default_factory=dict[str, dict[str, float]])

    @field_validator("shares")
    @classmethod
    def _sum(cls, shares: Mapping[str, Mapping[str, float]]) -> Mapping[str, Mapping[str, float]]:
        if len(shares) > 1:
            raise ValueError(f"give the shares of one column, not of {len(shares)} ({', '.join(shares)})")
        for column, values in shares.items():
            total = sum(values.values())
            if abs(total - 1) > 1e-6:
                raise ValueError(f"the shares of {column} must sum to 1, not {total:g}")
        return shares

    @property
    def column(self) -> str | None:
        """Whose values have shares."""
        return next(iter(self.shares), None)
