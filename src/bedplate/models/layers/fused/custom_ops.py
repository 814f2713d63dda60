"""Registers fused operations with torch's dispatcher: a Triton kernel on CUDA devices, a plain function elsewhere.

A decode step of a large model on a GPU is bound by the number of operations that the host can launch, so the steps
between two matrix products are fused into one. Each kernel is tested against its plain function. No gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("bedplate", "FRAGMENT")
_KERNELS = "bedplate.models.layers.fused.triton_kernels"


class Refused(Exception):
    """Raised by a kernel that does not support its arguments; the plain function runs instead."""


@cache
def has_triton() -> bool:
    """Whether kernels can be compiled for a CUDA device: torch's builds for CUDA bring Triton along."""
    return find_spec("triton") is not None


def operation(schema: str, plain: Callable[..., Any], kernels: str = _KERNELS) -> Callable[..., Any]:
    """Registers an operation under this schema and returns it.

    plain: the reference function. kernels: the module, imported on first use, whose function of the operation's name
    runs as one kernel on a CUDA device, or raises `Refused` before it has written anything.
    """
    name = schema.split("(", 1)[0]

    def on_cuda(*args: Any) -> Any:
        if has_triton():
            try:
                return getattr(import_module(kernels), name)(*args)
            except Refused:
                pass
        return plain(*args)

    _LIBRARY.define(schema)
    _LIBRARY.impl(name, plain, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, on_cuda, "CUDA")
    dispatched = getattr(torch.ops.bedplate, name).default

    def run(first: Tensor, *arguments: Any) -> Any:
        # Dispatch to a Python kernel costs some microseconds, for no gain on a CPU.
        return plain(first, *arguments) if first.is_cpu else dispatched(first, *arguments)

    return run
