"""One published model."""

from __future__ import annotations

from dataclasses import dataclass

from bedplate.models.specs import Spec


@dataclass(frozen=True)
class Preset:
    """A published model: its architecture, where it is published, and the parameters that its publisher prints.

    total, active: in billions as printed, rounding and all; None: not printed, or printed of something else.
    """

    spec: Spec
    source: str
    total: str | None = None
    active: str | None = None
