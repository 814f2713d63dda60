"""The `guards` of a task file: what a child base may lose for its other users."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from bedplate.core.config import Strict

CORE = ("piqa", "openbookqa", "commonsenseqa", "boolq")
"""The core sets' names (`evaluation.suites.items`), here so that a task file is read without torch."""
GENERAL_TEXT = ("vader-news", "vader-movies")
"""Edited prose first; the second for tasks that train on it."""

Margin = Annotated[float, Field(gt=0, lt=1)]


class RetentionGuard(Strict):
    """Multiple choice: accuracy (per character) may drop by less than `max_drop`.

    sets, per_set: of the core sets, so many items each. source: a team's own .jsonl file instead (`context`, `choices`,
    `gold`).
    """

    max_drop: Margin = 0.02
    sets: Annotated[tuple[str, ...], Field(min_length=1)] = CORE
    per_set: Annotated[int, Field(ge=1)] = 300
    source: str | None = None

    @field_validator("sets")
    @classmethod
    def _check_sets(cls, sets: tuple[str, ...]) -> tuple[str, ...]:
        for name in sets:
            if name not in CORE:
                raise ValueError(f"there is no core set {name!r}; there are {', '.join(CORE)}")
        if len(set(sets)) < len(sets):
            raise ValueError("a set is named twice")
        return sets


class LossGuard(Strict):
    """General text: the loss may rise by less than `max_increase` (nats per token). source: a data set or a file with a
    column `text`, which the task does not train on (None: the first of `GENERAL_TEXT` of which that is so); documents:
    how many of its documents are read at most."""

    max_increase: Margin = 0.02
    source: str | None = None
    documents: Annotated[int, Field(ge=1)] = 150


class RefusalGuard(Strict):
    """Requests that should be refused: the share refused may drop by less than `max_drop`."""

    max_drop: Margin


class GuardsSpec(Strict):
    """For rungs that make a child base (`full`, `continued_pretrain`): retention and loss unless they are null, refusal
    where it is asked for."""

    retention: RetentionGuard | None = RetentionGuard()
    loss: LossGuard | None = LossGuard()
    refusal: RefusalGuard | None = None
