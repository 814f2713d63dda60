"""Sharded training states (torch.distributed.checkpoint): each rank writes its part while training goes on.

A state is a directory that gets its final name once all of it is on disk; incomplete ones have another name. Any number
of ranks in any arrangement can read it, as well as a single process's state file; the later of the two is used. All
ranks must share one file system.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from bedplate.core.errors import TrainingError, UsageError
from bedplate.core.files import sync_directory
from bedplate.training.ranks import Ranks
from bedplate.training.state import SHARDS, RunState, StateFile

_VALUES = "values.json"
_PARTIAL = ".partial"
_RANDOM = "rng/"
_VERSION = 1


class DistributedStates:
    """A `StateStore` of the last state of a run, whose number of processes may change between saves."""

    def __init__(self, out: Path, ranks: Ranks) -> None:
        self._file, self._directory, self._ranks = StateFile(out), out / SHARDS, ranks
        # A process group for the saving thread alone, so that its collectives and training's never mix.
        group = dist.new_group(backend="gloo") if ranks.world > 1 else None
        self._group = group if isinstance(group, dist.ProcessGroup) else None
        self._writing: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __str__(self) -> str:
        return f"{self._file} and {self._directory}"

    def save(self, step: int, state: RunState) -> None:
        """Copies the state, and writes the copy in the background. UsageError where the previous one could not be
        written."""
        self.settle()
        if self._group is None:
            self._file.save(step, state)
            shutil.rmtree(self._directory, ignore_errors=True)
            return
        rank = self._ranks.rank
        tensors = {_of_rank(name, rank): _copied(tensor) for name, tensor in state.tensors.items()}
        rank_states: list[Any] = [None] * self._ranks.world
        dist.all_gather_object(rank_states, state.values["random"])
        values = {**state.values, "version": _VERSION, "random": rank_states}
        self._writing = threading.Thread(target=self._write, args=(step, tensors, values), daemon=True)
        self._writing.start()

    def _write(self, step: int, tensors: dict[str, Tensor], values: Mapping[str, Any]) -> None:
        try:
            final = self._directory / f"{step:010d}"
            partial = final.with_name(final.name + _PARTIAL)
            partial.mkdir(parents=True, exist_ok=True)
            dcp.save(tensors, checkpoint_id=partial, process_group=self._group)
            if not self._ranks.main:
                return
            # Once the main rank's call returns, all ranks' parts are on disk.
            with (partial / _VALUES).open("w") as file:
                json.dump(values, file)
                file.flush()
                os.fsync(file.fileno())
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
            sync_directory(self._directory)
            for directory in self._directory.iterdir():
                if directory != final:
                    shutil.rmtree(directory, ignore_errors=True)
            self._file.remove()
        except BaseException as error:
            self._failure = error

    def settle(self) -> None:
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise UsageError(f"{self._directory}: the training state cannot be written: {failure}") from failure

    def latest(self) -> int | None:
        if self._ranks.main and self._directory.exists():
            for partial in self._directory.glob(f"*{_PARTIAL}"):
                shutil.rmtree(partial)
        latest_step = self._ranks.maximum(max(self._file.latest() or 0, self._last_shards()))
        return latest_step or None

    def _last_shards(self) -> int:
        if not self._directory.exists():
            return 0
        return max((int(path.name) for path in self._directory.iterdir() if path.name.isdigit()), default=0)

    def values(self, step: int) -> dict[str, Any]:
        if self._file.latest() == step:
            return self._file.values(step)
        place = self._directory / f"{step:010d}" / _VALUES
        with _reading(place):
            values = json.loads(place.read_text())
            if values.pop("version") != _VERSION:
                raise TrainingError(f"{place}: written by another version of Bedplate; delete it to start anew")
            randoms, rank = values["random"], self._ranks.rank
            values["random"] = randoms[rank if len(randoms) == self._ranks.world else 0]
        return values

    def load(self, step: int, templates: Mapping[str, Tensor] | None = None) -> RunState:
        values = self.values(step)
        if self._file.latest() == step:
            return self._file.load(step)
        place = self._directory / f"{step:010d}"
        with _reading(place):
            reader = dcp.FileSystemReader(place)
            tensor_metadata = reader.read_metadata().state_dict_metadata
            rank = self._ranks.rank if f"{_RANDOM}{self._ranks.world - 1}/torch" in tensor_metadata else 0
            tensors: dict[str, Any] = {}
            for name, about in tensor_metadata.items():
                assert isinstance(about, TensorStorageMetadata)
                template = None if templates is None else templates.get(name)
                if template is not None:
                    tensors[name] = template
                elif not name.startswith(_RANDOM) or name.startswith(f"{_RANDOM}{rank}/"):
                    tensors[name] = torch.empty(about.size, dtype=about.properties.dtype)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")  # intended in a single process
                dcp.load(tensors, storage_reader=reader, process_group=self._group, no_dist=self._group is None)
        return RunState({name.replace(f"{_RANDOM}{rank}/", _RANDOM): x for name, x in tensors.items()}, values)

    def remove(self) -> None:
        self.settle()
        if self._ranks.main:
            self._file.remove()
            shutil.rmtree(self._directory, ignore_errors=True)


def _of_rank(name: str, rank: int) -> str:
    """The rank's own name of a value that differs between ranks (states of random generators)."""
    return name.replace(_RANDOM, f"{_RANDOM}{rank}/", 1) if name.startswith(_RANDOM) else name


def placed_like(local: Tensor, whole: DTensor) -> DTensor:
    """This rank's part of a tensor, as a DTensor sharded like `whole`."""
    mesh, placements = whole.device_mesh, whole.placements
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())


def _copied(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor.detach().to("cpu", copy=True)
    return placed_like(tensor.to_local().to("cpu", copy=True), tensor)


@contextmanager
def _reading(place: Path) -> Generator[None]:
    try:
        yield
    except (OSError, KeyError, ValueError, RuntimeError, CheckpointException) as error:
        raise TrainingError(f"{place}: not a training state that can be read ({error}); delete it") from error
