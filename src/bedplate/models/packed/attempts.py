"""Trying ways to compute one thing on the device at hand: how a kernel says that it is not for it, and which of two is
the faster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from bedplate.core.errors import BedplateError
from bedplate.models.device_memory import finish

REFUSALS = (RuntimeError, NotImplementedError, TypeError, ValueError, BedplateError)
"""How it is said that a kernel is not for this device, or not for these tensors."""
_CLEARLY = 1.02
"""Times as long, from which on another way is taken."""


def least_seconds(run: Callable[[], object], device: torch.device, turns: int) -> float:
    """The least of some turns, after one that is not counted: it may compile."""
    best = math.inf
    for turn in range(1 + turns):
        finish(device)
        began = time.perf_counter()
        run()
        finish(device)
        if turn:
            best = min(best, time.perf_counter() - began)
    return best


def clearly_less(seconds: float, usual: float) -> bool:
    """Whether it is worth leaving the usual way for one that takes so long."""
    return seconds * _CLEARLY <= usual
