"""Activation checkpointing: what a forward pass saves for the backward pass, as a setting (`Recompute`) of the caller.

Under "selective" the outputs of norms and activations are not saved beside their inputs: they are recomputed when the
product that read them needs its gradient (selective activation recomputation, https://arxiv.org/abs/2205.05198), bit by
bit the same, by the same operations. Under "full" a stack saves only the inputs of its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from bedplate.models.specs.recompute import Recompute

_setting: ContextVar[Recompute] = ContextVar("recompute", default="none")


@contextmanager
def recomputing(setting: Recompute) -> Generator[None]:
    """Applies the setting to forward passes while it is open; their backward passes must run inside as well."""
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
    """While it is open under "selective", operations that would save `output` for the backward pass save `inputs`, from
    which `function` recomputes it; `function` must be deterministic and read nothing else that changes."""
    if _setting.get() != "selective" or not torch.is_grad_enabled() or not output.numel():
        return nullcontext()
    if any(output.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for tensor in inputs):
        return nullcontext()  # the function returned its input
    recomputed = _RecomputedTensor(output.untyped_storage().data_ptr(), function, inputs)
    return saved_tensors_hooks(recomputed.pack, recomputed.unpack)


@dataclass(frozen=True)
class _View:
    """The view of the recomputed tensor that an operation saved."""

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
