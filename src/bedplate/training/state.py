"""A run's state: everything the next step depends on, in one file that is whole or absent. No pickles.

`state.safetensors` holds parameters, moments and random states as tensors, and the rest as JSON in its header.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bedplate.core.errors import TrainingError, UsageError
from bedplate.core.files import file_lock

STATE_FILE = "state.safetensors"
METRICS_FILE = "metrics.jsonl"
_VERSION = 1


@dataclass(frozen=True)
class RunState:
    """tensors: the optimization's, and `rng/…`; values: JSON (step, source position, fingerprint, …)."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save_state(out: Path, state: RunState) -> None:
    """Writes `state` into the run directory. A kill at any moment leaves this state or the one before."""
    path = out / STATE_FILE
    temporary = out / f".{STATE_FILE}.tmp"  # one writer per directory: `run_directory` holds the lock
    header = {"bedplate": json.dumps({"version": _VERSION, **state.values}, sort_keys=True)}
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    try:
        save_file(tensors, temporary, header)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: the training state cannot be written: {error}") from error


def load_state(out: Path) -> RunState | None:
    """The saved state, or None where there is none. Raises TrainingError when the file is not one of ours."""
    path = out / STATE_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            values = json.loads((file.metadata() or {})["bedplate"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise TrainingError(
            f"{path}: not a training state that can be read ({error}); delete it to start anew"
        ) from error
    if values.pop("version", None) != _VERSION:
        raise TrainingError(f"{path}: written by another version of Bedplate; delete it to start anew")
    return RunState(tensors, values)


def check_fingerprint(out: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises TrainingError naming the fields in which the saved run and the one that is asked for differ."""
    before, now = _flatten(saved), _flatten(wanted)
    changed = [
        f"{key}: saved {_short(before.get(key))}, now {_short(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise TrainingError(
            f"{out} holds the state of another run and cannot be resumed with this one; changed: {'; '.join(changed)}. "
            f"Give another directory, or delete {out / STATE_FILE} to start anew"
        )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in _flatten(inner, f"{prefix}.{key}".strip(".")).items()}
    # As JSON would return it: a tuple and a list are the same.
    return {prefix: json.loads(json.dumps(value))}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"


@contextmanager
def run_directory(out: Path) -> Generator[None]:
    """Makes the directory and keeps other writers out of it while the run lasts (they wait)."""
    with file_lock(out / ".lock"):
        (out / f".{STATE_FILE}.tmp").unlink(missing_ok=True)  # a killed writer's
        yield


# --- random states


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
        found = [tensors[f"rng/cuda{i}"] for i in range(torch.cuda.device_count()) if f"rng/cuda{i}" in tensors]
        torch.cuda.set_rng_state_all(found)
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
