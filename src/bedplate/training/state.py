"""The saved state of a run: everything that the next step depends on, written atomically. No pickles."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bedplate.core.errors import TrainingError, UsageError
from bedplate.core.files import file_lock
from bedplate.core.json import differences

STATE_FILE = "state.safetensors"
SHARDS = "states"
"""Directory of the states of several ranks."""
METRICS_FILE = "metrics.jsonl"
_TEMPORARY = f".{STATE_FILE}.tmp"
_VERSION = 1


@dataclass(frozen=True)
class RunState:
    """One saved state. tensors: of the optimization, and `rng/…`; values: JSON (step, source position, fingerprint,
    …)."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class StateStore(Protocol):
    """Stores a run's states; each is whole or absent, even when the process is killed."""

    def save(self, step: int, state: RunState) -> None:
        """Saves `state` as the one after `step` steps; earlier ones may be deleted. UsageError where it cannot be
        written."""
        ...

    def latest(self) -> int | None:
        """The step of the last saved state; None where there is none. TrainingError for a damaged one."""
        ...

    def values(self, step: int) -> dict[str, Any]:
        """The JSON values of the state saved at this step. TrainingError where it cannot be read."""
        ...

    def load(self, step: int, templates: Mapping[str, Tensor] | None = None) -> RunState:
        """The state saved at this step. TrainingError where it cannot be read. templates: tensors placed as this run's
        ranks hold them; they may be filled in place. Other tensors are whole."""
        ...

    def settle(self) -> None:
        """Waits until what was saved is on disk. UsageError where it cannot be written."""
        ...

    def remove(self) -> None:
        """Removes every state, if there is one."""
        ...


class StateFile:
    """The last state, in one safetensors file of the run's directory: parameters, moments and random states as tensors,
    the rest as JSON in its header."""

    def __init__(self, out: Path) -> None:
        self.path = out / STATE_FILE

    def __str__(self) -> str:
        return str(self.path)

    def save(self, step: int, state: RunState) -> None:
        temporary = self.path.with_name(_TEMPORARY)  # one writer per directory: `run_directory` holds the lock
        header = {"bedplate": json.dumps({"version": _VERSION, **state.values}, sort_keys=True)}
        tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
        try:
            save_file(tensors, temporary, header)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{self}: the training state cannot be written: {error}") from error

    def latest(self) -> int | None:
        if not self.path.exists():
            return None
        with self._opened() as (_, values):
            return int(values["tally"]["step"])

    def values(self, step: int) -> dict[str, Any]:
        with self._opened(step) as (_, values):
            return values

    def settle(self) -> None:
        """Does nothing: `save` has written to disk."""

    def load(self, step: int, templates: Mapping[str, Tensor] | None = None) -> RunState:
        with self._opened(step) as (file, values):
            return RunState({name: file.get_tensor(name) for name in file.keys()}, values)  # noqa: SIM118

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    @contextmanager
    def _opened(self, step: int | None = None) -> Generator[tuple[Any, dict[str, Any]]]:
        """The open file and its header. TrainingError when it is not a state file, or is of another step."""
        try:
            with safe_open(self.path, "pt") as file:
                values = json.loads((file.metadata() or {})["bedplate"])
                if values.pop("version", None) != _VERSION:
                    raise TrainingError(f"{self}: written by another version of Bedplate; delete it to start anew")
                if step not in (None, values["tally"]["step"]):
                    raise TrainingError(f"{self}: holds the state after step {values['tally']['step']}, not {step}")
                yield file, values
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise TrainingError(f"{self}: not a training state that can be read ({error}); delete it") from error


def check_fingerprint(out: Path, store: StateStore, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raises TrainingError naming the fields in which the run saved in `out` and the current one differ."""
    changed = differences(saved, current)
    if changed:
        raise TrainingError(
            f"{out} holds the state of another run and cannot be resumed with this one; changed: "
            f"{'; '.join(changed.values())}. Give another directory, or delete {store} to start anew"
        )


@contextmanager
def run_directory(out: Path, main: bool = True) -> Generator[None]:
    """Creates the directory and locks it against other writers while the run lasts (they wait). main: whether this is
    the one rank of several that does so."""
    if not main:
        yield
        return
    with file_lock(out / ".lock"):
        (out / _TEMPORARY).unlink(missing_ok=True)  # left by a killed process
        yield


def random_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of the global generators of torch, Python and (where it is in use) numpy: tensors, JSON values."""
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
    """A context in which the global generators are seeded; they are restored afterwards."""
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
