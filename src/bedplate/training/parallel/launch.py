"""Joins the processes of a run that torchrun or Slurm started, and runs calls on the first process for all of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from bedplate.core.errors import RankError, UsageError

PORT = 29_400
"""Port of a Slurm job whose script sets no MASTER_PORT."""


@dataclass(frozen=True)
class Process:
    """One process of a run. rank: its number, of `world`; local: its number on its machine; address: host and port of
    the first process, None for a single one."""

    rank: int
    world: int
    local: int
    address: tuple[str, int] | None


def process_of(environment: Mapping[str, str]) -> Process:
    """Reads the launcher's environment variables. UsageError where they are incomplete."""
    if "RANK" in environment or "WORLD_SIZE" in environment:
        rank, world, local = (_number(environment, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        address = (_text(environment, "MASTER_ADDR"), _number(environment, "MASTER_PORT"))
    # A shell in an allocation, which has no step id, is a single process.
    elif environment.get("SLURM_STEP_ID") is not None and int(environment.get("SLURM_NTASKS", "1")) > 1:
        rank, world, local = (_number(environment, f"SLURM_{name}") for name in ("PROCID", "NTASKS", "LOCALID"))
        host = environment.get("MASTER_ADDR") or first_host(_text(environment, "SLURM_STEP_NODELIST"))
        address = (host, int(environment.get("MASTER_PORT", PORT)))
    else:
        return Process(0, 1, 0, None)
    if not 0 <= rank < world:
        raise UsageError(f"this process is number {rank} of {world}: ranks are numbered from 0")
    return Process(rank, world, local, address)


def first_host(nodes: str) -> str:
    """First host of Slurm's short form of a list: "gpu[003-007,9],cpu1" → "gpu003"."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise UsageError(f"SLURM_STEP_NODELIST is {nodes!r}, which names no host")
    before, number, after = match.groups()
    return before + (number or "") + (after or "")


def _number(environment: Mapping[str, str], name: str) -> int:
    text = _text(environment, name)
    if not text.isdigit():
        raise UsageError(f"{name} is {text!r}, but must be a number; start the processes with torchrun or srun")
    return int(text)


def _text(environment: Mapping[str, str], name: str) -> str:
    if name not in environment:
        raise UsageError(f"{name} is not set, but other variables of the launcher are; start with torchrun or srun")
    return environment[name]


@contextmanager
def launched(timeout: float = 1800.0) -> Generator[torch.device]:
    """A context with the process group of all processes, where there are several; yields this one's device. An existing
    group is reused.

    timeout: seconds after which a rank stops waiting for others. RankError where one of them has ended.
    """
    process = process_of(os.environ)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        # Slurm may make only its own device visible to each process, as number 0.
        device = torch.device("cuda", process.local % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if process.address is None or process.world == 1 or dist.is_initialized():
        yield device
        return
    host, port = process.address
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        init_method=f"tcp://{host}:{port}" if "TORCHELASTIC_RUN_ID" not in os.environ else "env://",
        rank=process.rank,
        world_size=process.world,
        timeout=timedelta(seconds=timeout),
    )
    try:
        yield device
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        lost = str(error).partition("\n")[0]
        raise RankError(f"rank {process.rank} can no longer reach the others; one of them has ended: {lost}") from error
    finally:
        dist.destroy_process_group()


T = TypeVar("T")
WAIT_TIMEOUT = timedelta(days=2)
"""Timeout of waiting for other processes, which may be building a corpus; a process that ends is noticed at once."""


class Processes:
    """All processes of the run, as `launched` has joined them; constructed by all of them together. main: whether this
    is the first."""

    def __init__(self) -> None:
        several = dist.is_initialized() and dist.get_world_size() > 1
        self.world = dist.get_world_size() if several else 1
        self.main = not several or dist.get_rank() == 0
        group = dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT) if several else None
        self._group = group if isinstance(group, dist.ProcessGroup) else None

    def broadcast(self, call: Callable[[], T]) -> T:
        """The result of the first process's call, which must be picklable. Its error ends the others too, with
        RankError."""
        if self._group is None:
            return call()
        outcome: list[Any] = [None, None]
        failure: BaseException | None = None
        if self.main:
            try:
                outcome = [call(), None]
            except BaseException as error:
                failure = error
                outcome = [None, f"{type(error).__name__}: {error}"]
        try:
            dist.broadcast_object_list(outcome, src=0, group=self._group)
        except RuntimeError as lost:
            if failure is not None:  # the others have ended already, and this is why
                raise failure from lost
            raise
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise RankError(f"the first process has ended: {outcome[1]}", reported=True)
        return cast(T, outcome[0])

    def in_turn(self, call: Callable[[], T]) -> T:
        """The result of each process's own call; the others begin when the first has finished, and can read what it has
        written."""
        results: list[T] = []
        self.broadcast(lambda: results.append(call()))
        return results[0] if self.main else call()
