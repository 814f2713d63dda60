"""Operations of our own that torch's dispatcher knows: one call each, whatever is done inside.

A decode step of a large model on a GPU is bound by how many operations the host can start. So what stands between two
products is one operation: on CUDA devices with Triton one kernel, elsewhere the plain functions that it is tested
against. Nothing here is recorded for gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("bedplate", "FRAGMENT")


class Refused(Exception):
    """A kernel cannot do what it was asked: the plain function does."""


@cache
def has_triton() -> bool:
    """Whether kernels can be compiled for a CUDA device: torch's builds for these bring Triton along."""
    return find_spec("triton") is not None


def operation(schema: str, plain: Callable[..., Any], kernel: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """The operation of this schema. plain: what it does. kernel: imports and returns a function of the same arguments
    that does it on a CUDA device as one kernel, or raises `Refused` before it has done anything."""
    name = schema.split("(", 1)[0]

    def on_cuda(*args: Any) -> Any:
        if has_triton():
            try:
                return kernel()(*args)
            except Refused:
                pass
        return plain(*args)

    _LIBRARY.define(schema)
    _LIBRARY.impl(name, plain, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, on_cuda, "CUDA")
    dispatched = getattr(torch.ops.bedplate, name).default

    def run(first: Tensor, *arguments: Any) -> Any:
        # A kernel in Python costs the dispatcher some microseconds, which on a CPU buy nothing.
        return plain(first, *arguments) if first.is_cpu else dispatched(first, *arguments)

    return run
