"""The dtype, weights and kernel with which a base runs for a skin: as the skin was judged, where nothing else is
requested."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bedplate.core.errors import SkinError
from bedplate.inference.execution.plan import QUANTISED, Kernel, Weights
from bedplate.inference.native.packed_weights import unsupported
from bedplate.models.checkpoints.base import Base
from bedplate.models.precision import DTYPES, dtype_name

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


def dtype_of(weights: str, beneath: str | None = None) -> str:
    """The dtype that a base is loaded as for weights of this name: quantised ones are made from bfloat16, where it is
    not said what lies beneath them."""
    if weights in QUANTISED:
        return beneath or "bfloat16"
    return weights if weights in DTYPES else "auto"


def evaluated_now(engine: Engine) -> EvaluatedWith:
    """The weights and the kernel that this engine answers with."""
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
        weights_match = judged is not None and judged.weights == weights
        dtype = (
            "auto"
            if weights is None
            else dtype_of(weights, judged.dtype if judged is not None and weights_match else None)
        )
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
