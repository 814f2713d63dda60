"""A run's models in the arithmetic that it computes in, and as they were afterwards.

A bfloat16 weight is a float32 number, so that widening changes no value; what a frozen weight held is kept aside and
put back, bit by bit. A weight that is trained goes back as its float32 master, rounded to the dtype that it was held
in. A weight belongs to one run at a time: what a second one kept aside would be the first one's.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bedplate.core.errors import TrainingError, UsageError
from bedplate.core.memory import free_bytes
from bedplate.models.layers.block import Block
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.products import Products
from bedplate.models.packed.block_attention import BlockAttention
from bedplate.models.packed.cross_attention import EncoderStatesLayout
from bedplate.models.precision import dtype_name
from bedplate.training.config import TrainConfig
from bedplate.training.objectives import AnyModel, Models
from bedplate.training.optimizers import Optimization
from bedplate.training.precision_choice import Arithmetic, choose, native_arithmetic
from bedplate.training.ranks import Ranks

logger = logging.getLogger("bedplate.training")
ROOM = 1.1
"""Of the memory that the weights take, which must be free."""
_claimed_weights: set[int] = set()
"""Ids of the parameters that runs of this process compute with now."""
_taking = threading.Lock()


def policy_of(models: Models) -> AnyModel:
    """The model that is trained."""
    return models.get("policy", next(iter(models.values())))


def run_arithmetic(
    roles: Models,
    config: TrainConfig,
    store: object,
    saved: Mapping[str, Any] | None,
    trained: Mapping[str, nn.Parameter],
    ranks: Ranks,
) -> Arithmetic:
    """What the run computes in: a saved run's own, else what is asked for, or the fastest that memory allows; of models
    that were given out to ranks, what they were given out with."""
    policy = policy_of(roles)
    native = native_arithmetic(policy)
    if ranks.world > 1:
        native = Arithmetic(dtype_name(ranks.computes_in(next(iter(trained.values())))))
        before = native.dtype if saved is None else saved.get("arithmetic", native.to_json()).get("dtype")
        if before != native.dtype:
            raise TrainingError(
                f"{store}: this run computes in {before}, and the ranks were given models in {native.dtype}"
            )
        if config.dtype not in ("auto", native.dtype):
            raise UsageError(
                f"dtype is {config.dtype}, but the ranks were given models in {native.dtype}; give dtype to `parallelised`"
            )
        return native
    if saved is not None:
        try:
            # runs of earlier versions computed in what their models were held in
            return Arithmetic.of_json(saved.get("arithmetic", native.to_json()))
        except (KeyError, ValueError, TypeError) as error:
            raise TrainingError(
                f"{store}: the saved state names no arithmetic ({error}); delete it to start anew"
            ) from error
    if not of_one_dtype(roles):
        return native
    weights = {id(p) for model in roles.values() for p in model.parameters()}
    trained_part = "weights" if any(id(p) in weights for p in trained.values()) else "adapters"
    fastest = choose(policy, trained_part, config.dtype)
    reason = lacks_room(roles, fastest)
    if reason is None or config.dtype != "auto":
        return fastest
    logger.warning("training in %s is faster here, but %s; training in %s instead", fastest.dtype, reason, native.dtype)
    return native


def extra_bytes(models: Models, arithmetic: Arithmetic) -> int:
    """Memory that the models' weights take in this arithmetic, beside what they take now."""
    return sum(p.numel() * arithmetic.torch_dtype.itemsize for p in _changed(models, arithmetic.torch_dtype))


def lacks_room(models: Models, arithmetic: Arithmetic) -> str | None:
    """Why the models cannot be held in this arithmetic beside their own, or None."""
    needed, free = extra_bytes(models, arithmetic), free_bytes()
    device = next(next(iter(models.values())).parameters()).device
    if not needed or free is None or device.type != "cpu" or ROOM * needed <= free:
        return None
    return (
        f"the weights in {arithmetic.dtype} take {needed / 1e9:.2f} GB beside those that are held, and "
        f"{free / 1e9:.2f} GB of memory are free"
    )


