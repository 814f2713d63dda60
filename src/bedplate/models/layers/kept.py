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


def made_again(made: Tensor, function: Callable[..., Tensor], *given: Tensor) -> AbstractContextManager[object]:
    """While it is open, and where the setting is "selective", what would keep `made` for the backward pass keeps
    `given` instead, from which `function` made it. It draws no random numbers and reads nothing else that changes."""
    if _setting.get() != "selective" or not torch.is_grad_enabled() or not made.numel():
        return nullcontext()
    if any(made.untyped_storage().data_ptr() == one.untyped_storage().data_ptr() for one in given):
        return nullcontext()  # nothing was made
    again = _Again(made.untyped_storage().data_ptr(), function, given)
    return saved_tensors_hooks(again.pack, again.unpack)


@dataclass(frozen=True)
class _View:
    """The part of what is made again that an operation wants."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Again:
    """One tensor, made when it is first wanted and dropped when all have had it."""

    def __init__(self, place: int, function: Callable[..., Tensor], given: tuple[Tensor, ...]) -> None:
        self._place, self._function = place, function
        self._given = [(one.detach(), one.requires_grad) for one in given]
        self._waiting = 0
        self._made: Tensor | None = None

    def pack(self, x: Tensor) -> Tensor | _View:
        if x.untyped_storage().data_ptr() != self._place:
            return x
        self._waiting += 1
        return _View(x.size(), x.stride(), int(x.storage_offset()))

    def unpack(self, kept: Tensor | _View) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        made = self._make() if self._made is None else self._made
        self._waiting -= 1
        self._made = made if self._waiting > 0 else None
        return made.as_strided(kept.size, kept.stride, kept.offset)

    def _make(self) -> Tensor:
        # As it was made: some functions have another way where gradients are recorded.
        with torch.enable_grad():
            given = (one.detach().requires_grad_(required) for one, required in self._given)
            return self._function(*given).detach()
