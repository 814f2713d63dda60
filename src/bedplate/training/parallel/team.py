"""The ranks of a mesh as the training loop sees them: sums over those with other data, and parts of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from bedplate.core.errors import TrainingError
from bedplate.training.parallel.mesh import Mesh
from bedplate.training.ranks import Ranks
from bedplate.training.sources import Shard


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
        every: list[Any] = [None] * self.world
        dist.all_gather_object(every, shapes)
        other = next((rank for rank, one in enumerate(every) if one != every[0]), None)
        if other is not None:
            raise TrainingError(f"rank {other} was given another model than rank 0; give all the same")

    # --- sums

    def sums(self, own: Mapping[str, float]) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for one in self.every(dict(own)):
            for name, value in one.items():
                found[name] = found.get(name, 0.0) + value
        return found

    def every(self, own: Any) -> Sequence[Any]:
        found: list[Any] = [None] * self._batch.size()
        dist.all_gather_object(found, own, group=self._batch)
        return found

    def total(self, own: Tensor) -> Tensor:
        found = own.detach().clone()
        dist.all_reduce(found, group=self._batch)
        return found

    def worst(self, own: Tensor) -> Tensor:
        found = own.detach().clone()
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found

    def agreed(self, *own: bool) -> tuple[bool, ...]:
        found = torch.tensor(own, dtype=torch.int32)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return tuple(map(bool, found.tolist()))

    def most(self, own: int) -> int:
        found = torch.tensor([own])
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found[0])

    def joined(self, own_ND: Tensor) -> tuple[Tensor, int]:
        counts: list[int] = list(self.every(len(own_ND)))
        found: Any = _Joined.apply(own_ND, counts, self.shard[0], self._batch)
        return found, sum(counts[: self.shard[0]])

    def together(self) -> None:
        dist.barrier()

    # --- parameters

    def splits(self, parameter: Tensor) -> bool:
        return isinstance(parameter, DTensor)

    def computes_in(self, parameter: Tensor) -> torch.dtype:
        return self._computes

    def own(self, parameter: Tensor) -> Tensor:
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
        along = self.mesh.whole["tensor"].get_group()
        _add_up([grad for name, grad in grads.items() if id(parameters[name]) in self._summed], along)
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
        for over, each in sorted(squares.items()):
            found = torch.stack(each).sum()
            for name in over:
                dist.all_reduce(found, group=groups[name])
            total = found if total is None else total + found
        assert total is not None
        return total.sqrt()

    def matrices(self, parameter: Tensor, own: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor) or _stands_alone(parameter):
            return own
        whole = self.placed(parameter, own)
        assert isinstance(whole, DTensor)
        return whole.full_tensor()

    def part(self, parameter: Tensor, matrices: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor) or _stands_alone(parameter):
            return matrices
        return _slice(parameter, matrices)

    def placed(self, parameter: Tensor, own: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor):
            return own
        mesh, placements = parameter.device_mesh, parameter.placements
        return DTensor.from_local(
            own, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
        )

    def taken(self, parameter: Tensor, stored: Tensor) -> Tensor:
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
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded, group=group)
        return torch.cat([rows[:count] for rows, count in zip(found, counts, strict=True)])

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
    for found in by_dtype.values():
        flat = torch.cat([grad.reshape(-1) for grad in found])
        dist.all_reduce(flat, group=group)
        for grad, summed in zip(found, flat.split([grad.numel() for grad in found]), strict=True):
            grad.copy_(summed.view_as(grad))
