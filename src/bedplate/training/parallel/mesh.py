"""How ranks are arranged: along which axis they share what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from bedplate.core.config import Strict
from bedplate.core.errors import UsageError

Axis = Literal["data", "shard", "expert", "tensor"]
AXES: tuple[Axis, ...] = ("data", "shard", "expert", "tensor")
Count = Annotated[int, Field(ge=1)]


class ParallelConfig(Strict):
    """How many ranks share what; their product is the number of processes.

    data: groups that each hold everything. shard: ranks that each hold a part of every parameter and its moments, and
    gather a block's when it runs (FSDP2: https://arxiv.org/abs/2304.11277); None: all ranks that are left. tensor:
    ranks that share each product. expert: ranks with data of their own that share the experts; they shard everything
    else. context: ranks that share a row; torch offers that for plain attention alone, which packed rows are not, so
    that there is one.
    """

    data: Count = 1
    shard: Count | None = None
    tensor: Count = 1
    expert: Count = 1
    context: Count = 1

    def sizes(self, world: int) -> dict[Axis, int]:
        """By axis, for so many processes. UsageError where they do not fit."""
        if self.context > 1:
            raise UsageError(
                f"context is {self.context}: torch shares a row among ranks for plain attention only, which packed "
                "documents are not; leave it at 1"
            )
        others = self.data * self.tensor * self.expert
        shard = self.shard if self.shard is not None else max(1, world // others)
        found: dict[Axis, int] = {"data": self.data, "shard": shard, "expert": self.expert, "tensor": self.tensor}
        if math.prod(found.values()) != world:
            asked = " x ".join(f"{axis} {size}" for axis, size in found.items())
            raise UsageError(f"{asked} is for {math.prod(found.values())} processes, and there are {world}")
        return found


@dataclass(frozen=True)
class Mesh:
    """whole: of all axes. batch: the ranks that have data of their own, one behind the other. shards: those that a
    parameter is cut among (with `data` before it, where there are several groups)."""

    whole: DeviceMesh
    sizes: dict[Axis, int]
    batch: DeviceMesh
    shards: DeviceMesh
    expert_shards: DeviceMesh

    @classmethod
    def of(cls, config: ParallelConfig, device: torch.device) -> Mesh:
        """Of the processes that run. UsageError where they do not fit."""
        sizes = config.sizes(dist.get_world_size())
        whole = init_device_mesh(device.type, tuple(sizes[axis] for axis in AXES), mesh_dim_names=AXES)
        # torchtitan joins axes in the same way; there is no public name for it.
        batch = whole["data", "shard", "expert"]._flatten("batch")  # pyright: ignore[reportPrivateUsage]
        shards = whole["shard", "expert"]._flatten("shards")  # pyright: ignore[reportPrivateUsage]
        replicated = sizes["data"] > 1
        return cls(
            whole,
            sizes,
            batch,
            whole["data", "shards"] if replicated else shards,
            whole["data", "shard"] if replicated else whole["shard"],
        )

    @property
    def cuts_parameters(self) -> bool:
        """Whether parameters are sharded at all."""
        return self.sizes["shard"] > 1 or self.sizes["expert"] > 1
