"""The ways to adapt, cheapest first. RUNGS is the table of all there are."""

from __future__ import annotations

from bedplate.adaptation.rungs.base import Plan, Result, Rung, Skip
from bedplate.adaptation.rungs.few_shot import FewShot
from bedplate.adaptation.rungs.from_scratch import FromScratch
from bedplate.adaptation.rungs.lora import Lora
from bedplate.adaptation.rungs.majority import Majority
from bedplate.adaptation.rungs.probe import Probe
from bedplate.adaptation.rungs.zero_shot import ZeroShot

RUNGS: dict[str, Rung] = {
    "majority": Majority(),
    "from_scratch": FromScratch(),
    "zero_shot": ZeroShot(),
    "few_shot": FewShot(),
    "probe": Probe(),
    "lora": Lora(),
}

__all__ = ["RUNGS", "Plan", "Result", "Rung", "Skip"]
