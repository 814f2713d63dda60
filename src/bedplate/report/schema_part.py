"""What the parts of report.json have in common (see `report.schema`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from bedplate.core.config import Strict

Interval = tuple[float, float]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Split = Literal["train", "valid", "test"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Part(Strict):
    """A part of the report: its fields and no others; what stands under a field is published as its description."""

    model_config = ConfigDict(use_attribute_docstrings=True)
