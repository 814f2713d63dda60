"""`Ranks`: the training loop's interface to the processes of a run, with reductions over ranks and this rank's part of
each parameter.

`Ranks` is the implementation for a single process; `training.parallel.apply` has the one for several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Ranks:
    """A run of one process. For several, methods that communicate are collectives: each rank must call the same ones in
    the same order."""

    main: bool = True
    """Whether this rank writes the files of the run."""
    world: int = 1
    rank: int = 0
    shard: tuple[int, int] = (0, 1)
    """This rank's share of each step's data, (index, count), as sources take it."""

    def sums(self, local_sums: Mapping[str, float]) -> Mapping[str, float]:
        """Sums over ranks with different data, on the host."""
        return local_sums

    def device_sum(self, local: Tensor) -> Tensor:
        """The sum over ranks with different data of a tensor on the device, without reading it."""
        return local

    def device_max(self, local: Tensor) -> Tensor:
        """The maximum over all ranks of a tensor on the device, without reading it."""
        return local

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is true on any rank."""
        return flags

    def maximum(self, local: int) -> int:
        """The maximum over all ranks, on the host."""
        return local

    def gather(self, local: Any) -> Sequence[Any]:
        """The values of all ranks with different data."""
        return [local]

    def gather_rows(self, own_ND: Tensor) -> tuple[Tensor, int]:
        """The rows of all ranks with different data, and the index of this rank's first row. Gradients reach the ranks
        whose rows they are."""
        return own_ND, 0

    def barrier(self) -> None:
        """Waits for all ranks."""

    # --- parameters

    def splits(self, parameter: Tensor) -> bool:
        """Whether this rank holds only a part of the parameter."""
        return False

    def computes_in(self, parameter: Tensor) -> torch.dtype:
        """The dtype of products with the parameter."""
        return parameter.dtype

    def local_part(self, parameter: Tensor) -> Tensor:
        """This rank's part of a parameter: shares its memory, records no gradients."""
        return parameter.detach()

    def own_gradient(self, parameter: Tensor) -> Tensor | None:
        """Takes this rank's part of the gradient; the parameter has none afterwards."""
        grad, parameter.grad = parameter.grad, None
        return grad

    def sum_gradients(self, parameters: Mapping[str, nn.Parameter], grads: Mapping[str, Tensor]) -> None:
        """Sums each gradient over ranks, in place."""

    def norm(self, parameters: Mapping[str, nn.Parameter], grads: Mapping[str, Tensor]) -> Tensor:
        """Norm of the whole gradient, from each rank's part: a scalar on the device."""
        return nn.utils.get_total_norm(list(grads.values()))

    def matrices(self, parameter: Tensor, local: Tensor) -> Tensor:
        """Gathers whole matrices [..., O, I] from `local`, a part with the parameter's placement."""
        return local

    def part(self, parameter: Tensor, matrices: Tensor) -> Tensor:
        """This rank's part of the result of `matrices`."""
        return matrices

    def placed(self, parameter: Tensor, local: Tensor) -> Tensor:
        """This rank's part with its placement, in the form that a state store saves."""
        return local

    @torch.no_grad()
    def local_slice(self, parameter: Tensor, stored: Tensor) -> Tensor:
        """The inverse of `placed`; also takes this rank's part of a whole tensor."""
        return stored


ALONE = Ranks()
