"""What a run minimises. OBJECTIVES is the table of all there are."""

from __future__ import annotations

from bedplate.training.objectives.base import Models, Objective, Scope, Term
from bedplate.training.objectives.language import NextToken, Sft

OBJECTIVES: dict[str, type[NextToken]] = {
    "next_token": NextToken,
    "sft": Sft,
}

__all__ = ["OBJECTIVES", "Models", "NextToken", "Objective", "Scope", "Sft", "Term"]
