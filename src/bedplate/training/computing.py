"""A run's models in the arithmetic that it computes in, and as they were afterwards.

A bfloat16 weight is a float32 number, so that widening changes no value; what a frozen weight held is kept aside and
put back, bit by bit. A weight that is trained goes back as its float32 master, rounded to the dtype that it was held
in.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bedplate.core.errors import TrainingError
from bedplate.core.memory import free_bytes
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.products import Products
from bedplate.models.model import Model
from bedplate.training.arithmetic import Arithmetic

ROOM = 1.1
"""Of the memory that the weights take, which must be free."""


def extra_bytes(models: Mapping[str, Model], arithmetic: Arithmetic) -> int:
    """Memory that the models' weights take in this arithmetic, beside what they take now."""
    return sum(p.numel() * arithmetic.torch_dtype.itemsize for p in _changed(models, arithmetic.torch_dtype))


def lacks_room(models: Mapping[str, Model], arithmetic: Arithmetic) -> str | None:
    """Why the models cannot be held in this arithmetic beside their own, or None."""
    needed, free = extra_bytes(models, arithmetic), free_bytes()
    device = next(iter(models.values())).embedding.weight.device
    if not needed or free is None or device.type != "cpu" or ROOM * needed <= free:
        return None
    return (
        f"the weights in {arithmetic.dtype} take {needed / 1e9:.2f} GB beside those that are held, and "
        f"{free / 1e9:.2f} GB of memory are free"
    )


@contextmanager
def computing(models: Mapping[str, Model], arithmetic: Arithmetic) -> Generator[dict[int, Tensor]]:
    """The models in this arithmetic while it is open; gives, by a parameter's id, what each that changed holds
    otherwise, and has again afterwards. Parameters stay the same objects.

    TrainingError where the memory does not suffice.
    """
    reason = lacks_room(models, arithmetic)
    if reason is not None:
        raise TrainingError(f"this run computes in {arithmetic.dtype}, but {reason}; free some, or use a smaller base")
    before: list[tuple[nn.Parameter, Tensor]] = []
    linears = [m for model in models.values() for m in model.modules() if isinstance(m, Linear)]
    products: list[Products] = [linear.products for linear in linears]
    try:
        for parameter in _changed(models, arithmetic.torch_dtype):
            before.append((parameter, parameter.data))
            parameter.data = parameter.data.to(arithmetic.torch_dtype)
        for linear in linears:
            linear.products = arithmetic.products
        yield {id(parameter): original for parameter, original in before}
    finally:
        for parameter, original in before:
            parameter.grad = None  # of the other dtype
            parameter.data = original
        for linear, own in zip(linears, products, strict=True):
            linear.products = own


def _changed(models: Mapping[str, Model], wanted: torch.dtype) -> list[nn.Parameter]:
    every = {id(p): p for model in models.values() for p in model.parameters()}
    return [p for p in every.values() if p.is_floating_point() and p.dtype != wanted]
