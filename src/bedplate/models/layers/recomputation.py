"""Trades compute for memory in the backward pass: a norm and a gate that save only their inputs, and activation
checkpointing.

Recorded by autograd, a norm in half precision saves three more copies of its input, and a gate its activation.
`rms_norm` and `gated` recompute both in the backward pass, which takes no longer.

Activation checkpointing is a setting (`Recompute`) of the caller. Under "selective", only the inputs of norms and
activations are saved: their outputs are recomputed when the product that reads them needs its gradient
(selective activation recomputation, https://arxiv.org/abs/2205.05198), bitwise identical, by the same operations. Under
"full", a stack saves only the inputs of its blocks.

Shapes: D features of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from bedplate.models.specs.split import Recompute


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / √(mean x² + eps) · weight, computed in float32 or wider; gradients to x and to the weight."""
    normed: Any = _RMSNorm.apply(x, weight_D, eps)
    return normed


def gated(gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """activation(gate) ⊙ up."""
    if not torch.is_grad_enabled() or not (gate.requires_grad or up.requires_grad):
        return activation(gate) * up
    product: Any = _Gated.apply(gate, up, activation)
    return product


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, scale)
        return (x * scale).to(x.dtype).mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        x, weight_D, scale = ctx.saved_tensors
        wide, D = scale.dtype, x.shape[-1]
        grad, weight = grad.to(wide), weight_D.to(wide)
        product = x * grad  # in `wide`, as are the sums made from it
        to_weight: Tensor | None = None
        if ctx.needs_input_grad[1]:
            to_weight = (product.reshape(-1, D).t() @ scale.reshape(-1)).to(weight_D.dtype)
        along = (product @ weight)[..., None] * scale.pow(3) / -D
        to_x = (grad * weight).mul_(scale).addcmul_(x.to(wide), along)
        return to_x.to(x.dtype), to_weight, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            leaf = gate.detach().requires_grad_()
            active = ctx.activation(leaf)
        to_gate = torch.autograd.grad(active, leaf, grad * up)[0] if ctx.needs_input_grad[0] else None
        return to_gate, grad * active.detach() if ctx.needs_input_grad[1] else None, None


# --- activation checkpointing

_setting: ContextVar[Recompute] = ContextVar("recompute", default="none")


@contextmanager
def recomputing(setting: Recompute) -> Generator[None]:
    """Applies the setting to forward passes in this context; their backward passes must run inside it as well."""
    token = _setting.set(setting)
    try:
        yield
    finally:
        _setting.reset(token)


def recomputes_blocks() -> bool:
    """Whether whole blocks are recomputed in the backward pass."""
    return _setting.get() == "full" and torch.is_grad_enabled()


def recompute_in_backward(
    output: Tensor, function: Callable[..., Tensor], *inputs: Tensor
) -> AbstractContextManager[object]:
    """A context in which, under "selective", operations save `inputs` for the backward pass instead of `output`, and
    `function` recomputes it from these; `function` must be deterministic and read no other changing state."""
    if _setting.get() != "selective" or not torch.is_grad_enabled() or not output.numel():
        return nullcontext()
    if any(output.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for tensor in inputs):
        return nullcontext()  # the function returned its input
    recomputed = _RecomputedTensor(output.untyped_storage().data_ptr(), function, inputs)
    return saved_tensors_hooks(recomputed.pack, recomputed.unpack)


@dataclass(frozen=True)
class _View:
    """The view of the recomputed tensor that an operation would have saved."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _RecomputedTensor:
    """One tensor, recomputed on first use and dropped after the last."""

    def __init__(self, place: int, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
        self._place, self._function = place, function
        self._inputs = [(tensor.detach(), tensor.requires_grad) for tensor in inputs]
        self._waiting = 0
        self._output: Tensor | None = None

    def pack(self, x: Tensor) -> Tensor | _View:
        if x.untyped_storage().data_ptr() != self._place:
            return x
        self._waiting += 1
        return _View(x.size(), x.stride(), int(x.storage_offset()))

    def unpack(self, packed: Tensor | _View) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        output = self._recompute() if self._output is None else self._output
        self._waiting -= 1
        self._output = output if self._waiting > 0 else None
        return output.as_strided(packed.size, packed.stride, packed.offset)

    def _recompute(self) -> Tensor:
        # With gradients enabled, as in the forward pass: some functions compute differently without.
        with torch.enable_grad():
            inputs = (tensor.detach().requires_grad_(required) for tensor, required in self._inputs)
            return self._function(*inputs).detach()
