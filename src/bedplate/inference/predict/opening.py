"""Opens a base under the execution plan that options name, or else the fastest that keeps what is stored; for a skin as
it was judged, where nothing else is requested.

The plan is chosen from the checkpoint's header, so that the base is read once, in the dtype that it then has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bedplate.core.errors import SkinError, UsageError
from bedplate.inference.execution.calibration import Use, plan_timings
from bedplate.inference.execution.choice import Choice, choose, left_in_file
from bedplate.inference.execution.plan import (
    QUANTISED,
    ExecutionPlan,
    Kernel,
    StoredFormat,
    Weights,
    matching_plans,
    read_stored,
)
from bedplate.inference.forward.compute_lock import ComputeLock
from bedplate.inference.native.packed_weights import unsupported
from bedplate.inference.predict.local import LocalModel
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.precision import DTYPES, dtype_name, resolve_device

if TYPE_CHECKING:  # a base alone has no need of them
    from bedplate.inference.engine.engine import Engine
    from bedplate.skins.skin import EvaluatedWith, Skin


KERNELS: dict[str, Kernel] = {"torch": "torch", "native": "native"}
"""Kernels by their names in `evaluated_with`."""


@dataclass(frozen=True)
class SkinExecution:
    """dtype: as the base is loaded; weights, kernel: as its engine is opened."""

    dtype: str
    weights: Weights
    kernel: Kernel


@dataclass(frozen=True)
class OpenOptions:
    """Options that narrow the execution plan; None and "auto" leave it open. quantised: whether a checkpoint's own
    integers may be chosen; who trains on a base, or reads its inner states, needs weights that are not. at_once: plans
    that were not timed here before are left to `Opened.time_plans`, so that no answer waits for it."""

    dtype: str | None = None
    weights: Weights | None = None
    kernel: Kernel | None = None
    use: Use = "generate"
    quantised: bool = True
    at_once: bool = False
    loaded: str | None = None
    """The dtype that the base has already: plans of others are no longer possible."""


@dataclass(frozen=True)
class Opened:
    """A loaded base, and how its engine is to be opened. untimed: plans to time for the next time it is opened."""

    base: Base
    load_format: SkinExecution
    untimed: tuple[ExecutionPlan, ...] = ()

    def model(self, compute: ComputeLock | None = None) -> LocalModel:
        return LocalModel(self.base, weights=self.load_format.weights, kernel=self.load_format.kernel, compute=compute)

    def time_plans(self, use: Use = "generate") -> None:
        """Times the plans that opening it at once has left untimed."""
        if self.untimed:
            plan_timings(self.base.spec, self.untimed, brief=use)


def chosen(source: str | Path, options: OpenOptions = OpenOptions(), device: str | torch.device = "auto") -> Choice:
    """The execution plan under which `open_base` would open a base, without reading its weights. Raises HubError,
    CheckpointError, UnsupportedModelError; UsageError where this machine or base cannot do what was asked."""
    return _chosen(read_stored(source), source, options, resolve_device(device))


def _chosen(stored: StoredFormat, source: str | Path, options: OpenOptions, device: torch.device) -> Choice:
    try:
        return choose(stored.spec, _plans(stored, options), device, options.use, at_once=options.at_once)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error


def open_base(source: str | Path, options: OpenOptions = OpenOptions(), device: str | torch.device = "auto") -> Opened:
    """Loads a base (catalogue name, directory, .gguf file, hf:owner/name) under the execution plan that the options
    name, or the chosen one. Raises what `chosen` and `load_base` raise."""
    stored = read_stored(source)
    plan, _, untimed = _chosen(stored, source, options, resolve_device(device))
    base = load_base(source, plan.dtype, device, left_in_file(plan), stored.checkpoint)
    return Opened(base, execution_of(plan), untimed)


def open_as(
    source: str | Path, load_format: SkinExecution, device: str | torch.device = "auto", use: Use = "generate"
) -> Opened:
    """Loads a base as `load_format` says; where that leaves its dtype open, under the fastest plan that fits it."""
    if load_format.dtype == "auto":
        return open_base(source, OpenOptions(weights=load_format.weights, kernel=load_format.kernel, use=use), device)
    return Opened(load_base(source, dtype=load_format.dtype, device=device), load_format)


def execution_of(plan: ExecutionPlan) -> SkinExecution:
    return SkinExecution(plan.dtype, QUANTISED.get(plan.weights, "auto"), plan.kernel)


def _plans(stored: StoredFormat, options: OpenOptions) -> tuple[ExecutionPlan, ...]:
    types, weights, kernel = stored.types, options.weights, options.kernel
    plans = matching_plans(types, dtype=options.dtype, weights=weights, kernel=kernel, quantised=options.quantised)
    if options.loaded is None:
        return plans
    fitting = tuple(plan for plan in plans if plan.dtype == options.loaded)
    return fitting or matching_plans(types, dtype=options.loaded, weights=weights, kernel=kernel)


def dtype_of(weights: str, beneath: str | None = None) -> str:
    """The dtype that a base is loaded as for weights of this name: quantised ones are made from bfloat16, where it is
    not said what lies beneath them."""
    if weights in QUANTISED:
        return beneath or "bfloat16"
    return weights if weights in DTYPES else "auto"


def evaluated_now(engine: Engine) -> EvaluatedWith:
    return evaluated_on(engine.weights, engine.kernel, dtype_name(engine.base.dtype))


def evaluated_on(weights: str, kernel: str, beneath: str) -> EvaluatedWith:
    """The same for weights of this name; `beneath` is the dtype of the base that they stand beside."""
    from bedplate.skins.skin import EvaluatedWith

    records_dtype = weights in QUANTISED and beneath != "bfloat16"
    return EvaluatedWith(weights=weights, kernel=kernel, dtype=beneath if records_dtype else None)


def held_as(
    judged: EvaluatedWith | None,
    *,
    dtype: str | None = None,
    weights: Weights | None = None,
    kernel: Kernel | None = None,
) -> SkinExecution:
    """The requested values (None: not requested), else as `judged`; "auto" where neither says."""
    if dtype is None and weights is None and judged is not None:
        dtype, weights = dtype_of(judged.weights, judged.dtype), QUANTISED.get(judged.weights)
    elif dtype is None:
        beneath = judged.dtype if judged is not None and judged.weights == weights else None
        dtype = "auto" if weights is None else dtype_of(weights, beneath)
    # For quantised weights that it was not judged with, the engine finds the kernel.
    if kernel is None and judged is not None and (weights not in QUANTISED or judged.weights in QUANTISED):
        kernel = KERNELS.get(judged.kernel)
    return SkinExecution(dtype, weights or "auto", kernel or "auto")


def check_here(
    skin: Skin, base: Base, load_format: SkinExecution, kernel: Kernel | None, allow_other_weights: bool
) -> SkinExecution:
    """`load_format` where this machine can run it. Where it lacks the judged kernel (and `kernel` requests none),
    SkinError, or with `allow_other_weights` what the machine has."""
    if kernel is not None or load_format.kernel != "native":
        return load_format
    reason = unsupported(base.spec, base.dtype, base.device)
    if reason is None:
        return load_format
    if allow_other_weights:
        return replace(load_format, weights="auto", kernel="auto")
    raise SkinError(
        f"skin {skin.name!r} was judged with the native kernel, which cannot run here: {reason}. Its measured quality "
        "may not hold with another; to run it all the same, give --allow-other-weights (allow_other_weights=True)"
    )
