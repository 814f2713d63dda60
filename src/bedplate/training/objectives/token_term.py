"""Cross-entropy of tokens given hidden states, computed in pieces, with metrics from the same logits.

Logits of many positions are the largest tensor of a step. They are computed piece by piece, each piece's gradients
together with its loss, so that only one piece exists at a time and none is computed twice (checkpointing computes each
twice; Liger's fused loss, https://arxiv.org/abs/2410.10989, section 3.2, does the same inside one kernel).

Shapes: N positions, D features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.core.errors import UsageError
from bedplate.training.batch import NO_TARGET, PackedBatch
from bedplate.training.objectives.objective import AnyModel, Term

Loss = Callable[[Tensor, Tensor], Tensor]
"""States [n, D] and targets [n] of a piece → the sum of its losses, a scalar."""


def summed_losses(loss: Loss, states_ND: Tensor, targets_N: Tensor, rows: int) -> Tensor:
    """Σ of `loss` over pieces of `rows` positions, a scalar. Gradients reach the states and every parameter that the
    loss reads; they can be taken once, and cannot be differentiated again (`pop_gradients`)."""
    if not torch.is_grad_enabled():
        pieces = zip(states_ND.split(rows), targets_N.split(rows), strict=True)
        return torch.stack([loss(states, targets) for states, targets in pieces]).sum()
    # The graph of the first position shows which parameters the loss reads.
    leaves = _leaves(loss(states_ND[:1].detach(), targets_N[:1]))
    total: Any = _Pieces.apply(loss, targets_N, rows, leaves, states_ND, *leaves)
    return total


def _leaves(loss: Tensor) -> tuple[Tensor, ...]:
    """The leaf tensors on which a loss depends."""
    leaves: dict[int, Tensor] = {}
    visited: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):  # the autograd node of a leaf
            leaves[id(node.variable)] = node.variable
        waiting += [following for following, _ in node.next_functions]
    return tuple(leaves.values())


def pop_gradients(ctx: Any) -> Any:
    """The gradients that a forward pass stored in `ctx.gradients`; the backward pass modifies them in place, so they
    can be taken only once.

    UsageError for a second backward pass, and for gradients that are to be differentiated themselves.
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
        ctx: Any, loss: Loss, targets_N: Tensor, rows: int, leaves: tuple[Tensor, ...], states_ND: Tensor, *_: Tensor
    ) -> Tensor:
        to_states: list[Tensor] = []
        to_leaves: list[Tensor] = []
        losses: list[Tensor] = []
        states_need_grad = states_ND.requires_grad
        with torch.enable_grad():
            for states, targets in zip(states_ND.split(rows), targets_N.split(rows), strict=True):
                piece_states = states.detach().requires_grad_(states_need_grad)
                piece_loss = loss(piece_states, targets)
                losses.append(piece_loss.detach())
                inputs = [piece_states, *leaves] if states_need_grad else list(leaves)
                gradients = list(torch.autograd.grad(piece_loss, inputs)) if inputs else []
                if states_need_grad:
                    to_states.append(gradients.pop(0))
                to_leaves = [a.add_(b) for a, b in zip(to_leaves, gradients, strict=True)] if to_leaves else gradients
        ctx.gradients = torch.cat(to_states) if states_need_grad else None, to_leaves
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        to_states, to_leaves = pop_gradients(ctx)
        scaled = [None if g is None else g.mul_(grad.to(g.dtype)) for g in (to_states, *to_leaves)]
        return None, None, None, None, *scaled


HEAD_ROWS = 512
"""Positions whose logits exist at a time: 512 × 49,152 in float32 are 100 MB, 8,192 would be 1.6 GB."""
PIECE = 1 << 19
"""Logits whose loss is computed at a time on a CPU: 2 MB in float32, of which a few fit the last-level cache."""


def token_losses(model: AnyModel, hidden_ND: Tensor, targets_N: Tensor, rows: int = HEAD_ROWS) -> Tensor:
    """Summed cross-entropy (a scalar, float32 or wider) of `targets_N` given the last hidden states; NO_TARGET adds
    nothing.

    With more than `rows` positions, logits are computed piece by piece. Gradients are computed once: UsageError for a
    second backward pass, or one through them.
    """
    return _summed(_loss(model, 0.0, False, []), hidden_ND, targets_N, rows)


def _summed(loss: Loss, hidden_ND: Tensor, targets_N: Tensor, rows: int) -> Tensor:
    return loss(hidden_ND, targets_N) if len(targets_N) <= rows else summed_losses(loss, hidden_ND, targets_N, rows)


