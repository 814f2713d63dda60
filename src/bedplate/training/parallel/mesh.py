"""How ranks are arranged: along which axis they share what."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from bedplate.training.parallel.layout import AXES, Axis, ParallelConfig


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
