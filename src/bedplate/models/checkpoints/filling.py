"""A model filled with a checkpoint's tensors, and the hash of them.

Tensors are read side by side, each checked as it comes, and none stays in memory in another dtype than the model's.
The hash is of the values as they are stored: whoever needs it reads the checkpoint once more, and what it found is kept
with the state that the files were in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from bedplate.core.errors import CheckpointError
from bedplate.core.files import FileState, file_state, sha256_json
from bedplate.core.measured import measured_once
from bedplate.models.build import build
from bedplate.models.checkpoints.conversion import Get, Reading, read, readings
from bedplate.models.checkpoints.identity import WeightsHash
from bedplate.models.families import Family
from bedplate.models.model import Ability, Model
from bedplate.models.specs import TextSpec

T = TypeVar("T")
_READERS = 4
"""Tensors that are read at once, at most: each may need room beside the model."""
_PART = 1 << 20
_KEPT_FROM = 1 << 25
"""Bytes of files from which a hash is kept; of fewer it takes no longer than looking for it."""
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


@dataclass(frozen=True)
class Filling:
    """A checkpoint that holds tensors `names` for a model. copies: names of what is stored a second time."""

    spec: TextSpec
    family: Family
    names: Sequence[str]
    where: str
    copies: frozenset[str] = frozenset()

    def model(
        self, get: Get, dtype: torch.dtype, device: torch.device, done: Callable[[str], None] | None = None
    ) -> Model:
        """A model with every parameter read from the checkpoint and every tensor of the checkpoint used. done: told of
        each tensor whose values are held in another dtype than it has.

        CheckpointError, naming the tensor, for values that are not finite or no real numbers.
        """
        model = self._empty(dtype)
        self._read(model, self._readings(model.state_dict(keep_vars=True)), get, device, done)
        return model

    def part(
        self,
        get: Get,
        dtype: torch.dtype,
        device: torch.device,
        states: Sequence[FileState],
        leave: Callable[[Model], Collection[str]],
    ) -> Model | Unfinished:
        """The same without the parameters that `leave` names of it; they are read when somebody wants the whole, which
        is a CheckpointError where the files are no longer in these states."""
        model = self._empty(dtype)
        left, plan = frozenset(leave(model)), self._readings(model.state_dict(keep_vars=True))
        later = [reading for reading in plan if left.issuperset(reading.step.ours)]
        self._read(model, [reading for reading in plan if not left.issuperset(reading.step.ours)], get, device)
        if not later:
            return model

        def rest() -> None:
            self._unchanged(states)
            self._read(model, later, get, device)
            self._unchanged(states)

        return Unfinished(model, rest)

    def _read(
        self,
        model: Model,
        plan: Sequence[Reading],
        get: Get,
        device: torch.device,
        done: Callable[[str], None] | None = None,
    ) -> None:
        wanted = model.state_dict(keep_vars=True)

        def held(reading: Reading) -> list[tuple[str, Tensor]]:
            found = read(reading, self.spec, get, wanted, self.where)
            kept = [(name, self._checked(name, tensor, wanted[name]).to(device)) for name, tensor in found]
            if done is not None and all(
                one.dtype != other.dtype for (_, one), (_, other) in zip(kept, found, strict=True)
            ):
                for name in reading.theirs:
                    done(name)
            return kept

        state = {name: tensor for found in _side_by_side(held, plan) for name, tensor in found}
        model.load_state_dict(wanted | state, assign=True)
        model.requires_grad_(False)
        model.eval()

    def weights_id(self, get: Get) -> str:
        """The hash of the values as they are stored (see `Identity`)."""
        wanted, digest = self._empty(torch.float32).state_dict(keep_vars=True), WeightsHash()

        def add(reading: Reading) -> None:
            for name, tensor in read(reading, self.spec, get, wanted, self.where, stored=True):
                digest.add(name, tensor)

        for _ in _side_by_side(add, self._readings(wanted)):
            pass
        return digest.hexdigest()

    def kept_id(self, get: Callable[[], str], states: Sequence[FileState], packing: object) -> str:
        """What `get` hashes, or hashed earlier of the same files. CheckpointError where they are not what they were
        when the model was read."""
        self._unchanged(states)
        if sum(state.size for state in states) < _KEPT_FROM or not all(state.settled for state in states):
            found = get()
        else:
            steps = [[step.ours, step.theirs] for step in self.family.weights.steps(self.spec)]
            key: dict[str, Any] = {"version": 1, "files": [list(state) for state in states], "packing": packing}
            key |= {"family": list(self.family.key), "spec": self.spec.key(), "names": sha256_json(steps)}
            found = measured_once("weights", key, get, str, _hash, timed=False)
        self._unchanged(states)
        return found

    def _unchanged(self, states: Iterable[FileState]) -> None:
        try:
            changed = next((state.path for state in states if file_state(Path(state.path)) != state), None)
        except OSError as error:
            raise CheckpointError(
                f"{self.where} is gone ({error}), so what was loaded from it cannot be hashed"
            ) from error
        if changed is not None:
            raise CheckpointError(f"{changed} has changed since it was loaded; load the base again")

    def _empty(self, dtype: torch.dtype) -> Model:
        try:
            return build(self.spec, dtype, "meta")
        except (RuntimeError, TypeError, OverflowError) as error:  # sizes that no tensor can have
            raise CheckpointError(f"{self.where}: a model of these sizes cannot be built ({error})") from error

    def _readings(self, wanted: Mapping[str, Tensor]) -> list[Reading]:
        kept = [name for name in self.names if name not in self.copies]
        return readings(self.family, self.spec, kept, wanted, self.where)

    def _checked(self, name: str, tensor: Tensor, wanted: Tensor) -> Tensor:
        """A tensor in the dtype that is wanted."""
        kind = str(tensor.dtype).removeprefix("torch.")
        if tensor.dtype in _FLOAT8 or (wanted.is_floating_point() and not tensor.is_floating_point()):
            raise CheckpointError(
                f"{self.where}: {name} holds {kind} values where real numbers are expected, and nothing says what they "
                "stand for; a quantised checkpoint needs its scales, and quantization_config in its config.json"
            )
        found = tensor.to(wanted.dtype)
        if not _finite(found):
            if found.dtype != tensor.dtype and _finite(tensor):
                short = str(found.dtype).removeprefix("torch.")
                raise CheckpointError(
                    f"{self.where}: {name} holds values that {short} cannot; load it as bfloat16 or float32"
                )
            raise CheckpointError(f"{self.where}: {name} holds NaN or infinite values; the checkpoint is damaged")
        return found


class Unfinished:
    """A model some of whose parameters are still in their file. `model` is what there is of it: the others have their
    shape and dtype, and no values (device "meta")."""

    def __init__(self, model: Model, rest: Callable[[], None]) -> None:
        self.model = model
        self._rest: Callable[[], None] | None = rest
        self._lock = Lock()

    @property
    def can(self) -> frozenset[Ability]:
        """What its outputs are for."""
        return self.model.can

    def get(self) -> Model:
        """The whole, read by whichever thread asks first. Raises CheckpointError."""
        with self._lock:
            if self._rest is not None:
                with torch.inference_mode(False):  # they may be trained on later
                    self._rest()
                self._rest = None
        return self.model


def _side_by_side(work: Callable[[Reading], T], plan: Sequence[Reading]) -> Iterator[T]:
    """In order. The first failure ends it, without reading the rest."""
    with ThreadPoolExecutor(max(1, min(_READERS, torch.get_num_threads()))) as pool:
        yield from pool.map(work, plan)


def _finite(tensor: Tensor) -> bool:
    """A sum shows what is not; one that merely grew too large is looked at again."""
    if not tensor.is_floating_point() or math.isfinite(float(tensor.sum())):
        return True
    return all(bool(part.isfinite().all()) for part in tensor.reshape(-1).split(_PART))


def _hash(found: Any) -> str:
    if not isinstance(found, str) or len(found) != 64:
        raise ValueError("not a hash")
    return found
