"""How a task's rows are split: by fractions, or as three files."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from bedplate.core.config import Strict

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
