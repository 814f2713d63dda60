"""What a run minimises. OBJECTIVES is the table of those that need nothing but tokens; `Classification` has a head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bedplate.training.objectives.classification import Classification
from bedplate.training.objectives.language import Further, NextToken, Sft
from bedplate.training.objectives.objective import AnyModel, Models, Objective, Scope, Term

OBJECTIVES: dict[str, Callable[[], Objective[Any]]] = {
    "next_token": NextToken,
    "sft": Sft,
}

__all__ = [
    "OBJECTIVES",
    "AnyModel",
    "Classification",
    "Further",
    "Models",
    "NextToken",
    "Objective",
    "Scope",
    "Sft",
    "Term",
]
