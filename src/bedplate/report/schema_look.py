"""Parts of report.json that look closely at the skin that the verdict is about, and at rows (see `report.schema`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bedplate.report.schema_part import Count, Interval, Part, Share, Split


class CalibrationBin(Part):
    low: Share
    high: Share
    n: Count
    confidence: Share
    """Mean, of the rows in it."""
    accuracy: Share
    interval: Interval
    """95% interval of the accuracy, groups respected."""


class Calibration(Part):
    bins: tuple[CalibrationBin, ...]
    """Without the empty ones."""
    of: Annotated[int, Field(ge=1)]
    """Bins of equal width between 0 and 1, empty ones included."""
    error: Share
    """Expected calibration error over these bins: mean |accuracy − confidence|, weighted by rows."""
    n: Count


class Slice(Part):
    by: str
    value: str
    n: Count
    groups: Count
    estimate: float
    """Mean row score."""
    interval: Interval


class Confusion(Part):
    """Rows by what was wanted (line) and answered (column); the last column is answers that were no label."""

    labels: tuple[str, ...]
    counts: tuple[tuple[Count, ...], ...]


class Focus(Part):
    """A closer look at the skin that the verdict is about."""

    rung: str
    split: Split
    calibration: Calibration | None
    """Null where answers carry no scores."""
    confusion: Confusion | None
    """Null for outputs without labels."""
    slices: tuple[Slice, ...]
    """Worst first."""


class ExampleRow(Part):
    """A valid row with its text and what every rung answered."""

    id: str
    why: Literal["wrong", "disagreement", "right"]
    """The judged skin's surest mistakes; rows where rungs disagree; some right answers."""
    text: str
    target: str
    answers: dict[str, str | None]
    """Rung → its answer; null: nothing usable."""
    scores: dict[str, float]
    """Rung → the row's score."""


class Examples(Part):
    rung: str | None
    """The judged rung."""
    split: Literal["valid"]
    """Test texts stay closed."""
    rows: tuple[ExampleRow, ...]
    disagreeing: Count
    """Valid rows on which not all rungs have the same score; the first of them are shown."""
