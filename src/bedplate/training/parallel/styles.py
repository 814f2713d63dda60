"""What is done to a module so that ranks share it, as `parallelize_module` of torch takes it: the module's own code
goes on as before, on its part.

Shapes: N tokens, D features, E experts, k of them for a token, M sorted copies of tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from bedplate.core.errors import UsageError
from bedplate.models.layers.experts import ExpertLinear, FeedForwards, sort_by_expert
from bedplate.models.layers.grouped import Segments, grouped_product
from bedplate.models.layers.linear import Linear


class LinearsStyle(ParallelStyle):
    """A linear of which each rank has some outputs ("columns", the input being whole) or some inputs ("rows", the
    output being whole again)."""

    def __init__(self, rows: bool) -> None:
        self._rows = rows

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, Linear)
        _cut(module, "weight", device_mesh, Shard(1 if self._rows else 0))
        if module.bias is not None:
            _cut(module, "bias", device_mesh, Replicate() if self._rows else Shard(0))
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
    """Experts that ranks with tokens of their own share: copies of tokens travel to the rank that has their expert, and
    what it makes of them travels back."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, FeedForwards)
        for layer in (module.gate_up, module.down):
            _cut(layer, "weight", device_mesh, Shard(0))
            if layer.bias is not None:
                _cut(layer, "bias", device_mesh, Shard(0))
            layer.experts //= device_mesh.size()
            layer.forward = _Local(layer)
        module.forward = _Exchange(module.forward, module.gate_up.experts, device_mesh.get_group())
        return module


def _cut(module: nn.Module, name: str, mesh: DeviceMesh, placement: Placement) -> None:
    whole = getattr(module, name)
    part = distribute_tensor(whole.detach(), mesh, [placement], src_data_rank=None)
    module.register_parameter(name, nn.Parameter(part, whole.requires_grad))


class _Local:
    """An `ExpertLinear` with the experts that this rank has."""

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
    """`FeedForwards.forward` over the experts of all ranks; `here`: how many each has."""

    def __init__(self, forward: Any, local_count: int, group: dist.ProcessGroup) -> None:
        self._forward, self._local_count, self._group = forward, local_count, group

    def __call__(self, x_ND: Tensor, chosen_Nk: Tensor, weights_Nk: Tensor) -> Tensor:
        ranks = self._group.size()
        order = sort_by_expert(chosen_Nk, ranks * self._local_count)
        counts_RE = order.segments.counts_E.view(ranks, self._local_count)
        from_RE = torch.empty_like(counts_RE)
        dist.all_to_all_single(from_RE, counts_RE, group=self._group)
        # How much travels must be known to the host: the one wait of the layer.
        sent, received = torch.stack((counts_RE.sum(1), from_RE.sum(1))).tolist()
        there_MD = _travelled(x_ND.index_select(0, order.tokens_M), received, sent, self._group)
        numbers_E = torch.arange(self._local_count, device=x_ND.device).repeat(ranks)
        expert_M = numbers_E.repeat_interleave(from_RE.reshape(-1), output_size=len(there_MD))
        made_MD = self._forward(there_MD, expert_M[:, None], there_MD.new_ones(len(there_MD), 1))
        back_MD = _travelled(made_MD, sent, received, self._group)
        each_NkD = back_MD.index_select(0, order.inverse_M).unflatten(0, weights_Nk.shape)
        return torch.bmm(weights_Nk[:, None], each_NkD).squeeze(1)


def _travelled(x_MD: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup) -> Tensor:
    """Rows to the other ranks, so many to each, and so many of each from them."""
    received_rows: Any = _Travel.apply(x_MD, received, sent, group)
    return received_rows


class _Travel(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x_MD: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.received, ctx.sent, ctx.group = received, sent, group
        return _exchanged(x_MD, received, sent, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return _exchanged(grad, ctx.sent, ctx.received, ctx.group), None, None, None


def _exchanged(x_MD: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup) -> Tensor:
    received_rows = x_MD.new_empty(sum(received), x_MD.shape[1])
    dist.all_to_all_single(received_rows, x_MD.contiguous(), received, sent, group=group)
    return received_rows
