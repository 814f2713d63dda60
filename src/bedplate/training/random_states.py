"""The states of the process's random generators: kept with a run's state, and as they were after it."""

from __future__ import annotations

import random
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def random_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of torch's, Python's and (where it is in use) numpy's global generators: tensors, JSON values."""
    tensors = {"rng/torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"rng/cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    version, numbers, gauss = random.getstate()
    values: dict[str, Any] = {"python": [version, list(numbers), gauss]}
    if "numpy" in sys.modules:
        import numpy as np

        name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        values["numpy"] = [name, [int(k) for k in keys], int(position), int(has_gauss), float(cached)]
    return tensors, values


def set_random_states(tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """The inverse of `random_states`."""
    torch.set_rng_state(tensors["rng/torch"])
    if torch.cuda.is_available():
        cuda_states = [tensors[f"rng/cuda{i}"] for i in range(torch.cuda.device_count()) if f"rng/cuda{i}" in tensors]
        torch.cuda.set_rng_state_all(cuda_states)
    version, numbers, gauss = values["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "numpy" in values:
        import numpy as np

        name, keys, position, has_gauss, cached = values["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """The global generators seeded inside, and as they were outside: a run leaves no trace in the process."""
    tensors, values = random_states()
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        set_random_states(tensors, values)
