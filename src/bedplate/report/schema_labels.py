"""Parts of report.json about labels: rows that were labelled twice, and labels that were bought (see
`report.schema`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bedplate.report.schema_part import Count, Interval, Part, Sha256, Share


class SecondLabels(Part):
    """Rows with a second label, of all splits: how often the two agree, and what that leaves a perfect model."""

    column: str
    n: Count
    of: Count
    """Rows of all splits."""
    groups: Count
    agreement: Share | None = None
    agreement_interval: Interval | None = None
    """Two-sided, 95%, groups respected."""
    ceiling: Share | None = None
    """What a perfect model would read against one of the labels, were every row equally hard; null for metrics that are
    no share of right answers."""
    ceiling_interval: Interval | None = None
    """Two-sided, 95%: from the agreement itself, were no model more often right than a second label, to the ceiling at
    the upper end of the agreement."""
    highest: Share | None = None
    """One-sided upper bound of the ceiling; a bar above it is refused."""
    confidence: Share | None = None
    reason: str | None = None
    """Why there is no ceiling, or no bound of it."""
    said: str | None = None
    """All of it as one line."""


class Look(Part):
    """Test rows were judged when so many of them had labels."""

    labels: Count
    """Test rows with a label, in the order that was fixed before."""
    share: Annotated[float, Field(gt=0, le=1)]
    """Share of the rows that the budget reaches to; by this the error is spent."""
    level: Share
    """What the bound of a single nominee is taken at, of the error that this verdict may spend."""
    rows: Sha256
    """Hash of these rows, their targets and groups."""


class LabelBudget(Part):
    """Labels that were bought for this verdict."""

    budget: Count
    """At most so many."""
    bought: dict[str, Count]
    """By split."""
    given: dict[str, Count]
    """By split: rows that came with a label."""
    unlabelled: dict[str, Count]
    """By split: rows that have none yet."""
    skipped: Count
    """Rows that nobody could label; they are in no split."""
    planned: Count
    """Test rows that are judged at most."""
    looks: tuple[Look, ...]
    """The last is this one; those before it did not decide."""
    chosen: str
    """How the train rows were chosen."""
    usd_per_label: float | None = None
    said: str
