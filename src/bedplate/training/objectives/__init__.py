"""What a run minimises. OBJECTIVES is the table of all there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bedplate.training.objectives.language import Further, NextToken, Sft
from bedplate.training.objectives.objective import AnyModel, Models, Objective, Scope, Term

OBJECTIVES: dict[str, Callable[[], Objective[Any]]] = {
    "next_token": NextToken,
    "sft": Sft,
}

__all__ = ["OBJECTIVES", "AnyModel", "Further", "Models", "NextToken", "Objective", "Scope", "Sft", "Term"]