@contextmanager
def computing(models: Models, arithmetic: Arithmetic) -> Generator[dict[int, Tensor]]:
    """The models in this arithmetic while it is open; gives, by a parameter's id, what each that changed holds
    otherwise, and has again afterwards. Parameters stay the same objects; models of several dtypes keep them.

    TrainingError where the memory does not suffice, or another run of this process computes with one of the weights.
    """
    with _taken_alone(models):
        yield from _computing(models, arithmetic)


@contextmanager
def _taken_alone(models: Models) -> Generator[None]:
    weight_ids = {id(p) for model in models.values() for p in model.parameters()}
    with _taking:
        if _claimed_weights & weight_ids:
            raise TrainingError(
                "another run of this process computes with these weights, and may change their dtype and "
                "values at any moment; wait until it has ended, or load the base a second time"
            )
        _claimed_weights.update(weight_ids)
    try:
        yield
    finally:
        with _taking:
            _claimed_weights.difference_update(weight_ids)


def _computing(models: Models, arithmetic: Arithmetic) -> Generator[dict[int, Tensor]]:
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
        for linear, product in zip(linears, products, strict=True):
            linear.products = product


def of_one_dtype(models: Models) -> bool:
    """Whether the dtype of the models may change for a run: where they differ among themselves, none does."""
    return len({p.dtype for model in models.values() for p in model.parameters()}) == 1


def _changed(models: Models, dtype: torch.dtype) -> list[nn.Parameter]:
    parameters_by_id = {id(p): p for model in models.values() for p in model.parameters()}
    return [p for p in parameters_by_id.values() if p.dtype != dtype] if of_one_dtype(models) else []


@contextmanager
def only_trained(models: Models, optimization: Optimization) -> Generator[None]:
    """Gradients on exactly the trained parameters, the policy in training mode; all as before afterwards."""
    parameters_by_id = {id(p): p for model in models.values() for p in model.parameters()}
    parameters_by_id |= {id(p): p for p in optimization.parameters.values()}
    before = [(p, p.requires_grad) for p in parameters_by_id.values()]
    modes = [(m, m.training) for model in models.values() for m in model.modules()]
    trained = {id(p) for p in optimization.parameters.values()}
    try:
        for p in parameters_by_id.values():
            p.requires_grad_(id(p) in trained)
        for role, model in models.items():
            model.train(role == "policy")
        yield
    finally:
        for p, required in before:
            p.requires_grad_(required)
            p.grad = None
        for module, mode in modes:
            module.training = mode


@contextmanager
def compiled(model: AnyModel, enabled: bool) -> Generator[None]:
    """Each block of the model runs compiled while it is open, where that is wanted; its attention over packed rows does
    not (on devices that have a kernel for it, that kernel runs)."""
    if not enabled:
        yield
        return
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    with warnings.catch_warnings():
        # torch's compiler warns of what it does itself: it asks states for gradients, and makes objects of functions.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
        warnings.filterwarnings("ignore", ".*torch.autograd.function.Function.*should not be instantiated")
        # Where documents stand is another thing in each batch, for which all of a block would be compiled anew.
        uncompiled = ((BlockAttention, "__call__"), (EncoderStatesLayout, "cross_attend"))
        calls = [getattr(owner, name) for owner, name in uncompiled]
        try:
            for (owner, name), call in zip(uncompiled, calls, strict=True):
                setattr(owner, name, torch.compiler.disable(call))
            for block in blocks:
                block.compile()
            yield
        finally:
            for (owner, name), call in zip(uncompiled, calls, strict=True):
                setattr(owner, name, call)
            for block in blocks:
                block._compiled_call_impl = None  # pyright: ignore[reportPrivateUsage]  # there is no public way back
