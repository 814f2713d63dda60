"""The `parallel` part of a run file: how many ranks share what."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from bedplate.core.config import Strict
from bedplate.core.errors import UsageError

Axis = Literal["data", "shard", "expert", "tensor"]
AXES: tuple[Axis, ...] = ("data", "shard", "expert", "tensor")
Count = Annotated[int, Field(ge=1)]


class ParallelConfig(Strict):
    """How many ranks share what; the product is the number of processes.

    data: groups that each hold everything. shard: ranks that each hold a part of every parameter and its moments
    (FSDP2: https://arxiv.org/abs/2304.11277); None: all that are left. tensor: ranks that share each product. expert:
    ranks with their own data that share the experts; they shard everything else. context: 1, since torch shares a row
    for plain attention only, which packed rows are not.
    """

    data: Count = 1
    shard: Count | None = None
    tensor: Count = 1
    expert: Count = 1
    context: Literal[1] = 1

    @property
    def min_processes(self) -> int:
        """The fewest processes that it is for."""
        return self.data * (self.shard or 1) * self.tensor * self.expert

    def sizes(self, world: int) -> dict[Axis, int]:
        """By axis, for so many processes. UsageError where they do not fit."""
        unsharded_size = self.data * self.tensor * self.expert
        shard = self.shard if self.shard is not None else max(1, world // unsharded_size)
        axis_sizes: dict[Axis, int] = {"data": self.data, "shard": shard, "expert": self.expert, "tensor": self.tensor}
        if math.prod(axis_sizes.values()) != world:
            layout = " x ".join(f"{axis} {size}" for axis, size in axis_sizes.items())
            start = "; start them with torchrun or srun" if world == 1 else ""
            count = math.prod(axis_sizes.values())
            raise UsageError(f"{layout} is for {count} processes, and there are {world}{start}")
        return axis_sizes
