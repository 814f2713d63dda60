"""A sum of losses made piece by piece, each piece's gradients together with it.

Logits of many positions are the largest tensor of a step: here those of one piece exist at a time, and are made once.
(Checkpointing makes them a second time for the gradient. Liger's fused loss, https://arxiv.org/abs/2410.10989, section
3.2, does the same as this inside one kernel.)

Shapes: N positions, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bedplate.core.errors import UsageError

Loss = Callable[[Tensor, Tensor], Tensor]
"""States [n, D] and targets [n] of a piece → the sum of its losses, a scalar."""


def summed_losses(loss: Loss, states_ND: Tensor, targets_N: Tensor, rows: int) -> Tensor:
    """Σ of `loss` over pieces of so many positions, a scalar. Gradients reach the states, and every parameter that the
    loss reads; they can be asked for once, and have none of their own (`taken`)."""
    if not torch.is_grad_enabled():
        pieces = zip(states_ND.split(rows), targets_N.split(rows), strict=True)
        return torch.stack([loss(states, targets) for states, targets in pieces]).sum()
    # What the loss reads is seen in the graph of its first position.
    read = _leaves(loss(states_ND[:1].detach(), targets_N[:1]))
    total: Any = _Pieces.apply(loss, targets_N, rows, read, states_ND, *read)
    return total


def _leaves(loss: Tensor) -> tuple[Tensor, ...]:
    """The parameters that it was made of."""
    leaves: dict[int, Tensor] = {}
    visited: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):  # how autograd shows a leaf
            leaves[id(node.variable)] = node.variable
        waiting += [following for following, _ in node.next_functions]
    return tuple(leaves.values())


def pop_gradients(ctx: Any) -> Any:
    """What a forward pass has left in `ctx.gradients` for its backward pass, which changes it and so has it once.

    UsageError for a second backward pass, and for one whose gradients are to be differentiated themselves.
    """
    if torch.is_grad_enabled():
        raise UsageError(
            "this loss has no gradients of its gradients: leave create_graph out, or compute the loss with "
            "torch.nn.functional.cross_entropy"
        )
    gradients, ctx.gradients = ctx.gradients, None
    if gradients is None:
        raise UsageError(
            "the gradients of this loss were computed already, and what they are made of is gone, with retain_graph as "
            "well: compute the loss again for another backward pass"
        )
    return gradients


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, loss: Loss, targets_N: Tensor, rows: int, read: tuple[Tensor, ...], states_ND: Tensor, *_: Tensor
    ) -> Tensor:
        to_states: list[Tensor] = []
        to_read: list[Tensor] = []
        losses: list[Tensor] = []
        states_need_grad = states_ND.requires_grad
        with torch.enable_grad():
            for states, targets in zip(states_ND.split(rows), targets_N.split(rows), strict=True):
                piece_states = states.detach().requires_grad_(states_need_grad)
                lost = loss(piece_states, targets)
                losses.append(lost.detach())
                inputs = [piece_states, *read] if states_need_grad else list(read)
                gradients = list(torch.autograd.grad(lost, inputs)) if inputs else []
                if states_need_grad:
                    to_states.append(gradients.pop(0))
                to_read = [a.add_(b) for a, b in zip(to_read, gradients, strict=True)] if to_read else gradients
        ctx.gradients = torch.cat(to_states) if states_need_grad else None, to_read
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        to_states, to_read = pop_gradients(ctx)
        scaled = [
            None if gradient is None else gradient.mul_(grad.to(gradient.dtype)) for gradient in (to_states, *to_read)
        ]
        return None, None, None, None, *scaled
