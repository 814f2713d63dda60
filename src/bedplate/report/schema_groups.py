"""The part of report.json about which rows belong together: what the task declares, and what was found that it does not
(see `report.schema`)."""

from __future__ import annotations

from typing import Literal

from bedplate.report.schema_part import Count, Part, Share


class HiddenGroups(Part):
    """Rows that look as if they belonged together, beyond the groups that are declared."""

    kind: Literal["column", "near_duplicates", "order", "drift"]
    name: str
    """The column; `near_duplicates`; `order` for rows that stand beside each other."""
    strong: bool
    """Whether it stops a run that does not answer it."""
    rows: Count
    """Looked at: of declared groups one row each."""
    groups: Count
    worth: float
    """How many groups of one size these are as good as: (Σm)² / Σm²."""
    alike_targets: float | None = None
    alike_texts: float | None = None
    """Intra-class correlations; null where they were not or could not be measured."""
    p_value: Share | None = None
    """The lesser of the two, corrected (Holm) for all that was looked at; null where nothing is tested."""
    design_effect: float
    """By how much the variance of an estimate would grow if the scores were as alike."""
    effective_rows: float
    """What `rows` would be worth."""
    wider: float
    """How many times as far from the estimate its bound would lie."""
    says: str
    answer: str | None
    """Why it is no group, as the task file says; null where it does not."""


class Grouping(Part):
    """Which rows are kept together, and what was looked for before they were split."""

    columns: tuple[str, ...]
    """Rows that share a value of any of them are one group."""
    ungrouped_because: str | None
    found: tuple[HiddenGroups, ...]
    """Strong findings first."""
    limits: tuple[str, ...]
    """What was not looked at, because it is much."""

    @property
    def unanswered(self) -> tuple[HiddenGroups, ...]:
        """Strong findings that the task file says nothing of."""
        return tuple(finding for finding in self.found if finding.strong and finding.answer is None)
