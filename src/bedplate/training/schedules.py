"""Learning-rate schedules as pure functions of the step: warm-up, then cosine, warm-up-stable-decay, or constant.

Cosine: https://arxiv.org/abs/1608.03983. WSD: https://arxiv.org/abs/2404.06395.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

ScheduleName = Literal["cosine", "wsd", "constant"]


def cosine(step: float, total: int, warmup: int, decay: int, final: float) -> float:
    """Linear from 0 over `warmup` steps, then half a cosine from 1 to `final` over all the others."""
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def wsd(step: float, total: int, warmup: int, decay: int, final: float) -> float:
    """Linear from 0 over `warmup` steps, constant, then linear from 1 to `final` over the last `decay` steps."""
    if step < warmup:
        return step / warmup
    if step < total - decay:
        return 1.0
    progress = (step - (total - decay)) / max(1, decay)
    return final + (1.0 - final) * (1.0 - min(1.0, progress))


def constant(step: float, total: int, warmup: int, decay: int, final: float) -> float:
    """Linear from 0 over `warmup` steps, then 1."""
    return step / warmup if step < warmup else 1.0


SCHEDULES: dict[ScheduleName, Callable[[float, int, int, int, float], float]] = {
    "cosine": cosine,
    "wsd": wsd,
    "constant": constant,
}
