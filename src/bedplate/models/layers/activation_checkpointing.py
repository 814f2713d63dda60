"""What a forward pass keeps for the backward pass, as a setting (`Recompute`) of whoever runs it.

Under "selective" the output of a norm and what an activation gives are not kept beside what they were made of: they are
made again when the product that took them wants its gradient (selective activation recomputation,
https://arxiv.org/abs/2205.05198). What is made again is the same bit by bit, since the same operations make it. Under
"full" a stack keeps the inputs of its blocks.
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
    """Forward passes keep so much while it is open, and backward passes belong inside as well."""
    token = _setting.set(setting)
    try:
        yield
    finally:
        _setting.reset(token)


def runs_again() -> bool:
    """Whether blocks are to run again for the backward pass."""
    return _setting.get() == "full" and torch.is_grad_enabled()


def made_again(output: Tensor, function: Callable[..., Tensor], *inputs: Tensor) -> AbstractContextManager[object]:
    """While it is open, and where the setting is "selective", what would keep `output` for the backward pass keeps
    `inputs` instead, from which `function` made it. It draws no random numbers and reads nothing else that changes."""
    if _setting.get() != "selective" or not torch.is_grad_enabled() or not output.numel():
        return nullcontext()
    if any(output.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for tensor in inputs):
        return nullcontext()  # nothing was made
    recomputed = _RecomputedTensor(output.untyped_storage().data_ptr(), function, inputs)
    return saved_tensors_hooks(recomputed.pack, recomputed.unpack)


@dataclass(frozen=True)
class _View:
    """The part of what is made again that an operation wants."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _RecomputedTensor:
    """One tensor, made when it is first wanted and dropped when all have had it."""

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
        # As it was made: some functions have another way where gradients are recorded.
        with torch.enable_grad():
            inputs = (tensor.detach().requires_grad_(required) for tensor, required in self._inputs)
            return self._function(*inputs).detach()
