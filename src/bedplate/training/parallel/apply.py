"""Distributes a model over ranks by the plan of its spec: tensor and expert parallel styles, then FSDP2. Model code is
independent of parallelism.

Shapes: N tokens, D features, E experts, k of them per token, M sorted copies of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from bedplate.core.errors import TrainingError, UsageError
from bedplate.models.layers.block import Block
from bedplate.models.layers.experts import ExpertLinear, RoutedExperts, sort_by_expert
from bedplate.models.layers.grouped import Segments, grouped_product
from bedplate.models.layers.linear import Linear
from bedplate.models.model import Model
from bedplate.models.precision import DTYPES
from bedplate.models.specs.split import Cut, cuts_of
from bedplate.training.config import AXES, Axis, DtypeChoice, ParallelConfig
from bedplate.training.parallel.sharded_states import placed_like
from bedplate.training.ranks import ALONE, Ranks


class LinearsStyle(ParallelStyle):
    """Tensor parallelism of a linear: each rank has some outputs ("columns", from the whole input) or some inputs
    ("rows", summed to the whole output)."""

    def __init__(self, rows: bool) -> None:
        self._rows = rows

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, Linear)
        _replace_by_shard(module, "weight", device_mesh, Shard(1 if self._rows else 0))
        if module.bias is not None:
            _replace_by_shard(module, "bias", device_mesh, Replicate() if self._rows else Shard(0))
        input_placement: Placement = Shard(-1) if self._rows else Replicate()

        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[DTensor]:
            return (DTensor.from_local(inputs[0], device_mesh, [input_placement], run_check=False),)

        def after(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            assert isinstance(output, DTensor)
            if self._rows:
                output = output.redistribute(placements=[Replicate()])
            return output.to_local()

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)
        return module


class ExpertsStyle(ParallelStyle):
    """Expert parallelism of ranks with different data: token copies are sent to the rank of their expert, and the
    outputs back."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, RoutedExperts)
        for layer in (module.gate_up, module.down):
            _replace_by_shard(layer, "weight", device_mesh, Shard(0))
            if layer.bias is not None:
                _replace_by_shard(layer, "bias", device_mesh, Shard(0))
            layer.experts //= device_mesh.size()
            layer.forward = _Local(layer)
        module.forward = _Exchange(module.forward, module.gate_up.experts, device_mesh.get_group())
        return module


def _replace_by_shard(module: nn.Module, name: str, mesh: DeviceMesh, placement: Placement) -> None:
    whole = getattr(module, name)
    part = distribute_tensor(whole.detach(), mesh, [placement], src_data_rank=None)
    module.register_parameter(name, nn.Parameter(part, whole.requires_grad))


class _Local:
    """`ExpertLinear.forward` for this rank's experts."""

    def __init__(self, layer: ExpertLinear) -> None:
        self._layer = layer

    def __call__(self, x_MI: Tensor, segments: Segments) -> Tensor:
        layer = self._layer
        if layer.low_rank is not None:
            raise UsageError("adapters on experts that ranks share are not trained; leave the experts out of them")
        y_MO = grouped_product(x_MI, _local(layer.weight), segments)
        if layer.bias is None:
            return y_MO
        return y_MO + _local(layer.bias).repeat_interleave(segments.counts_E, dim=0, output_size=len(y_MO))


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


class _Exchange:
    """`RoutedExperts.forward` over the experts of all ranks. local_count: number of experts on each rank."""

    def __init__(self, forward: Any, local_count: int, group: dist.ProcessGroup) -> None:
        self._forward, self._local_count, self._group = forward, local_count, group

    def __call__(self, x_ND: Tensor, chosen_Nk: Tensor, weights_Nk: Tensor) -> Tensor:
        ranks = self._group.size()
        order = sort_by_expert(chosen_Nk, ranks * self._local_count)
        counts_RE = order.segments.counts_E.view(ranks, self._local_count)
        from_RE = torch.empty_like(counts_RE)
        dist.all_to_all_single(from_RE, counts_RE, group=self._group)
        # The host needs the sizes of the exchange: the layer's only synchronization.
        sent, received = torch.stack((counts_RE.sum(1), from_RE.sum(1))).tolist()
        inputs_MD = _all_to_all(x_ND.index_select(0, order.tokens_M), received, sent, self._group)
        numbers_E = torch.arange(self._local_count, device=x_ND.device).repeat(ranks)
        expert_M = numbers_E.repeat_interleave(from_RE.reshape(-1), output_size=len(inputs_MD))
        local_MD = self._forward(inputs_MD, expert_M[:, None], inputs_MD.new_ones(len(inputs_MD), 1))
        outputs_MD = _all_to_all(local_MD, sent, received, self._group)
        each_NkD = outputs_MD.index_select(0, order.inverse_M).unflatten(0, weights_Nk.shape)
        return torch.bmm(weights_Nk[:, None], each_NkD).squeeze(1)


