"""Loads a checkpoint's tensors into a model, and hashes them.

1. An empty model is built on device "meta" (`_empty`).
2. The family's rules map the checkpoint's tensors to parameters (`_readings`).
3. Tensors are read in parallel, each checked for NaN and converted at once, so that none stays in memory in another
   dtype than the model's (`_read`, `_checked`). Parameters that the caller defers are read on first use.
4. The hash is of the values as stored, which are read once more for it (`weights_id`); it is cached by the state of the
   files (`kept_id`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from bedplate.core.errors import CheckpointError
from bedplate.core.files import FileState, file_state, sha256_json
from bedplate.core.measurements import measured_once
from bedplate.models.build import build
from bedplate.models.checkpoints.conversion import ConversionStep, Get, read, readings
from bedplate.models.checkpoints.identity import Lazy, WeightsHash
from bedplate.models.families import Family
from bedplate.models.model import Model
from bedplate.models.specs import TextSpec

T = TypeVar("T")
_READERS = 4
"""Tensors that are read at once, at most: each may need room beside the model."""
_PART = 1 << 20
_KEPT_FROM = 1 << 25
"""Bytes of files from which a hash is kept; of fewer it takes no longer than looking for it."""
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


@dataclass(frozen=True)
class WeightLoader:
    """Loads the tensors `names` of a checkpoint into a model. copies: names of tensors that duplicate others."""

    spec: TextSpec
    family: Family
    names: Sequence[str]
    origin: str
    copies: frozenset[str] = frozenset()

    def load(
        self,
        get: Get,
        dtype: torch.dtype,
        device: torch.device,
        states: Sequence[FileState],
        leave: Callable[[Model], Collection[str]] | None = None,
        on_recast: Callable[[str], None] | None = None,
    ) -> tuple[Model, Lazy[None] | None]:
        """Builds a model with every parameter read from the checkpoint and every tensor of the checkpoint used.

        on_recast: called with each tensor that was converted to another dtype. Parameters that `leave` names have a
        shape and dtype, but no values (device "meta"), until the second result is evaluated, with a CheckpointError
        where the files have changed since `states` were taken. CheckpointError, naming the tensor, for values that are
        not finite or not real numbers.
        """
        model = self._empty(dtype)
        deferred, plan = frozenset(leave(model) if leave else ()), self._readings(model.state_dict(keep_vars=True))
        later = [reading for reading in plan if deferred.issuperset(reading.step.ours)]
        now = [reading for reading in plan if not deferred.issuperset(reading.step.ours)]
        self._read(model, now, get, device, on_recast)

        def read_deferred() -> None:
            self._unchanged(states)
            with torch.inference_mode(False):  # they may be trained on later
                self._read(model, later, get, device)
            self._unchanged(states)

        return model, Lazy(read_deferred) if later else None

    def _read(
        self,
        model: Model,
        plan: Sequence[ConversionStep],
        get: Get,
        device: torch.device,
        on_recast: Callable[[str], None] | None = None,
    ) -> None:
        parameters = model.state_dict(keep_vars=True)

        def load_reading(reading: ConversionStep) -> list[tuple[str, Tensor]]:
            tensors = read(reading, self.spec, get, parameters, self.origin)
            converted = [(name, self._checked(name, tensor, parameters[name]).to(device)) for name, tensor in tensors]
            if on_recast is not None and all(
                target.dtype != source.dtype for (_, target), (_, source) in zip(converted, tensors, strict=True)
            ):
                for name in reading.theirs:
                    on_recast(name)
            return converted

        state = {name: tensor for named_tensors in _in_parallel(load_reading, plan) for name, tensor in named_tensors}
        model.load_state_dict(parameters | state, assign=True)
        model.requires_grad_(False)
        model.eval()

    def weights_id(self, get: Get) -> str:
        """The hash of the values as they are stored (see `Identity`)."""
        parameters, digest = self._empty(torch.float32).state_dict(keep_vars=True), WeightsHash()

        def add(reading: ConversionStep) -> None:
            for name, tensor in read(reading, self.spec, get, parameters, self.origin, stored=True):
                digest.add(name, tensor)

        for _ in _in_parallel(add, self._readings(parameters)):
            pass
        return digest.hexdigest()

    def kept_id(self, get: Callable[[], str], states: Sequence[FileState], packing: object) -> str:
        """The hash that `get` computes, or a cached one of the same files. CheckpointError where they have changed
        since the model was read."""
        self._unchanged(states)
        if sum(state.size for state in states) < _KEPT_FROM or not all(state.settled for state in states):
            digest = get()
        else:
            steps = [[step.ours, step.theirs] for step in self.family.weights.steps(self.spec)]
            key: dict[str, Any] = {"version": 1, "files": [list(state) for state in states], "packing": packing}
            key |= {"family": list(self.family.key), "spec": self.spec.key(), "names": sha256_json(steps)}
            digest = measured_once("weights", key, get, str, _hash, timed=False)
        self._unchanged(states)
        return digest

    def _unchanged(self, states: Iterable[FileState]) -> None:
        try:
            changed = next((state.path for state in states if file_state(Path(state.path)) != state), None)
        except OSError as error:
            raise CheckpointError(f"{self.origin} is gone, and cannot be hashed: {error}") from error
        if changed is not None:
            raise CheckpointError(f"{changed} has changed since it was loaded; load the base again")

    def _empty(self, dtype: torch.dtype) -> Model:
        try:
            return build(self.spec, dtype, "meta")
        except (RuntimeError, TypeError, OverflowError) as error:  # sizes that no tensor can have
            raise CheckpointError(f"{self.origin}: a model of these sizes cannot be built ({error})") from error

    def _readings(self, parameters: Mapping[str, Tensor]) -> list[ConversionStep]:
        names = [name for name in self.names if name not in self.copies]
        return readings(self.family, self.spec, names, parameters, self.origin)

    def _checked(self, name: str, tensor: Tensor, parameter: Tensor) -> Tensor:
        """The tensor in its parameter's dtype. CheckpointError for values that are not finite, or do not fit it."""
        dtype_name = str(tensor.dtype).removeprefix("torch.")
        if tensor.dtype in _FLOAT8 or (parameter.is_floating_point() and not tensor.is_floating_point()):
            raise CheckpointError(
                f"{self.origin}: {name} holds {dtype_name} values where real numbers are expected; a quantised "
                "checkpoint needs its scales, and quantization_config in its config.json"
            )
        converted = tensor.to(parameter.dtype)
        if not _finite(converted):
            if converted.dtype != tensor.dtype and _finite(tensor):
                short = str(converted.dtype).removeprefix("torch.")
                raise CheckpointError(f"{self.origin}: {name} holds values that {short} cannot; load it as float32")
            raise CheckpointError(f"{self.origin}: {name} holds NaN or infinite values; the checkpoint is damaged")
        return converted


def _in_parallel(work: Callable[[ConversionStep], T], plan: Sequence[ConversionStep]) -> Iterator[T]:
    """Runs `work` over the plan in parallel threads, in order. The first failure ends it."""
    with ThreadPoolExecutor(max(1, min(_READERS, torch.get_num_threads()))) as pool:
        yield from pool.map(work, plan)


def _finite(tensor: Tensor) -> bool:
    """Whether all values are finite. A finite sum shows it at once; a sum that overflowed is followed by a full
    check."""
    if not tensor.is_floating_point() or math.isfinite(float(tensor.sum())):
        return True
    return all(bool(part.isfinite().all()) for part in tensor.reshape(-1).split(_PART))


def _hash(digest: Any) -> str:
    if not isinstance(digest, str) or len(digest) != 64:
        raise ValueError("not a hash")
    return digest