def _loss(model: AnyModel, z: float, hits: bool, piece_metrics: list[Tensor]) -> Loss:
    """The loss of a piece. Appends to `piece_metrics`, [3]: cross-entropy alone, the squared log-sum-exp (only with
    `z`), and the number of targets that are the likeliest token (only with `hits`)."""

    def loss(states_ND: Tensor, targets_N: Tensor) -> Tensor:
        logits_NV = model.head(states_ND)
        if logits_NV.is_cpu and logits_NV.requires_grad and type(logits_NV) is Tensor and torch.is_grad_enabled():
            total, metrics = _CrossEntropy.apply(logits_NV, targets_N, z, hits)  # type: ignore[misc]
        else:
            total, metrics = _plain(logits_NV, targets_N, z, hits)
        piece_metrics.append(metrics)
        return total

    return loss


def _plain(logits_NV: Tensor, targets_N: Tensor, z: float, hits: bool) -> tuple[Tensor, Tensor]:
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    if not z and not hits:
        total = F.cross_entropy(logits_NV, targets_N, reduction="sum")
        return total, total.detach().expand(3)
    logs_N = logits_NV.logsumexp(-1)
    plain = (logs_N - logits_NV.gather(1, targets_N[:, None]).squeeze(1)).sum()
    squared = logs_N.square().sum()
    correct = (logits_NV.detach().argmax(-1) == targets_N).sum() if hits else plain.detach()
    metrics = torch.stack((plain.detach(), squared.detach(), correct.to(plain.dtype)))
    return plain + z * squared if z else plain, metrics


def _row_pieces(x: Tensor) -> Iterator[slice]:
    """Rows of the first dimension, in pieces of about `PIECE` values."""
    rows = max(1, PIECE * len(x) // max(1, x.numel()))
    for start in range(0, len(x), rows):
        yield slice(start, start + rows)


class _CrossEntropy(torch.autograd.Function):
    """The loss in float32 or wider, and with it its gradient: probabilities, less 1 at the targets.

    One exponential per logit, of rows that stay in cache; autograd computes two, and reads and writes several tensors
    as large as the logits, which on a CPU takes as long as a matrix product. Also returns the metrics that `_loss`
    stores, without gradients."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits_NV: Tensor, targets_N: Tensor, z: float, hits: bool
    ) -> tuple[Tensor, Tensor]:
        to_logits = torch.empty_like(logits_NV)
        metrics = logits_NV.new_zeros(3, dtype=torch.promote_types(logits_NV.dtype, torch.float32))
        plain, squared, correct = metrics.unbind()
        for at in _row_pieces(logits_NV):
            logits, target = logits_NV[at].to(metrics.dtype), targets_N[at, None]
            has_target = target != NO_TARGET
            target = target.where(has_target, 0)
            top = logits.amax(-1, keepdim=True)
            if hits:
                correct += ((logits.argmax(-1, keepdim=True) == target) & has_target).sum()
            below = logits - top
            target_logits = below.gather(1, target)
            shares = below.exp_()
            divisor = shares.sum(-1, keepdim=True)
            logs = divisor.log()
            plain += (logs - target_logits).where(has_target, 0.0).sum()
            if z:
                logs += top
                squared += logs.square().where(has_target, 0.0).sum()
                divisor /= 1 + 2 * z * logs
            shares.div_(divisor.masked_fill(~has_target, torch.inf))  # nothing where there is no target
            to_logits[at] = shares.scatter_add_(1, target, -has_target.to(shares.dtype))
        total = plain + z * squared
        ctx.mark_non_differentiable(metrics)
        ctx.gradients = to_logits
        return total, metrics

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return pop_gradients(ctx).mul_(grad), None, None, None


def token_term(
    model: AnyModel, hidden_ND: Tensor, targets_N: Tensor, *, z: float = 0.0, hits: bool = False, rows: int = HEAD_ROWS
) -> Term:
    """Cross-entropy term; with `z`, plus the z-loss of that weight (PaLM, https://arxiv.org/abs/2204.02311, section 5).

    Metrics: with `z`, `cross_entropy` alone and `log_z_squared`; with `hits`, the share of targets that are the
    likeliest token (`accuracy`).
    """
    weight = float(len(targets_N))
    if not z and not hits:
        return Term(token_losses(model, hidden_ND, targets_N, rows), weight)
    piece_metrics: list[Tensor] = []
    total = _summed(_loss(model, z, hits, piece_metrics), hidden_ND, targets_N, rows)
    if len(piece_metrics) > 1 and torch.is_grad_enabled():
        del piece_metrics[0]  # on the first position alone, to find the parameters that the loss reads
    plain, squared, correct = torch.stack(piece_metrics).sum(0).unbind()
    metrics = {"cross_entropy": plain, "log_z_squared": squared} if z else {}
    return Term(total, weight, metrics | ({"accuracy": correct} if hits else {}))


def targets_term(
    model: AnyModel, hidden_BTD: Tensor, batch: PackedBatch, *, z: float = 0.0, hits: bool = False
) -> Term:
    """`token_term` of a batch's targets, given the states of its tokens."""
    hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1]).index_select(0, batch.learned)
    return token_term(model, hidden_ND, batch.targets.reshape(-1).index_select(0, batch.learned), z=z, hits=hits)