def _all_to_all(x_MD: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup) -> Tensor:
    """Exchanges rows between ranks: `sent` rows to each, `received` rows from each. Gradients return the same way."""
    received_rows: Any = _AllToAll.apply(x_MD, received, sent, group)
    return received_rows


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x_MD: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.received, ctx.sent, ctx.group = received, sent, group
        return _exchange_rows(x_MD, received, sent, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return _exchange_rows(grad, ctx.sent, ctx.received, ctx.group), None, None, None


def _exchange_rows(x_MD: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup) -> Tensor:
    received_rows = x_MD.new_empty(sum(received), x_MD.shape[1])
    dist.all_to_all_single(received_rows, x_MD.contiguous(), received, sent, group=group)
    return received_rows


def parallelised(model: Model, config: ParallelConfig, dtype: DtypeChoice = "auto") -> Ranks:
    """Distributes the model in place and returns the ranks that train it; ALONE for a single process.

    Every rank must hold the same model; TrainingError where they differ. dtype: compute dtype of a sharded model;
    parameters and sums keep theirs. Draw each rank's batches with `shard=ranks.shard`, and pass `ranks` to `train`.
    UsageError where the processes do not fit; UnsupportedModelError, naming the spec field, for an unsupported model.
    """
    if not dist.is_initialized():
        config.sizes(1)
        return ALONE
    _check_same(model)
    device = next(model.parameters()).device
    mesh = Mesh.of(config, device)
    model_dtype = next(model.parameters()).dtype
    computes = model_dtype if dtype == "auto" else DTYPES[dtype]
    if computes != model_dtype and not mesh.cuts_parameters:
        raise UsageError(f"without sharding a model computes in its own dtype: load it in {dtype}, or use dtype auto")
    cuts = _cut(model, mesh)
    if mesh.cuts_parameters:
        _shard(model, mesh, computes)
    summed = [model.get_submodule(path) for path, cut in cuts.items() if cut == "summed"]
    return DistributedRanks(mesh, frozenset(id(p) for module in summed for p in module.parameters()), computes)


def _check_same(model: Model) -> None:
    """TrainingError on every rank where ranks hold models of different shapes or dtypes."""
    rank_shapes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(rank_shapes, {name: (str(p.dtype), tuple(p.shape)) for name, p in model.named_parameters()})
    different = next((rank for rank, shapes in enumerate(rank_shapes) if shapes != rank_shapes[0]), None)
    if different is not None:
        raise TrainingError(f"rank {different} has another model than rank 0; give all the same")


def _cut(model: Model, mesh: Mesh) -> Mapping[str, Cut]:
    """Applies tensor and expert parallelism; returns the cut of each module."""
    cuts = cuts_of(model.spec, mesh.sizes["tensor"], mesh.sizes["expert"])
    styles: dict[Cut, ParallelStyle] = {"columns": LinearsStyle(rows=False), "rows": LinearsStyle(rows=True)}
    tensor_styles = {path: styles[cut] for path, cut in cuts.items() if cut in styles}
    if tensor_styles:
        parallelize_module(model, mesh.whole["tensor"], tensor_styles)
    experts: dict[str, ParallelStyle] = {path: ExpertsStyle() for path, cut in cuts.items() if cut == "experts"}
    if experts:
        parallelize_module(model, mesh.whole["expert"], experts)
    return cuts


def _shard(model: Model, mesh: Mesh, computes: torch.dtype) -> None:
    """FSDP2 block by block: parameters are gathered in the compute dtype when a block runs; gradients are summed in the
    parameters' dtype."""
    model_dtype = next(model.parameters()).dtype
    # Inputs keep their dtype: token numbers, positions, and rotations that are wider on purpose.
    policy = (
        MixedPrecisionPolicy(computes, model_dtype, cast_forward_inputs=False)
        if computes != model_dtype
        else MixedPrecisionPolicy()
    )
    for block in [module for module in model.modules() if isinstance(module, Block)]:
        if mesh.sizes["expert"] > 1:
            for module in [submodule for submodule in block.modules() if isinstance(submodule, RoutedExperts)]:
                fully_shard(module, mesh=mesh.expert_shards, mp_policy=policy)
        fully_shard(block, mesh=mesh.shards, mp_policy=policy)
    # Parameters outside of the blocks are used again for the loss, so they stay gathered after the forward pass.
    fully_shard(model, mesh=mesh.shards, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def whole_state(model: Model) -> Iterator[tuple[str, Tensor]]:
    """The model's `state_dict` as on one process, tensor by tensor on the CPU, for export. Every rank must iterate over
    all of it, whichever of them writes."""
    for name, tensor in model.state_dict().items():
        detached = tensor.detach()
        yield name, (detached.full_tensor() if isinstance(detached, DTensor) else detached).cpu()


@dataclass(frozen=True)
class Mesh:
    """The device mesh. whole: with all axes. batch: the ranks that have different data, in order. shards: the ranks
    over which a parameter is sharded (with `data` as the outer axis, where there are several groups)."""

    whole: DeviceMesh
    sizes: dict[Axis, int]
    batch: DeviceMesh
    shards: DeviceMesh
    expert_shards: DeviceMesh

    @classmethod
    def of(cls, config: ParallelConfig, device: torch.device) -> Mesh:
        """Arranges the running processes. UsageError where they do not fit."""
        sizes = config.sizes(dist.get_world_size())
        whole = init_device_mesh(device.type, tuple(sizes[axis] for axis in AXES), mesh_dim_names=AXES)
        # torchtitan flattens mesh axes in the same way; there is no public name for it.
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
        return self.sizes["shard"] > 1 or self.sizes["expert"] > 1


class DistributedRanks(Ranks):
    """`Ranks` for one process of a mesh. summed: ids of parameters whose gradients are summed along "tensor". computes:
    the compute dtype."""

    def __init__(self, mesh: Mesh, summed: frozenset[int], computes: torch.dtype) -> None:
        self.mesh, self._summed, self._computes = mesh, summed, computes
        self.world, self.rank = dist.get_world_size(), dist.get_rank()
        self.main = self.rank == 0
        self._batch = mesh.batch.get_group()
        self.shard = mesh.batch.get_local_rank(), mesh.batch.size()

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

    def device_sum(self, local: Tensor) -> Tensor:
        reduced = local.detach().clone()
        dist.all_reduce(reduced, group=self._batch)
        return reduced

    def device_max(self, local: Tensor) -> Tensor:
        reduced = local.detach().clone()
        dist.all_reduce(reduced, dist.ReduceOp.MAX)
        return reduced

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        return tuple(map(bool, self.device_max(torch.tensor(flags, dtype=torch.int32)).tolist()))

    def maximum(self, local: int) -> int:
        return int(self.device_max(torch.tensor([local]))[0])

    def gather_rows(self, own_ND: Tensor) -> tuple[Tensor, int]:
        counts: list[int] = list(self.gather(len(own_ND)))
        all_rows: Any = _GatherRows.apply(own_ND, counts, self.shard[0], self._batch)
        return all_rows, sum(counts[: self.shard[0]])

    def barrier(self) -> None:
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

    def sum_gradients(self, parameters: Mapping[str, nn.Parameter], grads: Mapping[str, Tensor]) -> None:
        """Sums gradients over ranks. Every rank has a gradient of the same parameters, since idle ranks run a pass
        too."""
        tensor_group = self.mesh.whole["tensor"].get_group()
        _all_reduce_sum([grad for name, grad in grads.items() if id(parameters[name]) in self._summed], tensor_group)
        if not self.mesh.cuts_parameters:  # else FSDP has reduced them in the backward pass
            _all_reduce_sum(list(grads.values()), self._batch)

    def norm(self, parameters: Mapping[str, nn.Parameter], grads: Mapping[str, Tensor]) -> Tensor:
        squares: dict[tuple[str, ...], list[Tensor]] = {}
        groups: dict[str, dist.ProcessGroup] = {}
        for name, grad in grads.items():
            parameter, over = parameters[name], list[str]()
            if isinstance(parameter, DTensor):
                for at, placement in enumerate(parameter.placements):
                    if not placement.is_replicate():  # a doubly sharded DTensor does not report its inner shard
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
        if not isinstance(parameter, DTensor) or _has_whole_matrices(parameter):
            return local
        whole = self.placed(parameter, local)
        assert isinstance(whole, DTensor)
        return whole.full_tensor()

    def part(self, parameter: Tensor, matrices: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor) or _has_whole_matrices(parameter):
            return matrices
        return _slice(parameter, matrices)

    def placed(self, parameter: Tensor, local: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor):
            return local
        return placed_like(local, parameter)

    def local_slice(self, parameter: Tensor, stored: Tensor) -> Tensor:
        if isinstance(stored, DTensor):
            return stored.to_local()
        return _slice(parameter, stored) if isinstance(parameter, DTensor) else stored


class _GatherRows(torch.autograd.Function):
    """Concatenates rows of all ranks, which may have different numbers of them; gradients return to the rows' ranks."""

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


def _has_whole_matrices(parameter: DTensor) -> bool:
    """Whether this rank's part consists of whole matrices (some of the experts)."""
    whole = (placement.is_replicate() or placement.is_shard(0) for placement in parameter.placements)
    return parameter.dim() > 2 and all(whole)


def _slice(parameter: DTensor, whole: Tensor) -> Tensor:
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    for dim, (size, start) in enumerate(zip(shape, offset, strict=True)):
        whole = whole.narrow(dim, min(start, whole.shape[dim]), size)
    return whole


def _all_reduce_sum(grads: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Sums gradients over a group in place, one collective per dtype."""
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
