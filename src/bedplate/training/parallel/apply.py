"""A model given out to the ranks that share it, by the plan that its spec decides. Its own code knows nothing of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from bedplate.core.errors import UsageError
from bedplate.models.layers.block import Block
from bedplate.models.layers.experts import FeedForwards
from bedplate.models.model import Model
from bedplate.models.precision import DTYPES
from bedplate.models.specs.split import Cut, cuts_of
from bedplate.training.config import DtypeChoice
from bedplate.training.parallel.layout import ParallelConfig
from bedplate.training.parallel.mesh import Mesh
from bedplate.training.parallel.styles import ExpertsStyle, LinearsStyle
from bedplate.training.parallel.team import Team
from bedplate.training.ranks import ALONE, Ranks


def parallelised(model: Model, config: ParallelConfig, dtype: DtypeChoice = "auto") -> Ranks:
    """The ranks that train this model together, to whom it is given out in place; ALONE for a single process.

    Every rank must hold the same model (the same seed, or the same checkpoint). dtype: what a sharded model computes
    in; parameters and what ranks add up stay as they are. Draw each rank's batches with `shard=ranks.shard`, and give
    `ranks` to `train`. UsageError where the processes do not fit, UnsupportedModelError, naming the field, for what
    cannot be shared.
    """
    if not dist.is_initialized():
        config.sizes(1)
        return ALONE
    device = next(model.parameters()).device
    mesh = Mesh.of(config, device)
    model_dtype = next(model.parameters()).dtype
    computes = model_dtype if dtype == "auto" else DTYPES[dtype]
    if computes != model_dtype and not mesh.cuts_parameters:
        raise UsageError(f"without sharding a model computes as it is held: hold it in {dtype}, or let dtype be auto")
    cuts = _cut(model, mesh)
    if mesh.cuts_parameters:
        _shard(model, mesh, computes)
    summed = [model.get_submodule(path) for path, cut in cuts.items() if cut == "summed"]
    team = Team(mesh, frozenset(id(p) for module in summed for p in module.parameters()), computes)
    team.check_same(model)
    return team


def _cut(model: Model, mesh: Mesh) -> Mapping[str, Cut]:
    """Shares products and experts; what became of which module."""
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
    """FSDP2 block by block: gathered when it runs, in what it computes in; gradients are sums, in what is held."""
    model_dtype = next(model.parameters()).dtype
    # Inputs keep their dtype: token numbers, positions, and rotations that are wider on purpose.
    policy = (
        MixedPrecisionPolicy(computes, model_dtype, cast_forward_inputs=False)
        if computes != model_dtype
        else MixedPrecisionPolicy()
    )
    for block in [module for module in model.modules() if isinstance(module, Block)]:
        if mesh.sizes["expert"] > 1:
            for module in [submodule for submodule in block.modules() if isinstance(submodule, FeedForwards)]:
                fully_shard(module, mesh=mesh.expert_shards, mp_policy=policy)
        fully_shard(block, mesh=mesh.shards, mp_policy=policy)
    # What is outside of the blocks is read again for the loss, after the forward pass.
    fully_shard(model, mesh=mesh.shards, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def whole_state(model: Model) -> Iterator[tuple[str, Tensor]]:
    """What the model's `state_dict` is on one process, tensor by tensor on the CPU: to export it. Every rank must go
    through all of it, whichever of them writes."""
    for name, tensor in model.state_dict().items():
        detached = tensor.detach()
        yield name, (detached.full_tensor() if isinstance(detached, DTensor) else detached).cpu()
