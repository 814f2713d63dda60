"""The ranks of a device mesh as the training loop sees them: sums over ranks with other data, and shards of
parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from bedplate.core.errors import TrainingError
from bedplate.training.parallel.layout import AXES, Axis, ParallelConfig
from bedplate.training.ranks import Ranks
from bedplate.training.sources import Shard


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
        """Arranges the processes that run. UsageError where they do not fit."""
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


class Team(Ranks):
    """This process among those of the mesh. summed: ids of parameters whose gradients are sums along "tensor".
    computes: the dtype of products."""

    def __init__(self, mesh: Mesh, summed: frozenset[int], computes: torch.dtype) -> None:
        self.mesh, self._summed, self._computes = mesh, summed, computes
        self.world, self.rank = dist.get_world_size(), dist.get_rank()
        self.main = self.rank == 0
        self._batch = mesh.batch.get_group()
        self.shard: Shard = mesh.batch.get_local_rank(), mesh.batch.size()

    def check_same(self, model: nn.Module) -> None:
        """TrainingError where ranks were given other models."""
        shapes = {name: (str(p.dtype), tuple(p.shape)) for name, p in model.named_parameters()}
        rank_shapes: list[Any] = [None] * self.world
        dist.all_gather_object(rank_shapes, shapes)
        differing_rank = next(
            (rank for rank, rank_shape in enumerate(rank_shapes) if rank_shape != rank_shapes[0]), None
        )
        if differing_rank is not None:
            raise TrainingError(f"rank {differing_rank} was given another model than rank 0; give all the same")

    # --- sums

    def sums(self, local_sums: Mapping[str, float]) -> Mapping[str, float]:
        totals: dict[str, float] = {}
        for rank_sums in self.gather(dict(local_sums)):
            for name, value in rank_sums.items():
                totals[name] = totals.get(name, 0.0) + value
        return totals

    def gather(self, local: Any) -> Sequence[Any]:
        gathered: list[Any] = [None] * self._batch.size()
        dist.all_gather_object(gathered, local, group=self._batch)
        return gathered

    def total(self, local: Tensor) -> Tensor:
        reduced = local.detach().clone()
        dist.all_reduce(reduced, group=self._batch)
        return reduced

    def worst(self, local: Tensor) -> Tensor:
        reduced = local.detach().clone()
        dist.all_reduce(reduced, dist.ReduceOp.MAX)
        return reduced

    def agreed(self, *flags: bool) -> tuple[bool, ...]:
        reduced = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(reduced, dist.ReduceOp.MAX)
        return tuple(map(bool, reduced.tolist()))

    def maximum(self, local: int) -> int:
        reduced = torch.tensor([local])
        dist.all_reduce(reduced, dist.ReduceOp.MAX)
        return int(reduced[0])

    def joined(self, own_ND: Tensor) -> tuple[Tensor, int]:
        counts: list[int] = list(self.gather(len(own_ND)))
        all_rows: Any = _Joined.apply(own_ND, counts, self.shard[0], self._batch)
        return all_rows, sum(counts[: self.shard[0]])

    def together(self) -> None:
        dist.barrier()

    # --- parameters

    def splits(self, parameter: Tensor) -> bool:
        return isinstance(parameter, DTensor)

    def computes_in(self, parameter: Tensor) -> torch.dtype:
        return self._computes

    def local_part(self, parameter: Tensor) -> Tensor:
        whole = parameter.detach()
        return whole.to_local() if isinstance(whole, DTensor) else whole

    def own_gradient(self, parameter: Tensor) -> Tensor | None:
        grad, parameter.grad = parameter.grad, None
        if not isinstance(grad, DTensor):
            return grad
        assert isinstance(parameter, DTensor)
        if grad.placements != parameter.placements:
            grad = grad.redistribute(placements=parameter.placements)
        return grad.to_local()

    def add_up(self, parameters: Mapping[str, nn.Parameter], grads: Mapping[str, Tensor]) -> None:
        """Every rank has a gradient of the same parameters: what had nothing to do ran all the same."""
        tensor_group = self.mesh.whole["tensor"].get_group()
        _add_up([grad for name, grad in grads.items() if id(parameters[name]) in self._summed], tensor_group)
        if not self.mesh.cuts_parameters:  # else it is done where gradients are made
            _add_up(list(grads.values()), self._batch)

    def norm(self, parameters: Mapping[str, nn.Parameter], grads: Mapping[str, Tensor]) -> Tensor:
        squares: dict[tuple[str, ...], list[Tensor]] = {}
        groups: dict[str, dist.ProcessGroup] = {}
        for name, grad in grads.items():
            parameter, over = parameters[name], list[str]()
            if isinstance(parameter, DTensor):
                for at, placement in enumerate(parameter.placements):
                    if not placement.is_replicate():  # a shard of a shard does not call itself one
                        group = parameter.device_mesh.get_group(at)
                        groups[group.group_name] = group
                        over.append(group.group_name)
            squares.setdefault(tuple(sorted(over)), []).append(torch.linalg.vector_norm(grad).square())
        total: Tensor | None = None
        for over, terms in sorted(squares.items()):
            subtotal = torch.stack(terms).sum()
            for name in over:
                dist.all_reduce(subtotal, group=groups[name])
            total = subtotal if total is None else total + subtotal
        assert total is not None
        return total.sqrt()

    def matrices(self, parameter: Tensor, local: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor) or _stands_alone(parameter):
            return local
        whole = self.placed(parameter, local)
        assert isinstance(whole, DTensor)
        return whole.full_tensor()

    def part(self, parameter: Tensor, matrices: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor) or _stands_alone(parameter):
            return matrices
        return _slice(parameter, matrices)

    def placed(self, parameter: Tensor, local: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor):
            return local
        mesh, placements = parameter.device_mesh, parameter.placements
        return DTensor.from_local(
            local, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
        )

    def local_slice(self, parameter: Tensor, stored: Tensor) -> Tensor:
        if isinstance(stored, DTensor):
            return stored.to_local()
        return _slice(parameter, stored) if isinstance(parameter, DTensor) else stored


class _Joined(torch.autograd.Function):
    """Rows of all ranks, each with another number of them."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, own_ND: Tensor, counts: list[int], at: int, group: dist.ProcessGroup
    ) -> Tensor:
        ctx.counts, ctx.at, ctx.group = counts, at, group
        padded = own_ND.new_zeros(max(counts), own_ND.shape[1])
        padded[: len(own_ND)] = own_ND
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded, group=group)
        return torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        summed = grad.contiguous().clone()
        dist.all_reduce(summed, group=ctx.group)
        return summed.split(ctx.counts)[ctx.at], None, None, None


def _stands_alone(parameter: DTensor) -> bool:
    """Whether what is held here is whole matrices: of experts, some."""
    return parameter.dim() > 2 and all(
        placement.is_replicate() or placement.is_shard(0) for placement in parameter.placements
    )


def _slice(parameter: DTensor, whole: Tensor) -> Tensor:
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    for dim, (size, start) in enumerate(zip(shape, offset, strict=True)):
        whole = whole.narrow(dim, min(start, whole.shape[dim]), size)
    return whole


def _add_up(grads: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """In place, together by dtype."""
    if group.size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for grad in grads:
        by_dtype.setdefault(grad.dtype, []).append(grad)
    for dtype_grads in by_dtype.values():
        flat = torch.cat([grad.reshape(-1) for grad in dtype_grads])
        dist.all_reduce(flat, group=group)
        for grad, summed in zip(dtype_grads, flat.split([grad.numel() for grad in dtype_grads]), strict=True):
            grad.copy_(summed.view_as(grad))
