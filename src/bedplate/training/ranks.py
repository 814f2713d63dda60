"""The processes of a run as the loop sees them: sums over all ranks, and this rank's part of each parameter.

A single process is its own sum and its own part; `training.parallel` implements the same for several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Ranks:
    """One process. Those for several say in which order they are asked: each rank must ask the same things."""

    main: bool = True
    """Whether this rank writes what is written once."""
    world: int = 1
    rank: int = 0
    shard: tuple[int, int] = (0, 1)
    """Which share of each step's data is this rank's, as sources take it."""

    def sums(self, local_sums: Mapping[str, float]) -> Mapping[str, float]:
        """What ranks with different data counted, added up: known to the host."""
        return local_sums

    def total(self, local: Tensor) -> Tensor:
        """The same of numbers on the device, which are not read."""
        return local

    def worst(self, local: Tensor) -> Tensor:
        """The largest of every rank's, on the device."""
        return local

    def agreed(self, *flags: bool) -> tuple[bool, ...]:
        """Whether any rank answers yes, for each question."""
        return flags

    def maximum(self, local: int) -> int:
        """The largest of every rank's."""
        return local

    def gather(self, local: Any) -> Sequence[Any]:
        """What each rank with different data has to say, as JSON values."""
        return [local]

    def joined(self, own_ND: Tensor) -> tuple[Tensor, int]:
        """The rows of all ranks with different data, and where this one's begin among them. Gradients reach the ranks
        whose rows they are."""
        return own_ND, 0

    def together(self) -> None:
        """Waits for the others."""

    # --- parameters

    def splits(self, parameter: Tensor) -> bool:
        """Whether only a part of it is held here."""
        return False

    def computes_in(self, parameter: Tensor) -> torch.dtype:
        """The dtype of the products with it."""
        return parameter.dtype

    def local_part(self, parameter: Tensor) -> Tensor:
        """What is held here of a parameter: shares its memory, records no gradients."""
        return parameter.detach()

    def own_gradient(self, parameter: Tensor) -> Tensor | None:
        """What is held here of its gradient, which is no longer the parameter's then."""
        grad, parameter.grad = parameter.grad, None
        return grad

    def add_up(self, parameters: Mapping[str, nn.Parameter], grads: Mapping[str, Tensor]) -> None:
        """Adds to each gradient what other ranks have of it."""

    def norm(self, parameters: Mapping[str, nn.Parameter], grads: Mapping[str, Tensor]) -> Tensor:
        """Norm of the whole gradient, from this rank's part of it: a scalar that is not read."""
        return nn.utils.get_total_norm(list(grads.values()))

    def matrices(self, parameter: Tensor, local: Tensor) -> Tensor:
        """Whole matrices [..., O, I], where `local` is held here of what lies as the parameter does."""
        return local

    def part(self, parameter: Tensor, matrices: Tensor) -> Tensor:
        """What is held here of what `matrices` gave."""
        return matrices

    def placed(self, parameter: Tensor, local: Tensor) -> Tensor:
        """What is held here, as a state's store takes it: with where it belongs."""
        return local

    @torch.no_grad()
    def local_slice(self, parameter: Tensor, stored: Tensor) -> Tensor:
        """The inverse of `placed`, or what is to be held here of a whole tensor."""
        return stored


ALONE = Ranks()
