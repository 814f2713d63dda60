"""Float32 numbers that two ways of computing them should share: how near is near depends on how large they are.

Sums of products round by the size of what is summed, not of what is left: a logit near 0 is as uncertain as the largest
one beside it, and how much depends on the order in which a processor adds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

FLOAT32 = 3e-5
"""Of the largest value: some hundred roundings of float32, as sums in another order differ after a few layers."""


def assert_near(actual: Any, expected: Any, rel: float = FLOAT32, label: str = "") -> None:
    """That no number differs by more than `rel` times the largest of `expected`; tensors, arrays or lists."""
    ours, theirs = _array(actual), _array(expected)
    assert ours.shape == theirs.shape, f"{label} {ours.shape} and {theirs.shape}"
    assert np.isfinite(ours).all(), f"{label} not finite"
    scale = float(np.abs(theirs).max(initial=0.0))
    deviation = float(np.abs(ours - theirs).max(initial=0.0))
    assert deviation <= rel * scale, (
        f"{label} differs by {deviation:.3g}, which is {deviation / max(scale, 1e-300):.3g} of {scale:.3g}"
    )


def _array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().double().cpu().numpy()
    return np.asarray(values, dtype=np.float64)
