"""The parts of report.json about what a verdict asks for beside the bar (see `report.schema`)."""

from __future__ import annotations

from typing import Literal

from bedplate.report.schema_part import Count, Part, Share


class Requirement(Part):
    """Something that a nominee has to be shown to fulfil on the test rows, beside the bar."""

    requirement: str
    """What is asked, in words."""
    metric: str
    slice: str | None
    """Only rows of this one, as "language: de"; null for all."""
    holds: bool | None
    """Null: undecided, so that the skin cannot pass."""
    value: float | None
    """Null where there is none. Of a comparison, the nominee minus what it is compared with."""
    lower: float | None
    upper: float | None
    """One-sided bounds, each at `confidence`; null where the rows allow none."""
    bar: float
    direction: Literal["at_least", "at_most"]
    """Which side of the bar the value, and so the bound on the other side of it, has to be shown to be on."""
    confidence: Share
    n: Count
    groups: Count
    needed_n: Count | None
    """Test rows in all for 80% power were `value` the truth; null where it is decided or none would do."""
    reason: str
