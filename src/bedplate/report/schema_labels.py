"""Parts of report.json about labels: rows that were labelled twice, and labels that were bought (see
`report.schema`)."""

from __future__ import annotations

from bedplate.report.schema_part import Count, Interval, Part, Share


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
