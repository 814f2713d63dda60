"""Execution plans of a base, and which of them keep what its checkpoint stores.

A plan is the dtype that the base is loaded in, the kernel that computes it (torch, or the compiled native one), and the
format of the weights that products read: the base's own dtype, or integers of 8 or 4 bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from bedplate.core.errors import CheckpointError, UsageError
from bedplate.inference.execution.names import Kernel, Weights
from bedplate.inference.native.quantize import accepts_blocks
from bedplate.models.checkpoints.checkpoint import Checkpoint, open_checkpoint
from bedplate.models.precision import DTYPES
from bedplate.models.specs import TextSpec

QUANTISED: dict[str, Literal["int8", "int4"]] = {"int8": "int8", "int4": "int4"}
NATIVE = ("bfloat16", "float32")
"""Dtypes of bases that the native kernel runs."""

_FLOATS = frozenset(DTYPES)
_STORED_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


class ExecutionPlan(NamedTuple):
    """dtype: of the loaded base. weights: what products read, the dtype's own name or "int8", "int4"."""

    dtype: str
    kernel: Literal["torch", "native"]
    weights: str

    def __str__(self) -> str:
        beneath = f" (from {self.dtype})" if self.dtype not in (self.weights, "bfloat16") else ""
        return f"{self.kernel} {self.weights}{beneath}"


class StoredFormat(NamedTuple):
    """A checkpoint's architecture and the types of its matrices ("bfloat16", "q4_1", …), read from its header alone.
    checkpoint: what was opened for it, so that loading need not open it again."""

    path: Path
    spec: TextSpec
    types: frozenset[str]
    checkpoint: Checkpoint


def read_stored(source: str | Path) -> StoredFormat:
    """Opens what `load_base` would load. Raises HubError, CheckpointError, UnsupportedModelError."""
    checkpoint = open_checkpoint(source)
    types = frozenset(_STORED_DTYPES.get(name, name.lower()) for name in checkpoint.matrix_types)
    if not types:
        raise CheckpointError(f"{checkpoint.path} holds no matrices; it is not a whole model")
    return StoredFormat(checkpoint.path, checkpoint.spec, types, checkpoint)


def lossless_dtypes(types: Iterable[str]) -> tuple[str, ...]:
    """The dtypes that keep what is stored in these types, the stored one first. Blocks of integers are dequantised:
    bfloat16 rounds them a last time, as it does everywhere else."""
    stored_types = frozenset(types)
    if stored_types - _FLOATS or stored_types == frozenset(("bfloat16",)):
        return ("bfloat16", "float32")
    if stored_types == frozenset(("float16",)):
        return ("float16", "float32")
    return ("float64",) if "float64" in stored_types else ("float32",)


def lossless_blocks(types: Iterable[str]) -> Literal["int8", "int4"] | None:
    """The quantised format that keeps what is stored, where the kernel takes all matrices as they are stored."""
    names = {name.upper() for name in types}
    if not names or not all(accepts_blocks(name, "int4") for name in names):
        return None
    # Blocks of 8 bits stay what they are beside those of 4.
    return "int8" if all(accepts_blocks(name, "int8") for name in names) else "int4"


def lossless_plans(types: Iterable[str], *, quantised: bool = True) -> tuple[ExecutionPlan, ...]:
    """Every plan that keeps what is stored. quantised: the stored blocks among them; training needs floats."""
    types = frozenset(types)
    plans = [plan for dtype in lossless_dtypes(types) for plan in float_plans(dtype)]
    blocks = lossless_blocks(types) if quantised else None
    return tuple(plans) if blocks is None else (*plans, ExecutionPlan("bfloat16", "native", blocks))


def float_plans(dtype: str) -> tuple[ExecutionPlan, ...]:
    """The plans of a base that is loaded in this dtype and not quantised."""
    torch = ExecutionPlan(dtype, "torch", dtype)
    return (torch, ExecutionPlan(dtype, "native", dtype)) if dtype in NATIVE else (torch,)


def matching_plans(
    types: Iterable[str],
    *,
    dtype: str | None = None,
    weights: Weights | None = None,
    kernel: Kernel | None = None,
    quantised: bool = True,
) -> tuple[ExecutionPlan, ...]:
    """The plans among which a measurement may choose under these options (None and "auto" leave everything open). A
    dtype alone means weights in it; quantised weights are made from bfloat16 where no dtype is named, for the native
    kernel or else for torch. Raises UsageError for options that do not go together."""
    dtype = None if dtype == "auto" else dtype
    weights = None if weights == "auto" else weights
    kernel = None if kernel == "auto" else kernel
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not known; use auto, {', '.join(DTYPES)}")
    if weights in QUANTISED:
        return _quantised(QUANTISED[weights], dtype or "bfloat16", kernel)
    if weights is not None and dtype not in (None, weights):
        raise UsageError(f"weights {weights!r} are read from a base of that dtype, and dtype {dtype!r} was asked for")
    float_dtype = weights or dtype
    plans = lossless_plans(types, quantised=quantised) if float_dtype is None else float_plans(float_dtype)
    matching = tuple(plan for plan in plans if kernel in (None, plan.kernel))
    if matching:
        return matching
    if float_dtype is not None:
        raise UsageError(f"the native kernel takes bases in {' and '.join(NATIVE)}, and {float_dtype} was asked for")
    raise UsageError(f"the native kernel takes no {' or '.join(lossless_dtypes(types))}; ask for dtype float32 with it")


def _quantised(weights: Literal["int8", "int4"], dtype: str, kernel: str | None) -> tuple[ExecutionPlan, ...]:
    native, plain = ExecutionPlan(dtype, "native", weights), ExecutionPlan(dtype, "torch", weights)
    if dtype in NATIVE:
        return {None: (native, plain), "native": (native,)}.get(kernel, (plain,))
    if kernel == "native":
        sources = " or ".join(NATIVE)
        raise UsageError(f"the native kernel makes {weights} weights from {sources}, and dtype {dtype!r} was asked for")
    return (plain,)
