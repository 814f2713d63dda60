"""The `data` section of a task file: where rows come from, how they are split, and what they say of production."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints, field_validator, model_validator

from bedplate.core.config import Grown, Strict

LABEL = "label"
"""What stands for the right answer where slices are named."""
Part = Annotated[float, Field(gt=0, lt=1)] | str


class SplitSpec(Strict):
    """Train, valid and test: fractions that sum to 1, or three files."""

    train: Part
    valid: Part
    test: Part

    @model_validator(mode="after")
    def _fractions_or_files(self) -> SplitSpec:
        parts = (self.train, self.valid, self.test)
        numbers = [part for part in parts if isinstance(part, float)]
        if 0 < len(numbers) < 3:
            raise ValueError("give three fractions or three files, not some of each")
        if numbers and abs(sum(numbers) - 1) > 1e-6:
            raise ValueError(f"the fractions must sum to 1, not {sum(numbers):g}")
        if not numbers and len(set(parts)) < 3:
            raise ValueError("train, valid and test must be three different files")
        return self

    @property
    def fractions(self) -> dict[str, float] | None:
        """Split name → fraction, or None where the splits are files."""
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        shares = {name: part for name, part in parts.items() if isinstance(part, float)}
        return shares or None

    @property
    def files(self) -> dict[str, str] | None:
        """Split name → file, or None where the splits are fractions."""
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        paths = {name: part for name, part in parts.items() if isinstance(part, str)}
        return paths or None


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


Column = Annotated[str, Field(min_length=1)]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class DataSpec(Grown):
    """Where rows come from and how they are split. `limit` keeps at most that many rows (whole groups, by seed).
    current: the answers of the system that runs today. slices: columns whose values are looked at one by one. traffic:
    what rows weigh. second_label: a column with a second label of some rows, by somebody else.
    group_by: the column of what must not be split, or several: rows that share a value of any of them, directly or
    through other rows, are one group. ungrouped_because: why there is none, which a task that is adapted says.
    not_groups: what looks like groups and is none (a column, `near_duplicates`, `order`), with the reason of each.
    """

    LATE = ("current", "slices", "traffic", "second_label", "ungrouped_because", "not_groups")

    source: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    target: Annotated[str, Field(min_length=1)]
    group_by: str | Annotated[tuple[Column, ...], Field(min_length=1)] | None = None
    ungrouped_because: Reason | None = None
    not_groups: Mapping[str, Reason] = {}
    split: SplitSpec
    seed: int = 0
    limit: Annotated[int, Field(ge=1)] | None = None
    current: CurrentSpec | None = None
    slices: tuple[str, ...] = ()
    traffic: TrafficSpec = TrafficSpec()
    second_label: Annotated[str, Field(min_length=1)] | None = None

    @field_validator("slices")
    @classmethod
    def _slices(cls, slices: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(slices)) < len(slices):
            raise ValueError("a column is named twice")
        if LABEL in slices:
            raise ValueError(f"{LABEL!r} is what slices by the right answer are called; rename the column")
        return slices

    @model_validator(mode="after")
    def _source_or_files(self) -> DataSpec:
        if self.split.files is None and self.source is None:
            raise ValueError("`source` is missing: a data set's name or a file (or give three files under `split`)")
        if self.split.files is not None and (self.source is not None or self.limit is not None):
            raise ValueError("`source` and `limit` do not go with files under `split`")
        if self.second_label == self.target:
            raise ValueError("`second_label` is the column of the target itself; name the one of the other labels")
        if isinstance(self.source, tuple) and len(set(self.source)) < len(self.source):
            raise ValueError("a source is named twice")
        if len(set(self.group_columns)) < len(self.group_columns):
            raise ValueError("`group_by` names a column twice")
        if self.group_by is not None and self.ungrouped_because is not None:
            raise ValueError("`ungrouped_because` goes with `group_by: null`; take one of the two out")
        conflict = next((name for name in self.group_columns if name in self.not_groups), None)
        if conflict is not None:
            raise ValueError(f"{conflict!r} stands under `group_by` and under `not_groups`; take it out of one of them")
        return self

    @property
    def group_columns(self) -> tuple[str, ...]:
        """The columns of `group_by`; none where rows are independent."""
        return (self.group_by,) if isinstance(self.group_by, str) else self.group_by or ()

    @property
    def sliced(self) -> tuple[str, ...]:
        """Columns that are kept with the rows: the slices, and the one that has shares of the traffic."""
        return tuple(dict.fromkeys([*self.slices, *self.traffic.shares]))

    @property
    def by_prefix(self) -> dict[str, str]:
        """What stands before the ids of a source's rows, to tell them from another's → the data set or file."""
        if self.split.files is not None:
            return {f"{name}/": file for name, file in self.split.files.items()}
        if isinstance(self.source, str):
            return {"": self.source}
        return {f"{source}/": source for source in self.source or ()}

    @property
    def sources(self) -> tuple[str, ...]:
        """Every data set or file that rows are read from."""
        return tuple(self.by_prefix.values())
